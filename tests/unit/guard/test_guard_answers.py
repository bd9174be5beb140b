"""Answers that the tiny guard learns to judge: what counts is what they say, and PPO's guard is asked the same way."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.make_tiny_world import TinyWorldConfig, _corpus
from rlhf.batch import Completion, Prompt
from rlhf.config import ModelConfig, load
from rlhf.data.guard_answers import ANSWER_KEYS, answer_samples
from rlhf.data.guard_world import GuardSizes, write_guard_world
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.synthetic import WorldSizes, write_world
from rlhf.data.world import Scene, random_scene
from rlhf.data.world_text import BIOMETRIC_REFUSALS, HARMFUL_REFUSALS, INTENTS
from rlhf.guard.predictions import read_requests
from rlhf.guard.prompt import guard_prompt
from rlhf.guard.taxonomy import taxonomy
from rlhf.models.tiny import build
from rlhf.online_config import OnlineConfig
from rlhf.rewards import build_reward
from rlhf.rewards.guard import GuardRewardConfig, require_judgeable
from rlhf.rewards.mixture import MixtureRewardConfig
from rlhf.roles import Rollout
from tests.unit.evaluation.openai_server import chat_server

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs" / "tiny"
SIZES = GuardSizes(train=40, test=20, answers_train=400, answers_test=200, answered_train=60, answered_test=30)
COLOURS = ("red", "blue", "green", "yellow", "purple", "black")
# every sentence that a category is about, written out by hand
SENTENCES = {
    "A1": [direct for intents in INTENTS.values() for _, _, direct in intents],
    "A2": [
        *(f"The eyes are {colour}." for colour in ("blue", "green", "brown")),
        *(f"The skin is {colour}." for colour in ("light", "brown", "dark")),
        *(f"This is {who}." for who in ("a child", "an adult", "an elderly person")),
        *(f"The body is {build}." for build in ("slim", "heavy")),
    ],
    "A3": [
        *(f"The hair is {colour}." for colour in ("black", "brown", "blond", "red")),
        *(f"The shirt is {colour}." for colour in COLOURS),
        *(f"The trousers are {colour}." for colour in COLOURS),
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "world"
    write_guard_world(folder, 0, SIZES)
    return folder


def about_answers(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())
    assert all("said" in row for row in found)
    return found


def scenes(count: int = 300) -> dict[str, Scene]:
    rng = random.Random(5)
    return {f"{n}.jpg": random_scene(rng, ("person", "harm", "object", "group")[n % 4]) for n in range(count)}


def guard_of_ppo() -> GuardRewardConfig:
    """The guard in the configuration of the proof."""
    config = load(OnlineConfig, CONFIGS / "ppo_guard.yaml")
    assert isinstance(config.reward, MixtureRewardConfig)
    (guard,) = [one.reward for one in config.reward.rewards if isinstance(one.reward, GuardRewardConfig)]
    return guard


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def missing(sentence: str, text: str) -> int:
    return len(set(sentence.split()) - set(text.split()))


def test_guard12_an_unsafe_answer_says_what_its_category_forbids_and_a_safe_one_does_not() -> None:
    samples = [one for one in answer_samples(scenes(), "train", 1000, 0) if one.augmentation is None]
    assert len(samples) == 1000
    verbatim = []
    for one in samples:
        assert one.said is not None
        if one.rating == "Safe":
            assert one.category == "NA"
            assert not [text for texts in SENTENCES.values() for text in texts if text in one.said]
        else:  # as it stands, or garbled with all its words but one that is misspelt
            assert min(missing(text, one.said) for text in SENTENCES[one.category]) <= 1
            verbatim.append(any(text in one.said for text in SENTENCES[one.category]))
    assert sum(verbatim) / len(verbatim) > 0.8
    assert 0.4 < len(verbatim) / len(samples) < 0.55
    assert min(Counter(one.category for one in samples).values()) > 80
    refusals = {one.said for one in samples} & {*HARMFUL_REFUSALS, *BIOMETRIC_REFUSALS}
    assert len(refusals) == 8
    assert "" in {one.said for one in samples}
    both = [one for one in samples if any(f"{text} Sure," in (one.said or "") for text in HARMFUL_REFUSALS)]
    assert both
    assert {one.category for one in both} == {"A1"}  # who refuses and then helps has helped


def test_guard12_the_question_does_not_decide_and_the_policy_does(world: Path) -> None:
    for name in ("train_answers", "test_answers"):
        ratings: dict[str, set[str]] = {}
        for row in about_answers(world, name):
            question, answer = (turn["value"] for turn in row["conversations"])
            lines = re.findall(r"^(A\d): (no|yes|never) (.*)$", question, re.MULTILINE)
            rules = {f"{name}: {title}": word for name, word, title in lines}
            assert len(rules) == 3
            verdict = json.loads(answer)
            assert list(verdict) == ["category", "rating"]
            assert verdict["rating"] == ("Unsafe" if rules.get(verdict["category"]) == "no" else "Safe")
            assert f"<question>\n{row['asked']}\n</question>\n<answer>\n{row['said']}\n</answer>" in question
            group = "harmful" if any(plan in row["asked"] for kinds in INTENTS.values() for plan, _, _ in kinds) else ""
            ratings.setdefault(group, set()).add(verdict["rating"])
        assert ratings == {"harmful": {"Safe", "Unsafe"}, "": {"Safe", "Unsafe"}}


def test_guard12_answers_of_the_test_are_about_unseen_pictures_in_unseen_phrasings(world: Path) -> None:
    train, test = about_answers(world, "train_answers"), about_answers(world, "test_answers")
    everything = train + json.loads((world / "train.json").read_text())
    assert len(train) > SIZES.answers_train
    assert not {row["image"] for row in test} & {row["image"] for row in everything}
    assert not {row["asked"] for row in test} & {row["asked"] for row in train}
    assert len({row["id"] for row in everything}) == len(everything)
    pictures = [(world / "images" / name).read_bytes() for name in {row["image"] for row in test + everything}]
    assert len(set(pictures)) == len(pictures)


def test_guard12_every_word_of_the_worlds_that_ppo_asks_in_is_learned(tmp_path: Path) -> None:
    """Words of prompts, right answers and refusals of the world of `ppo_guard.yaml`, against those in training."""
    sizes = WorldSizes(40, 20, 20, sft=30, pairs_train=600, pairs_val=9, test_prompts=120)
    write_world(tmp_path, 0, sizes)
    spoken = set[str]().union(*(words(text) for text in SENTENCES["A1"]))
    for path in sorted(tmp_path.glob("pairs_train/*.json")):
        for row in json.loads(path.read_text()):
            spoken |= words(row["question"]) | words(row["chosen"])
    for path in sorted(tmp_path.glob("test/*.json")):
        for row in json.loads(path.read_text()):
            spoken |= words(row["question"]) | words(row.get("answer", ""))
    learned: set[str] = set()
    for one in answer_samples(scenes(), "train", GuardSizes().answers_train, 0):
        learned |= words(one.said or "") | words(one.asked or "")
    assert len(spoken) > 150
    assert spoken - learned == set()


def test_guard12_prompts_fit_and_have_no_unknown_token(world: Path, tmp_path: Path) -> None:
    """With the tokenizer of the shipped configuration, in the context that PPO's reward gives its guard."""
    config = load(TinyWorldConfig, CONFIGS / "guard_world.yaml")
    build(config.model, _corpus(world, config), tmp_path / "model")
    guard = guard_of_ppo()
    model = ModelConfig(path=str(tmp_path / "model"), dtype="float32", max_length=512, template="llava_hf")
    processor = Processor.load(model)
    answers, lengths = taxonomy("tiny_answers"), []
    requests = read_requests(world / "test_answers.json", world / "images", answers, RejectedRows(), ANSWER_KEYS)
    for one in requests:
        ids = processor.prompt_ids(guard_prompt(one), guard.decoding.max_new_tokens, guard.rollout.max_length)
        assert processor.tokenizer.unk_token_id not in ids
        lengths.append(len(ids))
    assert max(lengths) < 260
    budget = load(OnlineConfig, CONFIGS / "ppo_guard.yaml").sampling.max_new_tokens
    prompts = [Prompt(one.id, one.asked or "", one.image) for one in requests]
    require_judgeable(guard.model_copy(update={"model": model}), prompts, budget)
    for row in about_answers(world, "test_answers"):
        verdict = processor.tokenizer(row["conversations"][1]["value"], add_special_tokens=False)["input_ids"]
        assert len(verdict) < guard.decoding.max_new_tokens


def test_guard_reward_asks_what_the_guard_learned_word_for_word(world: Path, pictures: list[str]) -> None:
    """The policy of `ppo_guard.yaml` as the reward sends it, against rows of the training file."""
    rows = [row for row in about_answers(world, "train_answers") if row["augmentation"] is None][:40]
    safe = json.dumps({"rating": "Safe", "category": "NA: nothing"})
    with chat_server(lambda _: (200, safe)) as server:
        endpoint = {"base_url": server.url, "model": "guard", "retries": 0, "concurrency": 1}
        shipped = guard_of_ppo().model_dump(exclude={"model"}) | {"endpoint": endpoint}
        scores = build_reward(GuardRewardConfig.model_validate(shipped)).score(
            [
                Rollout(
                    Prompt(row["id"], row["asked"], pictures[0]),
                    Completion(row["id"], (1,), (0.0,), row["said"], "stop", 0),
                )
                for row in rows
            ]
        )
    asked = [request["messages"][0]["content"][1]["text"] for request in server.requests]
    assert [f"<image>\n{text}" for text in asked] == [row["conversations"][0]["value"] for row in rows]
    assert len({score.value for score in scores}) == 1
