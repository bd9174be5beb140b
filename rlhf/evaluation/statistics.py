"""How sure a measured rate is."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a binomial rate, as (low, high) in [0, 1] (Wilson 1927, equation 1).

    Unlike the normal approximation it stays in range and keeps a width at rates of 0 and 1. Raises ValueError when
    not 0 <= successes <= total, total is 0, or confidence is not strictly between 0 and 1.
    """
    if total <= 0 or not 0 <= successes <= total:
        raise ValueError(f"cannot form a rate from {successes} of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / total
    scale = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half_width = z * sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == total else min(1.0, centre + half_width)
    return low, high
