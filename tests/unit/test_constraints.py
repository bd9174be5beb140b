"""Lagrange multipliers: hand numbers of both updates, and a toy policy that is driven to its bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf.batch import Score
from rlhf.constraints import ConstraintConfig, Multiplier, constrained_scores, first_multipliers, mean_cost
from rlhf.errors import ConfigError, NonFiniteError

PID = ConstraintConfig(name="refused", max=0.1, proportional=2.0, integral=0.5, derivative=4.0)


def test_pid_against_hand_numbers() -> None:
    # violation 0.3, sum 0.3, no rise yet: 2 * 0.3 + 0.5 * 0.3
    first = Multiplier(0.0).after(0.4, PID)
    assert first.value == pytest.approx(0.75)
    # violation 0.4, sum 0.7, rise 0.1: 0.8 + 0.35 + 0.4
    second = first.after(0.5, PID)
    assert second.value == pytest.approx(1.55)
    # far below the bound: violation -0.1, sum 0.6, no rise: -0.2 + 0.3
    assert second.after(0.0, PID).value == pytest.approx(0.1)


def test_a_multiplier_is_never_negative_nor_above_its_bound_and_comes_back() -> None:
    config = PID.model_copy(update={"most": 3.0})
    multiplier = Multiplier(0.0)
    for _ in range(100):
        multiplier = multiplier.after(1.0, config)
    assert multiplier.value == 3.0
    steps = 0
    while multiplier.value > 0:
        multiplier, steps = multiplier.after(0.0, config), steps + 1
    assert steps < 70  # the sum did not wind up: it is at most 3 / 0.5, and falls by 0.1
    for _ in range(50):
        multiplier = multiplier.after(0.0, config)
    assert (multiplier.value, multiplier.summed) == (0.0, 0.0)


def test_log_lambda_moves_by_the_violation_and_stays_positive() -> None:
    config = ConstraintConfig(name="refused", max=0.1, update="log_lambda", rate=2.0, initial=0.5, most=5.0)
    (start,) = first_multipliers([config]).values()
    assert start.after(0.4, config).value == pytest.approx(0.5 * math.exp(0.6))
    low = start
    for _ in range(1000):
        low = low.after(0.0, config)
    assert 0 < low.value < 0.01
    with pytest.raises(ConfigError, match="initial"):
        ConstraintConfig(name="refused", max=0.1, update="log_lambda")


def test_pid_goes_on_from_where_it_starts() -> None:
    config = PID.model_copy(update={"initial": 2.0})  # proportional 2, integral 0.5: the sum starts at 4
    (start,) = first_multipliers([config]).values()
    assert start.value == 2.0
    assert start.after(0.1, config).value == pytest.approx(2.0)  # a cost on its bound
    assert start.after(0.2, config).value == pytest.approx(2 * 0.1 + 0.5 * 4.1)
    assert first_multipliers([PID])["refused"] == Multiplier(0.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"initial": 1.0, "integral": 0.0}, "integral=0 would forget initial"),
        ({"initial": 21.0}, "initial=21 above most=20"),
        ({"initial": 3.0, "most": 2.0, "update": "log_lambda"}, "initial=3 above most=2"),
    ],
)
def test_a_start_that_would_be_lost_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConstraintConfig.model_validate({"name": "refused", "max": 0.1, **keys})


def test_nothing_moves_without_the_cost_and_a_nan_is_an_error() -> None:
    start = Multiplier(0.7, 0.2, 0.3)
    assert start.after(None, PID) == start
    with pytest.raises(NonFiniteError, match="refused"):
        start.after(float("nan"), PID)


def test_costs_count_where_they_are() -> None:
    scores = [Score(2.0, {}, {"refused": 1.0}), Score(-1.0, {"reward": -1.0}), Score(0.5, {}, {"refused": 0.0})]
    assert mean_cost(scores, "refused") == 0.5
    assert mean_cost(scores, "cost of something else") is None
    shaped = constrained_scores(scores, {"refused": Multiplier(3.0)})
    assert torch.equal(shaped, torch.tensor([2.0 - 3.0, -1.0, 0.5]))
    assert torch.equal(constrained_scores(scores, {}), torch.tensor([2.0, -1.0, 0.5]))


@pytest.mark.parametrize(
    "config",
    [
        ConstraintConfig(name="refused", max=0.2, proportional=1.0, integral=0.3),
        ConstraintConfig(name="refused", max=0.2, update="log_lambda", rate=1.0, initial=0.1),
    ],
)
def test_a_policy_that_gains_by_refusing_ends_at_its_bound(config: ConstraintConfig) -> None:
    # one parameter: how often a harmless question is refused; refusing gains 0.4, exactly solvable
    logit, multiplier, history = torch.zeros((), requires_grad=True), first_multipliers([config])["refused"], []
    for _ in range(3000):
        refused = torch.sigmoid(logit)
        (0.4 * refused - multiplier.value * refused).backward()
        with torch.no_grad():
            logit += 0.3 * logit.grad
        logit.grad = None
        multiplier = multiplier.after(float(refused), config)
        history.append(float(refused))
    assert sum(history[-500:]) / 500 == pytest.approx(config.max, abs=0.03)
    assert history[0] == 0.5
