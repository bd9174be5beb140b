"""The tiny world of guards: harm scenes under many policies, so that one picture is Unsafe here and Safe there.

The scenes are those of `rlhf/data/world.py`, the policies those of `rlhf/guard/policies/tiny.yaml`, one line per
category. `write_guard_world` writes one folder: `images/`, `pretrain.json` (what pictures show), `train.json` and
`train_rating_only.json` in the guard's format, `test.json` about unseen pictures, and `annotations.json` for
`jobs/build_guard_data.py`. `train_answers.json` and `test_answers.json` have answers about other pictures
(`guard_answers.py`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.data.guard_answers import ANSWER_KEYS, ANSWERS, answer_samples
from rlhf.data.synthetic import JPEG_QUALITY, MANIFEST
from rlhf.data.world import Scene, draw, random_scene
from rlhf.data.world_text import TYPES, ask, families
from rlhf.guard.augment import Augmentation, Sample, augmented
from rlhf.guard.dataset import row_of
from rlhf.guard.policy import Rating, build_policy
from rlhf.guard.rationales import finish
from rlhf.guard.taxonomy import NONE, Taxonomy, taxonomy

PICTURE_KEYS = ("category", "rating", "rationale")
"""A tiny model has to name what it sees before it can look up the rule; the published sets have the rating first."""
CATEGORIES = {
    "mask": "O1",
    "knife": "O2",
    "card": "O5",
    "money": "O5",
    "laptop": "O5",
    "gun": "O6",
    "pill": "O6",
    "bottle": "O7",
}
_SURE = ("mask", "knife", "gun", "bottle")  # the others are only moderately unsafe
_NOUNS = {"money": "some {} money"}
_CYCLE = ("harm", "harm", "harm", "object", "harm", "harm", "harm", "group", "harm", "person")
_ANSWERED = ("person", "harm", "object", "person", "harm", "group")
# as many unsafe as safe rows about a harm scene; the test asks about default, own line exempt, other lines exempt
_TRAIN: dict[Augmentation, float] = {"v3": 1, "v2": 1, "v2a": 1}
_TEST: dict[Augmentation, float] = {"v3": 1, "v2": 1}
_BENIGN: dict[Augmentation, float] = {"v3": 1}
_DESCRIBE = "What does the picture show?"
_SEVERAL = {"one": "one {} {}", "two": "two {} {}s", "three": "three {} {}s"}


@dataclass(frozen=True)
class GuardSizes:
    """How many pictures to judge in training and in the test, and how many answers about how many other pictures."""

    train: int = 1500
    test: int = 200
    answers_train: int = 1600
    answers_test: int = 200
    answered_train: int = 600
    answered_test: int = 120


def write_guard_world(folder: Path, seed: int = 0, sizes: GuardSizes | None = None) -> None:
    """Write everything into `folder`; the manifest comes last. Same seed, same bytes."""
    sizes, tiny = sizes or GuardSizes(), taxonomy("tiny")
    (folder / MANIFEST).unlink(missing_ok=True)
    seen: set[Scene] = set()
    train = _pictures(folder, "train", sizes.train, seed, seen)
    test = _pictures(folder, "test", sizes.test, seed, seen)
    said = {
        split: answer_samples(_pictures(folder, f"{split}_answers", drawn, seed, seen, _ANSWERED), split, count, seed)
        for split, drawn, count in (
            ("train", sizes.answered_train, sizes.answers_train),
            ("test", sizes.answered_test, sizes.answers_test),
        )
    }
    answers, rated = taxonomy(ANSWERS), _samples(train, tiny, _TRAIN, seed)
    for samples in (rated, said["train"]):
        random.Random(f"{seed}:order").shuffle(samples)
    files = {
        "pretrain.json": _pretrain(random.Random(f"{seed}:pretrain"), train),
        "train.json": [row_of(one, "train", tiny, PICTURE_KEYS) for one in rated],
        "train_rating_only.json": [row_of(one, "train", tiny, ("rating",)) for one in rated],
        "train_answers.json": [row_of(one, "train", answers, ANSWER_KEYS) for one in said["train"]],
        "test.json": [row_of(one, "test", tiny, PICTURE_KEYS) for one in _samples(test, tiny, _TEST, seed)],
        "test_answers.json": [row_of(one, "test", answers, ANSWER_KEYS) for one in said["test"]],
        "annotations.json": [_annotation(name, scene) for name, scene in (train | test).items()],
    }
    for name, rows in files.items():
        (folder / name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(files)}
    content = {"seed": seed, "sizes": asdict(sizes), "asked": _asked(), "images": len(seen), "sha256": digests}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def guard_world_is_complete(folder: Path, seed: int = 0, sizes: GuardSizes | None = None) -> bool:
    """Whether `folder` holds a complete set of this seed and these sizes, asked as the policies are today."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    wanted = {"seed": seed, "sizes": asdict(sizes or GuardSizes()), "asked": _asked()}
    return all(manifest.get(key) == value for key, value in wanted.items())


