"""The schedule, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from rlhf.config import OptimizerConfig
from rlhf.learner import learning_rate


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    config = OptimizerConfig(lr=1.0, schedule="constant", warmup_steps=4)
    assert [learning_rate(step, 100, config) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_warm_up_share_counts_steps_upwards() -> None:
    config = OptimizerConfig(lr=1.0, schedule="constant", warmup_ratio=0.03)
    assert learning_rate(0, 50, config) == 0.5  # ceil(1.5) = 2 steps


def test_cosine_is_half_way_in_the_middle_and_nearly_zero_at_the_end() -> None:
    config = OptimizerConfig(lr=2.0, schedule="cosine", warmup_steps=10)
    assert learning_rate(10, 110, config) == pytest.approx(2.0)
    assert learning_rate(60, 110, config) == pytest.approx(1.0)
    assert learning_rate(109, 110, config) == pytest.approx(1.0 + math.cos(math.pi * 0.99), abs=1e-9)
    rates = [learning_rate(step, 110, config) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True)
