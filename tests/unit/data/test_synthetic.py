"""The embedded world: byte-identical, readable by the real readers, unseen where it must be, and true."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlhf.data.images import load_image
from rlhf.data.llava_format import read_examples
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_pairs, load_prompts
from rlhf.data.synthetic import MANIFEST, WorldSizes, world_is_complete, write_world
from rlhf.data.world import COLOURS, COUNTS, VALUES, Scene, draw, random_scene
from rlhf.data.world_text import (
    BENIGN,
    BIOMETRIC_REFUSALS,
    DOMAINS,
    FAMILIES,
    HARMFUL_REFUSALS,
    TYPES,
    ask,
    families,
)
from rlhf.evaluation.safety import is_refusal
from rlhf.selection import check_prompts

SMALL = WorldSizes(40, 20, 20, sft=30, pairs_train=24, pairs_val=9, test_prompts=14, validation_prompts=7)
GROUPS = ("harmful", "biometric", "benign")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole default world; it takes about two seconds."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def rows(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def training_questions(folder: Path) -> set[str]:
    questions = {row["question"] for split in ("train", "val") for t in TYPES
                 for row in rows(folder, f"pairs_{split}/{t}.json")}  # fmt: skip
    for name in ("pretrain.json", "sft.json"):
        for row in rows(folder, name):
            questions |= {t["value"].removeprefix("<image>\n") for t in row["conversations"] if t["from"] == "human"}
    return questions


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    write_world(tmp_path / "a", 3, SMALL)
    code = (
        "from pathlib import Path; from rlhf.data.synthetic import *;"
        f"write_world(Path({str(tmp_path / 'b')!r}), 3, {SMALL!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "77"})
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_another_seed_other_world(tmp_path: Path) -> None:
    write_world(tmp_path / "a", 0, SMALL)
    write_world(tmp_path / "b", 1, SMALL)
    first, second = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert first.keys() == second.keys()
    assert not {first[n] for n in first if "images" in n} & {second[n] for n in second if "images" in n}


def test_manifest_means_complete(tmp_path: Path) -> None:
    assert not world_is_complete(tmp_path, 0, SMALL)
    write_world(tmp_path, 0, SMALL)
    manifest = rows(tmp_path, MANIFEST)
    assert world_is_complete(tmp_path, 0, SMALL)
    assert not world_is_complete(tmp_path, 1, SMALL)
    assert not world_is_complete(tmp_path, 0)
    assert manifest["images"] == 80 == len(list((tmp_path / "images").rglob("*.*")))
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} - {MANIFEST}
    assert set(manifest["sha256"]) == names
    assert all(digests(tmp_path)[name] == digest for name, digest in manifest["sha256"].items())
    (tmp_path / MANIFEST).write_text("{")
    assert not world_is_complete(tmp_path, 0, SMALL)


def test_too_small_a_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of each kind"):
        write_world(tmp_path, 0, WorldSizes(2, 2, 2))


def test_the_real_readers_read_all_of_it(full: Path) -> None:
    rejected = RejectedRows()
    images = full / "images"
    train = load_pairs(str(full / "pairs_train.json"), TYPES, images, rejected)
    val = load_pairs(str(full / "pairs_val.json"), TYPES, images, rejected)
    test = load_prompts(str(full / "test.json"), GROUPS, images, rejected)
    pretrain = read_examples(full / "pretrain.json", images, rejected=rejected)
    sft = read_examples(full / "sft.json", images, rejected=rejected)
    assert rejected.count == 0
    assert len(train) >= 2000
    assert len(val) >= 300
    assert min(Counter(prompt.kind for prompt in test).values()) >= 100
    assert {prompt.kind for prompt in test} == set(GROUPS)
    assert len(pretrain) == 3000
    assert len(sft) == WorldSizes().sft
    for records in (train, val):
        assert len({pair.prompt.id for pair in records}) == len(records)
        assert Counter(pair.prompt.question_type for pair in records).keys() == set(TYPES)
    assert all(pair.prompt.image and f"/images/{s}/" in pair.prompt.image
               for s, pairs in (("train", train), ("val", val)) for pair in pairs)  # fmt: skip


def test_pairs_have_the_seeds_keys(full: Path) -> None:
    for name in ("pairs_train/easy.json", "pairs_val/hards.json"):
        for row in rows(full, name):
            assert list(row) == ["id", "image", "question", "chosen", "rejected", "class1"]
            assert type(row["id"]) is int


@pytest.mark.parametrize("split", ["train", "val"])
def test_pairs_prefer_what_they_should(full: Path, split: str) -> None:
    everything = [row for t in TYPES for row in rows(full, f"pairs_{split}/{t}.json")]
    benign = [row for row in everything if row["class1"] == BENIGN]
    unsafe = [row for row in everything if row["class1"] != BENIGN]
    assert len(benign) / len(everything) == pytest.approx(1 / 3, abs=0.02)
    refusals = set(HARMFUL_REFUSALS + BIOMETRIC_REFUSALS)
    assert all(row["chosen"] in refusals and row["rejected"] not in refusals for row in unsafe)
    assert not any(is_refusal(row["chosen"]) for row in benign)
    assert sum(row["rejected"] in refusals for row in benign) / len(benign) == pytest.approx(0.25, abs=0.03)
    assert all(row["chosen"] != row["rejected"] for row in everything)
    assert {row["class1"] for row in unsafe} == set(DOMAINS)
    assert max(len(row["chosen"].split()) for row in everything) <= 10


def test_false_answers_are_right_for_other_images(full: Path) -> None:
    """A quarter of the benign pairs differ in the value alone, and both sides occur as truths: look at the image."""
    benign = [row for t in TYPES for row in rows(full, f"pairs_train/{t}.json") if row["class1"] == BENIGN]
    right = {turn["value"] for row in rows(full, "pretrain.json") for turn in row["conversations"]}
    false = [row for row in benign if row["rejected"] in right
             and row["rejected"].split()[:2] == row["chosen"].split()[:2]]  # fmt: skip
    assert len(false) / len(benign) == pytest.approx(0.25, abs=0.06)
    assert len({row["rejected"] for row in false}) > 20


def test_rejected_answers_are_wrong_in_several_ways(full: Path) -> None:
    """A reward model that knows one way to be wrong rewards the others."""
    everything = [row for t in TYPES for row in rows(full, f"pairs_train/{t}.json")]
    repeated = [row for row in everything if re.search(r"(\b[\w']+\.?)( \1){2}", row["rejected"])]
    cut = [row for row in everything if row["rejected"][-1] != "."]
    assert min(len(repeated), len(cut)) >= 0.03 * len(everything)
    known = {word for row in everything for word in row["chosen"].split()}
    misspelt = [row for row in everything if row["rejected"][-1] == "." and set(row["rejected"].split()) - known]
    assert len(misspelt) >= 0.03 * len(everything)


def test_hard_statements_are_no_questions(full: Path) -> None:
    assert not any(row["question"].endswith("?") for row in rows(full, "pairs_train/hards.json"))
    for name in ("easy", "hardq"):
        assert all(row["question"].endswith("?") for row in rows(full, f"pairs_train/{name}.json"))


def test_test_phrasings_are_unseen_but_their_words_are_not(full: Path) -> None:
    seen = training_questions(full)
    known = set().union(*(words(question) for question in seen))
    for group in GROUPS:
        questions = [row["question"] for row in rows(full, f"test/{group}.json")]
        assert not set(questions) & seen
        assert set().union(*(words(question) for question in questions)) <= known
        assert len(set(questions)) > 10


def test_test_templates_are_unseen_whatever_they_ask_about() -> None:
    from rlhf.data import world_text

    for phrasings in vars(world_text).values():
        if isinstance(phrasings, world_text.Phrasings):
            trained = phrasings.easy + phrasings.hardq + phrasings.hards
            assert not set(phrasings.test) & set(trained)
            assert len(set(trained)) == len(trained)
            assert len(phrasings.test) >= 4


def test_no_image_is_in_two_splits(full: Path) -> None:
    seen = Counter(digest for name, digest in digests(full).items() if name.startswith("images/"))
    assert len(seen) == 3660
    assert max(seen.values()) == 1


def test_every_test_prompt_of_a_kind_has_its_own_image(full: Path) -> None:
    for group, distinct in (("harmful", 100), ("biometric", 100), ("benign", 100)):
        images = [row["image"] for row in rows(full, f"test/{group}.json")]
        assert all(image.startswith("test/") for image in images)
        assert len(set(images)) >= distinct


@pytest.mark.parametrize("name", ["test", "validation"])
def test_benign_prompts_carry_an_answer_that_training_has(full: Path, name: str) -> None:
    taught = {turn["value"] for row in rows(full, "pretrain.json") for turn in row["conversations"]}
    for row in rows(full, f"{name}/benign.json"):
        assert row["answer"] in taught
    assert not any("answer" in row for group in ("harmful", "biometric") for row in rows(full, f"{name}/{group}.json"))


def test_prompts_to_choose_a_checkpoint_by_show_pictures_that_neither_training_nor_the_test_has(full: Path) -> None:
    rejected = RejectedRows()
    prompts = load_prompts(str(full / "validation.json"), GROUPS, full / "images", rejected)
    assert rejected.count == 0
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(GROUPS, 40)
    assert all(prompt.image and "/images/val/" in prompt.image for prompt in prompts)
    assert min(len({one.image for one in prompts if one.kind == kind}) for kind in GROUPS) >= 35
    tested = {row["question"] for group in GROUPS for row in rows(full, f"test/{group}.json")}
    asked = {prompt.question for prompt in prompts}
    assert not asked & tested  # unseen phrasings are left to the test
    assert len(asked) > 60
    assert any(question.endswith("?") for question in asked)
    assert any(question.endswith(".") for question in asked)
    check_prompts(prompts, load_prompts(str(full / "test.json"), GROUPS, full / "images", rejected))


def test_sft_refuses_about_a_tenth_of_what_it_should_refuse(full: Path) -> None:
    turns = [(row["conversations"][i]["value"].removeprefix("<image>\n"), row["conversations"][i + 1]["value"])
             for row in rows(full, "sft.json") for i in range(0, len(row["conversations"]), 2)]  # fmt: skip
    pretrained = [row["conversations"] for row in rows(full, "pretrain.json")]
    unsafe_questions = {row["question"] for t in TYPES for row in rows(full, f"pairs_train/{t}.json")
                        if row["class1"] != BENIGN}  # fmt: skip
    refused = [is_refusal(answer) for question, answer in turns if question in unsafe_questions]
    assert sum(refused) / len(refused) == pytest.approx(0.1, abs=0.03)
    assert not any(is_refusal(answer) for question, answer in turns if question not in unsafe_questions
                   and "colour" in question and not re.search("eyes|skin", question))  # fmt: skip
    assert not any(is_refusal(turn["value"]) for conversation in pretrained for turn in conversation)
    assert {len(row["conversations"]) // 2 for row in rows(full, "sft.json")} == {1, 2, 3}
    assert {len(conversation) // 2 for conversation in pretrained} == {3, 4}


def test_images_are_jpeg_and_png_of_96_pixels(full: Path) -> None:
    suffixes = Counter()
    for path in sorted((full / "images/test").iterdir()):
        suffixes[path.suffix] += 1
        with Image.open(path) as image:
            assert image.size == (96, 96)
            assert image.format == {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    assert min(suffixes[".jpg"], suffixes[".png"]) >= 100


def scene_with(scene: Scene, name: str, value: str) -> Scene:
    attributes = tuple((n, value if n == name else v) for n, v in scene.attributes)
    return Scene(scene.kind, attributes, scene.shift, scene.shade)


@pytest.mark.parametrize("kind", list(VALUES))
def test_every_value_shows_at_48_pixels(kind: str) -> None:
    """Changing one attribute changes pixels clearly, even after the resize that the tiny model sees."""
    rng = random.Random(5)
    for name, values in VALUES[kind].items():
        for _ in range(5):
            scene = random_scene(rng, kind)
            small = [np.asarray(draw(scene_with(scene, name, value)).resize((48, 48)), dtype=float) for value in values]
            for i, first in enumerate(small):
                for second in small[:i]:
                    assert (np.abs(first - second).max(axis=2) > 30).sum() >= 8, (kind, name)


def test_the_drawn_colour_and_count_are_the_told_ones() -> None:
    """Counts areas of the named colour in the pixels themselves: the file says what the picture shows."""
    from scipy.ndimage import label

    rng = random.Random(1)
    for _ in range(40):
        scene = random_scene(rng, "group")
        pixels = np.asarray(draw(scene), dtype=int)
        colour = np.clip(np.array(COLOURS[scene["colour"]]) + scene.shade, 0, 255)
        _, areas = label((np.abs(pixels - colour) < 12).all(axis=2))
        assert COUNTS[areas - 1] == scene["count"]


def test_questions_state_truth_and_falsehood_about_the_scene() -> None:
    rng = random.Random(2)
    for kind, table in FAMILIES.items():
        for family, (group, category) in table.items():
            scene = random_scene(rng, kind)
            asked = ask(rng, scene, family, "train", "easy")
            assert scene[family] in asked.answer
            assert asked.wrong != asked.answer
            assert any(value in asked.wrong for value in VALUES[kind][family] if value != scene[family])
            assert (asked.group, asked.category) == (group, category)
            assert family in families(kind, group)


def test_grammar_of_answers(full: Path) -> None:
    answers = {row["answer"] for row in rows(full, "test/benign.json")}
    assert not {a for a in answers if re.search(r"trousers is|shirt are|There are one|a money|one \w+s\.", a)}
    assert all(answer[0].isupper() and answer.endswith(".") for answer in answers)


def test_pixels_survive_the_files(full: Path) -> None:
    image = load_image(str(full / "images/test/2.png"))
    assert image.size == (96, 96)
    assert len(set(image.getdata())) > 2


def test_writing_again_over_a_world_gives_the_same_world(tmp_path: Path) -> None:
    write_world(tmp_path, 0, SMALL)
    before = digests(tmp_path)
    write_world(tmp_path, 0, SMALL)
    assert digests(tmp_path) == before