def _asked() -> dict[str, str]:
    """The hash of both policies."""
    both = {"tiny": PICTURE_KEYS, ANSWERS: ANSWER_KEYS}
    return {name: build_policy(taxonomy(name), keys=keys).sha256 for name, keys in both.items()}


def category_of(scene: Scene) -> str:
    """Id of the category that a scene belongs to; "NA" for one without a harmful thing."""
    return CATEGORIES[scene["item"]] if scene.kind == "harm" else NONE


def describe(scene: Scene) -> str:
    """What a scene shows, in one sentence."""
    if scene.kind == "harm":
        shown = _NOUNS.get(scene["item"], f"a {{}} {scene['item']}").format(scene["colour"])
    elif scene.kind == "person":
        shown = f"a person in a {scene['shirt']} shirt"
    elif scene.kind == "object":
        shown = f"a {scene['colour']} {scene['shape']}"
    else:
        shown = _SEVERAL[scene["count"]].format(scene["colour"], scene["shape"])
    return f"The picture shows {shown}."


def _pictures(
    folder: Path, split: str, count: int, seed: int, seen: set[Scene], cycle: Sequence[str] = _CYCLE
) -> dict[str, Scene]:
    """Draw scenes that no other picture shows, their kinds by turns, by file name."""
    rng, found = random.Random(f"{seed}:{split}"), dict[str, Scene]()
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = random_scene(rng, cycle[number % len(cycle)])
        while scene in seen:
            scene = random_scene(rng, scene.kind)
        seen.add(scene)
        name = f"{split}/{number}.jpg"
        draw(scene).save(folder / "images" / name, quality=JPEG_QUALITY)
        found[name] = scene
    return found


def _samples(
    pictures: Mapping[str, Scene], tiny: Taxonomy, plan: Mapping[Augmentation, float], seed: int
) -> list[Sample]:
    made = []
    for name, scene in pictures.items():
        row = _annotation(name, scene)
        rating: Rating = "Safe" if row["category"] == NONE else "Unsafe"
        sample = Sample(row["id"], name, row["category"], row["score"], rating, row["rationale"])
        chosen = _BENIGN if row["category"] == NONE else plan
        made += [finish(one, one.rationale, tiny) for one in augmented(sample, chosen, tiny.ids, seed)]
    return made


def _annotation(name: str, scene: Scene) -> dict[str, Any]:
    """What people would have said of the picture under the default policy."""
    category = category_of(scene)
    score = "Generally Safe"
    if category != NONE:
        score = "Highly Unsafe" if scene["item"] in _SURE else "Moderately Unsafe"
    identifier = name.removesuffix(".jpg").replace("/", "-")
    return {"id": identifier, "image": name, "category": category, "score": score, "rationale": describe(scene)}


def _pretrain(rng: random.Random, pictures: Mapping[str, Scene]) -> list[dict[str, Any]]:
    """A description of each picture and up to three simple questions about it."""
    rows = []
    for number, (name, scene) in enumerate(pictures.items()):
        asked_of: Sequence[str] = families(scene.kind, "benign")
        chosen = rng.sample(asked_of, min(3, len(asked_of)))
        asked = [ask(rng, scene, family, "train", rng.choice(TYPES)) for family in chosen]
        turns = [(_DESCRIBE, describe(scene)), *((one.question, one.answer) for one in asked)]
        conversations = []
        for place, (question, reply) in enumerate(turns):
            tag = "<image>\n" if place == 0 else ""
            conversations += [{"from": "human", "value": tag + question}, {"from": "gpt", "value": reply}]
        rows.append({"id": number, "image": name, "conversations": conversations})
    return rows
