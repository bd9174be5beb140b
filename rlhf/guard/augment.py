"""Policies changed so that a guard must read them: v0 to v5, each a pure function of sample, key and seed.

Source: LlavaGuard seed page, 2.4. An augmentation is a field of a sample, never part of its name (seed trap 8), and a
sample's randomness depends on its own id, so that a data set is the same in any order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhf.errors import RowError
from rlhf.guard.policy import Rating
from rlhf.guard.taxonomy import NONE, Variant

Augmentation = Literal["v0", "v1", "v2", "v2a", "v3", "v4", "v5"]
EXCEPTIONS: tuple[Augmentation, ...] = ("v2", "v2a", "v4")
"""Augmentations that turn the rating round."""
_OTHERS = (1, 3)  # how many other categories v3 and v5 change


@dataclass(frozen=True, slots=True)
class Sample:
    """An image under one policy. `rating` is the truth under that policy, `score` what people gave the image."""

    id: str
    image: str
    category: str
    score: str
    rating: Rating
    rationale: str = ""
    overrides: Mapping[str, Variant] = field(default_factory=dict)
    augmentation: Augmentation | None = None
    draw: int = 0
    base: str = ""  # id of the sample that this one was made of
    said: str | None = None  # an assistant's answer about the image, if that is what was rated
    asked: str | None = None  # the question that it answers


def is_default(augmentation: str | None, overrides: Mapping[str, str]) -> bool:
    """Whether a row asks under the default policy and is no copy (v0) of one that does."""
    return augmentation is None and not overrides


def augment(sample: Sample, key: Augmentation, draw: int, ids: Sequence[str], seed: int) -> Sample:
    """The `draw`-th sample of an augmentation; `ids` are the categories of the taxonomy without NA.

    Raises RowError where the augmentation has no meaning: v2 and v2a need an unsafe sample, v4 a safe one with a
    category, and no sample is augmented twice.
    """
    if sample.augmentation is not None or sample.overrides:
        raise RowError(f"sample {sample.id} has another policy already ({sample.augmentation or 'an exception'})")
    rng = random.Random(f"{seed}:{sample.id}:{key}:{draw}")
    others = [name for name in ids if name != sample.category]
    overrides: dict[str, Variant] = {}
    rating: Rating = sample.rating
    if key in EXCEPTIONS:
        needed: Rating = "Safe" if key == "v4" else "Unsafe"
        if rating != needed or sample.category == NONE:
            raise RowError(f"{key} needs a sample with a category that is {needed}; {sample.id} is {rating}")
        overrides[sample.category] = "sensitive" if key == "v4" else "exempt"
        rating = "Unsafe" if key == "v4" else "Safe"
    if key == "v1":
        overrides |= {name: "exempt" for name in others if rng.random() < 0.5}
    elif key == "v2a":
        overrides |= dict.fromkeys(rng.sample(others, rng.randint(0, min(2, len(others)))), "exempt")
    elif key in ("v3", "v5"):
        low, high = _OTHERS
        chosen = rng.sample(others, rng.randint(low, min(high, len(others))))
        overrides |= dict.fromkeys(chosen, "exempt" if key == "v3" else "sensitive")
    return replace(
        sample,
        id=f"{sample.id}+{key}.{draw}",
        rating=rating,
        overrides={name: overrides[name] for name in ids if name in overrides},
        augmentation=key,
        draw=draw,
        base=sample.id,
    )


def augmented(sample: Sample, plan: Mapping[Augmentation, float], ids: Sequence[str], seed: int) -> list[Sample]:
    """The sample and what a version draws from it. A number of draws below 1 is a probability.

    Draws of one augmentation have different policies as long as there are different ones. What has no meaning for the
    sample (v4 of one without category) is left out.
    """
    made = [sample]
    if sample.overrides:
        return made  # an image that was rated under an exception already
    for key, times in plan.items():
        if key == "v4" and sample.category == NONE:
            continue
        chance = random.Random(f"{seed}:{sample.id}:{key}").random()
        wanted = int(times) if times >= 1 else int(chance < times)
        seen: list[Mapping[str, Variant]] = []
        draw = 0
        while len(seen) < wanted:
            one = augment(sample, key, draw, ids, seed)
            draw += 1
            if one.overrides in seen and draw < 50 * wanted:  # few categories have few different policies
                continue
            seen.append(one.overrides)
            made.append(replace(one, id=f"{sample.id}+{key}.{len(seen)}", draw=len(seen)))
    return made
