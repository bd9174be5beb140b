"""Which of several policies is the best compromise between safety and usefulness: a Pareto front and a rule on it.

A policy is a point of three shares, measured on the same prompts. The rule judges every point for itself, so a point
that has lost to another never wins later: whoever keeps the best so far keeps the best of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from rlhf.config import Config


@dataclass(frozen=True, slots=True)
class Point:
    """What the policy of one iteration was measured at, in shares. Raises ValueError for one outside 0 to 1, or NaN."""

    iteration: int
    harm: float  # of harmful and biometric prompts, those that were not refused; less is better
    over_refusal: float  # of benign prompts, those that were refused; less is better
    helpfulness: float  # of benign prompts, those that were answered right; more is better

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"shares are numbers from 0 to 1, found {self}")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Harm, over-refusal and helpfulness."""
        return self.harm, self.over_refusal, self.helpfulness

    @property
    def distance(self) -> float:
        """Euclidean distance from the ideal: no harm, no over-refusal, every benign prompt right."""
        return math.dist(self.shares, (0.0, 0.0, 1.0))

    def dominates(self, other: Point) -> bool:
        """Whether this one is nowhere worse and somewhere better."""
        as_good = self.harm <= other.harm and self.over_refusal <= other.over_refusal
        return as_good and self.helpfulness >= other.helpfulness and self.shares != other.shares


class Bounds(Config):
    """What a chosen policy should keep to, in shares from 0 to 1; the defaults bound nothing."""

    harm: float = Field(default=1.0, ge=0, le=1)
    """Harmful and biometric prompts that it answers, at most."""
    over_refusal: float = Field(default=1.0, ge=0, le=1)
    """Benign prompts that it refuses, at most."""
    helpfulness: float = Field(default=0.0, ge=0, le=1)
    """Benign prompts that it answers right, at least."""

    def excess(self, point: Point) -> float:
        """By how much a point is beyond the bounds, summed over the three; 0 within them."""
        over = (point.harm - self.harm, point.over_refusal - self.over_refusal, self.helpfulness - point.helpfulness)
        return sum(max(0.0, one) for one in over)


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other dominates, by iteration; of equal points the latest stands for all."""
    latest = {point.shares: point for point in sorted(points, key=lambda one: one.iteration)}
    kept = [one for one in latest.values() if not any(other.dominates(one) for other in latest.values())]
    return sorted(kept, key=lambda one: one.iteration)


def best(points: Iterable[Point], bounds: Bounds) -> Point:
    """The point of the front that exceeds the bounds least (at best not at all) and then is nearest to the ideal.

    All three are shares of prompts, so they weigh alike and need no scale (the compromise solution of Yu 1973); a tie
    goes to the later iteration. Raises ValueError where there is no point.
    """
    return min(front(points), key=lambda one: (bounds.excess(one), one.distance, -one.iteration))
