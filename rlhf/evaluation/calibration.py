"""How far a score can be believed: does its confidence come true, and does it measure length instead?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions whose probability is in [low, high) (the last bin holds 1 too).

    `predicted` is their mean probability, None where there are none; `came_true` is how many of them did.
    """

    low: float
    high: float
    count: int
    predicted: float | None
    came_true: int


def reliability(probabilities: Sequence[float], came_true: Sequence[bool], bins: int = 10) -> list[Bin]:
    """The reliability table: predictions in bins of equal width, each with how often they came true.

    Raises ValueError for a probability outside [0, 1] or different numbers of probabilities and outcomes. Source: Guo
    et al. 2017 (arXiv 1706.04599), section 2.
    """
    if len(probabilities) != len(came_true):
        raise ValueError(f"{len(probabilities)} probabilities for {len(came_true)} outcomes")
    members: list[list[int]] = [[] for _ in range(bins)]
    for index, probability in enumerate(probabilities):
        if not 0 <= probability <= 1:
            raise ValueError(f"{probability} is no probability")
        members[min(int(probability * bins), bins - 1)].append(index)
    return [
        Bin(
            low=place / bins,
            high=(place + 1) / bins,
            count=len(inside),
            predicted=sum(probabilities[index] for index in inside) / len(inside) if inside else None,
            came_true=sum(bool(came_true[index]) for index in inside),
        )
        for place, inside in enumerate(members)
    ]


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """Mean distance between predicted probability and observed share over all predictions, in [0, 1].

    NaN without predictions. Source: Guo et al. 2017 (arXiv 1706.04599), eq. 3.
    """
    total = sum(one.count for one in table)
    if not total:
        return float("nan")
    return sum(abs(one.predicted * one.count - one.came_true) for one in table if one.predicted is not None) / total


def pearson(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Linear correlation in [-1, 1], None where one side does not vary. Raises ValueError for different lengths."""
    if len(left) != len(right):
        raise ValueError(f"{len(left)} numbers against {len(right)}")
    if len(left) < 2:
        return None
    one, other = (np.asarray(side, dtype=np.float64) - np.mean(side) for side in (left, right))
    scale = sqrt(float(one @ one) * float(other @ other))
    return float(np.clip(one @ other / scale, -1, 1)) if scale > 0 else None


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Correlation of the ranks, equal numbers sharing their mean rank; otherwise like `pearson`."""
    return pearson(_ranks(left), _ranks(right))


def within_pairs(differences: Sequence[float]) -> list[float]:
    """Both values of every pair as distances from the pair's mean, given first minus second.

    Correlating these compares the two answers to one prompt with each other and never answers to different prompts;
    it does not depend on which of the two comes first.
    """
    return [half for difference in differences for half in (difference / 2, -difference / 2)]


def _ranks(values: Sequence[float]) -> list[float]:
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of the last of each group of equal numbers, from 1
    mean = last - (counts - 1) / 2
    return [float(rank) for rank in mean[place]]
