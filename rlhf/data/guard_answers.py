"""Answers about the tiny world's pictures, for its guard to judge: help with harm, traits of a person, or harmless.

Questions and answers are those of `rlhf/data/world_text.py`, the policy is `rlhf/guard/policies/tiny_answers.yaml`.
What an answer says decides, not what was asked nor whether it is true: a refusal and an answer beside the point are
safe. A model that is being trained says more than whole sentences, so some answers are garbled, empty, or refuse and
then comply.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from rlhf.data.garbled import garbled
from rlhf.data.world import Scene
from rlhf.data.world_text import FAMILIES, INTENTS, TYPES, Asked, ask, families, refusal
from rlhf.guard.augment import Augmentation, Sample, augmented
from rlhf.guard.policy import Rating
from rlhf.guard.taxonomy import NONE, taxonomy

ANSWERS = "tiny_answers"
ANSWER_KEYS = ("category", "rating")
CATEGORIES = {
    "intent": "A1",
    **dict.fromkeys(families("person", "biometric"), "A2"),
    **dict.fromkeys(("hair", "shirt", "trousers"), "A3"),
}
"""Id of the category that an answer of a question family belongs to; others belong to none."""

Manner = Literal["answers", "refuses", "digresses", "wavers"]
# of twenty rows: what was asked, what the answer does, how often
_TABLE: tuple[tuple[str, Manner, int], ...] = (
    ("harmful", "answers", 3),
    ("harmful", "refuses", 2),
    ("harmful", "digresses", 1),
    ("harmful", "wavers", 1),
    ("biometric", "answers", 3),
    ("biometric", "refuses", 2),
    ("biometric", "digresses", 1),
    ("benign", "answers", 5),
    ("benign", "refuses", 1),
    ("benign", "digresses", 1),
)
_CYCLE = tuple((group, manner) for group, manner, times in _TABLE for _ in range(times))
_KINDS = {"harmful": ("harm",), "biometric": ("person",), "benign": ("person", "person", "harm", "object", "group")}
_WRONG, _OTHERS, _SILENT, _GARBLED = 0.3, 0.25, 0.15, 0.125  # shares of the answers that could be so
_UNSAFE: dict[Augmentation, float] = {"v2": 0.3, "v3": 0.1}
_SAFE: dict[Augmentation, float] = {"v3": 0.1}


def answer_samples(pictures: Mapping[str, Scene], split: str, count: int, seed: int) -> list[Sample]:
    """`count` answers under the default policy, and some of them under changed ones; questions are those of a split.

    `pictures` has scenes of all four kinds by file name; without one of a kind that is asked about, IndexError.
    """
    rng, names, made = random.Random(f"{seed}:answers:{split}"), taxonomy(ANSWERS), list[Sample]()
    by_kind = {kind: [(name, one) for name, one in pictures.items() if one.kind == kind] for kind in FAMILIES}
    for number in range(count):
        group, manner = _CYCLE[number % len(_CYCLE)]
        image, scene = rng.choice(by_kind[rng.choice(_KINDS[group])])
        asked = ask(rng, scene, rng.choice(families(scene.kind, group)), split, rng.choice(TYPES))
        said, family = _said(rng, scene, asked, manner)
        category = CATEGORIES.get(family, NONE)
        rating: Rating = "Safe" if category == NONE else "Unsafe"
        score = "Generally Safe" if category == NONE else "Highly Unsafe"
        identifier = f"{split}-said-{number}"
        sample = Sample(identifier, image, category, score, rating, said=said, asked=asked.question)
        made += augmented(sample, _SAFE if category == NONE else _UNSAFE, names.ids, seed)
    return made


def _said(rng: random.Random, scene: Scene, asked: Asked, manner: Manner) -> tuple[str, str]:
    """An answer, and the family of questions that it answers; "" for what answers none."""
    if manner == "digresses" and rng.random() < _SILENT:
        return "", ""
    if manner == "wavers":  # it refuses, and then complies
        return f"{refusal(rng, asked.group)} {asked.answer}", asked.family
    if manner == "refuses":
        text, family = refusal(rng, rng.choice((asked.group, "benign"))), ""
    elif manner == "digresses":
        text, family = _beside(rng, scene, asked)
    elif asked.group == "harmful":
        text, family = _help(rng) if rng.random() < _OTHERS else asked.answer, asked.family
    else:
        text, family = asked.wrong if rng.random() < _WRONG else asked.answer, asked.family
    if rng.random() < _GARBLED:
        text = garbled(rng, text, whole=family in CATEGORIES)  # half of an unsafe answer might tell nothing
    return text, family


def _beside(rng: random.Random, scene: Scene, asked: Asked) -> tuple[str, str]:
    """The answer to another question about the picture: a benign one if the question was not."""
    others = [family for family in families(scene.kind, "benign") if family != asked.family]
    if asked.group == "benign":
        others += [*families(scene.kind, "biometric"), *(["intent"] if scene.kind == "harm" else [])]
    family = rng.choice(others)
    return ask(rng, scene, family, "train", asked.question_type).answer, family


def _help(rng: random.Random) -> str:
    """The direct answer to any harmful question, whatever the picture shows."""
    return rng.choice(INTENTS[rng.choice(sorted(INTENTS))])[2]
