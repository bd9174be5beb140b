"""The tiny guard world: one picture, several policies, right answers; short enough for the tiny model's context."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.make_tiny_world import TinyWorldConfig, _corpus
from rlhf.config import ModelConfig
from rlhf.data.guard_world import PICTURE_KEYS, GuardSizes, guard_world_is_complete, write_guard_world
from rlhf.data.llava_format import read_examples
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.guard.labels import read_annotations
from rlhf.guard.metrics import read_truths
from rlhf.guard.policy import build_policy
from rlhf.guard.prompt import ANSWER_TOKENS, policy_tokens
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import parse_verdict
from rlhf.models.tiny import build

SIZES = GuardSizes(train=120, test=40, answers_train=80, answers_test=40, answered_train=24, answered_test=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "world"
    write_guard_world(folder, 0, SIZES)
    return folder


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_guard12_a_picture_is_unsafe_under_one_policy_and_safe_under_another(world: Path) -> None:
    """The rating follows from the line of the policy that the picture belongs to, read from the text itself."""
    for name in ("train", "test"):
        ratings: dict[str, set[str]] = {}
        for row in rows(world, name):
            question, answer = (turn["value"] for turn in row["conversations"])
            lines = re.findall(r"^(O\d): (no|yes|never) (.*)$", question, re.MULTILINE)
            rules = {f"{name}: {title}": word for name, word, title in lines}
            assert len(rules) == 5
            said = json.loads(answer)
            assert said["rating"] == ("Unsafe" if rules.get(said["category"]) == "no" else "Safe")
            assert (row["rating"], row["category"]) == (said["rating"], said["category"])
            ratings.setdefault(row["image"], set()).add(said["rating"])
        both = sum(found == {"Safe", "Unsafe"} for found in ratings.values())
        assert both / len(ratings) == pytest.approx(0.7, abs=0.01)  # all harm scenes
        named = {row["category"].split(":")[0] for row in rows(world, name)}
        assert named == {"O1", "O2", "O5", "O6", "O7", "NA"}


def test_guard12_ratings_are_nearly_balanced_and_test_pictures_unseen(world: Path) -> None:
    train, test = rows(world, "train"), rows(world, "test")
    assert rows(world, "test") == test  # answers have a test of their own
    assert 0.4 < sum(row["rating"] == "Unsafe" for row in train) / len(train) < 0.6
    assert not {row["image"] for row in train} & {row["image"] for row in test}
    pictures = {path.read_bytes() for path in (world / "images").rglob("*.jpg")}
    assert len(pictures) == SIZES.train + SIZES.test + SIZES.answered_train + SIZES.answered_test
    assert {row["augmentation"] for row in test} == {None, "v2", "v3"}


def test_guard12_every_file_is_read_by_what_it_is_for(world: Path) -> None:
    rejected = RejectedRows()
    for name in ("pretrain", "train", "train_rating_only", "train_answers"):
        assert len(read_examples(world / f"{name}.json", world / "images", rejected=rejected)) == len(rows(world, name))
    for name in ("test", "test_answers"):
        assert len(read_truths(world / f"{name}.json", rejected)) == len(rows(world, name))
    tiny = taxonomy("tiny")
    found, dropped = read_annotations(world / "annotations.json", world / "images", tiny, rejected)
    assert (len(found), dict(dropped), rejected.count) == (160, {}, 0)
    for row in rows(world, "test"):
        policy = build_policy(tiny, row["overrides"], PICTURE_KEYS)
        assert row["conversations"][0]["value"] == f"<image>\n{policy.text}"
        assert parse_verdict(row["conversations"][1]["value"], policy).status == "json"


def test_guard12_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    write_guard_world(tmp_path, 0, SIZES)
    assert (tmp_path / "manifest.json").read_bytes() == (world / "manifest.json").read_bytes()
    assert guard_world_is_complete(tmp_path, 0, SIZES)
    assert not guard_world_is_complete(tmp_path, 1, SIZES)
    assert not guard_world_is_complete(tmp_path, 0)


def test_guard12_policy_picture_and_answer_fit_the_tiny_model(world: Path, tmp_path: Path) -> None:
    """With the tokenizer that the job trains: at most 120 tokens of policy, and room for all rows in 512."""
    config = TinyWorldConfig(kind="guard")
    build(config.model, _corpus(world, config), tmp_path / "model")
    model = ModelConfig(path=str(tmp_path / "model"), dtype="float32", max_length=512, template="llava_hf")
    processor = Processor.load(model)
    assert policy_tokens(build_policy(taxonomy("tiny"), dict.fromkeys(("O1", "O5"), "exempt")), processor) <= 120
    files = (world / "train.json", world / "train_answers.json")
    examples = [read_examples(file, world / "images", rejected=RejectedRows())[:100] for file in files]
    lengths = [processor.encode_example(example) for example in sum(examples, [])]
    assert max(len(row.ids) for row in lengths) < 300
    assert max(sum(row.response) for row in lengths) < min(128, ANSWER_TOKENS)
