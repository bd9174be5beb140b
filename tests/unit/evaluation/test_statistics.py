from __future__ import annotations

import pytest
from scipy.stats import binomtest

from rlhf.evaluation.statistics import wilson_interval


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 10), (117, 265), (999, 1000)])
def test_against_scipy(successes: int, total: int, confidence: float) -> None:
    expected = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, total, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("arguments", [(0, 0), (2, 1), (-1, 5), (1, 2, 0.0), (1, 2, 1.0)])
def test_refuses_what_is_no_rate(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"rate|confidence"):
        wilson_interval(*arguments)


def test_more_data_is_narrower_and_mirrored() -> None:
    low, high = wilson_interval(30, 100)
    wide_low, wide_high = wilson_interval(3, 10)
    assert high - low < wide_high - wide_low
    mirrored = wilson_interval(70, 100)
    assert mirrored == pytest.approx((1 - high, 1 - low))
