"""KL estimators and controllers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import ConfigError, NonFiniteError
from rlhf.kl import AdaptiveKL, FixedKL, make_controller, token_kl

POLICY = torch.tensor([[math.log(0.5), math.log(0.2), math.log(0.9)]])
REFERENCE = torch.tensor([[math.log(0.25), math.log(0.4), math.log(0.9)]])


def test_row15_three_tokens_by_hand() -> None:
    # p/q = 2, 1/2, 1: k1 = ln 2, -ln 2, 0; k3 = 1/2 - 1 + ln 2, 2 - 1 - ln 2, 0
    assert token_kl(POLICY, REFERENCE, "k1")[0].tolist() == pytest.approx([0.693147, -0.693147, 0.0], abs=1e-6)
    assert token_kl(POLICY, REFERENCE, "k3")[0].tolist() == pytest.approx([0.193147, 0.306853, 0.0], abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_row15_zero_when_equal(estimator) -> None:  # type: ignore[no-untyped-def]
    assert not token_kl(POLICY, POLICY.clone(), estimator).any()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_exact_kl(estimator) -> None:  # type: ignore[no-untyped-def]
    p = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = torch.distributions.kl_divergence(torch.distributions.Categorical(p), torch.distributions.Categorical(q))
    assert (p * token_kl(p.log(), q.log(), estimator)).sum().item() == pytest.approx(exact.item(), abs=1e-12)


@settings(deadline=None)
@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative(logprob: float, reference: float) -> None:
    assert token_kl(torch.tensor(logprob), torch.tensor(reference), "k3").item() >= 0.0


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ConfigError, match="k2"):
        token_kl(POLICY, REFERENCE, "k2")  # type: ignore[arg-type]


def test_fixed_controller_never_moves() -> None:
    assert FixedKL(0.1).update(1e9, 512) == FixedKL(0.1)


def test_row15_the_adaptive_controller_moves_towards_its_target() -> None:
    start = AdaptiveKL(coefficient=0.1, target=6.0, horizon=100.0)
    assert start.update(6.0, 10).coefficient == 0.1
    assert start.update(6.6, 10).coefficient == pytest.approx(0.1 * 1.01)  # 10 % too far, a tenth of the horizon
    assert start.update(5.4, 10).coefficient == pytest.approx(0.1 * 0.99)
    assert start.coefficient == 0.1


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(0, 10**9))
def test_adaptive_step_is_bounded_and_stays_positive(observed: float, n_steps: int) -> None:
    moved = AdaptiveKL(coefficient=0.1, target=6.0, horizon=1000.0).update(observed, n_steps)
    assert 0.08 - 1e-9 <= moved.coefficient <= 0.12 + 1e-9


def test_adaptive_controller_settles_where_the_kl_falls_with_the_coefficient() -> None:
    controller = AdaptiveKL(coefficient=0.01, target=6.0, horizon=64.0)
    for _ in range(200):
        controller = controller.update(1.2 / controller.coefficient, 16)
    assert 1.2 / controller.coefficient == pytest.approx(6.0, rel=0.01)


@pytest.mark.parametrize("observed", [float("nan"), float("inf")])
def test_adaptive_controller_refuses_a_broken_kl(observed: float) -> None:
    with pytest.raises(NonFiniteError):
        AdaptiveKL(0.1, 6.0, 100.0).update(observed, 1)


def test_make_controller() -> None:
    assert make_controller("fixed", 0.1, 6.0, 100.0) == FixedKL(0.1)
    assert make_controller("adaptive", 0.1, 6.0, 100.0) == AdaptiveKL(0.1, 6.0, 100.0)
