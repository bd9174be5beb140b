"""The preference losses against closed forms, hand-computed gradients and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf.algorithms import dpo
from rlhf.algorithms.dpo import DPOConfig, preference_objective
from rlhf.config import load
from rlhf.errors import ConfigError, NonFiniteError, TrainingError

LOGPROBS = [[-4.0, -9.0], [-12.5, -3.0], [-6.0, -6.0], [-1.0, -40.0]]
REFERENCE = [[-5.0, -6.0], [-10.0, -7.0], [-6.0, -6.0], [-2.0, -1.0]]
LENGTHS = [[4, 9], [5, 2], [3, 3], [1, 8]]
GAPS = [4.0, -6.5, 0.0, 40.0]  # (-4 + 5) - (-9 + 6), and so on
PER_TOKEN = [1 / 4 + 3 / 9, -2.5 / 5 - 4 / 2, 0.0, 1.0 + 39 / 8]
CONFIGS = {
    "sigmoid": DPOConfig(beta=0.3),
    "cdpo": DPOConfig(beta=0.3, label_smoothing=0.2),
    "ipo": DPOConfig(loss="ipo", beta=0.3),
    "hinge": DPOConfig(loss="hinge", beta=0.3),
    "simpo": DPOConfig(loss="simpo", beta=2.0, margin=0.7),
    "per token": DPOConfig(beta=0.3, length_normalised=True),
    "no reference": DPOConfig(beta=0.3, reference_free=True),
}


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    wide = {"dtype": torch.float64}
    return torch.tensor(LOGPROBS, **wide), torch.tensor(REFERENCE, **wide), torch.tensor(LENGTHS)  # type: ignore[call-overload]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str) -> tuple[list[float], list[float]]:
    """Loss of each pair and its derivative by the gap, from the papers' formulas in plain Python."""
    bare = [c - r for c, r in LOGPROBS]
    mean = [c / n - r / m for (c, r), (n, m) in zip(LOGPROBS, LENGTHS, strict=True)]
    dpo_like = {"sigmoid": GAPS, "per token": PER_TOKEN, "no reference": bare}
    if name in dpo_like:
        gaps = dpo_like[name]
        return [math.log1p(math.exp(-0.3 * h)) for h in gaps], [-0.3 * sigmoid(-0.3 * h) for h in gaps]
    if name == "cdpo":
        wrong = [math.log1p(math.exp(0.3 * h)) for h in GAPS]
        right = [math.log1p(math.exp(-0.3 * h)) for h in GAPS]
        losses = [0.8 * r + 0.2 * w for r, w in zip(right, wrong, strict=True)]
        return losses, [0.3 * (sigmoid(0.3 * h) - 0.8) for h in GAPS]
    if name == "ipo":
        return [(h - 1 / 0.6) ** 2 for h in GAPS], [2 * (h - 1 / 0.6) for h in GAPS]
    if name == "hinge":
        return [max(0.0, 1 - 0.3 * h) for h in GAPS], [-0.3 if 0.3 * h < 1 else 0.0 for h in GAPS]
    return [math.log1p(math.exp(0.7 - 2 * h)) for h in mean], [-2 * sigmoid(0.7 - 2 * h) for h in mean]


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_by_hand(name: str) -> None:
    logprobs, reference, lengths = tensors()
    logprobs.requires_grad_()
    config = CONFIGS[name]
    loss, _ = preference_objective(logprobs, reference, lengths, config, 4.0)
    loss.backward()
    losses, slopes = by_hand(name)
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-12)
    per_token = name in ("simpo", "per token")
    for row, (slope, (n, m)) in enumerate(zip(slopes, LENGTHS, strict=True)):
        expected = [slope / 4 / (n if per_token else 1), -slope / 4 / (m if per_token else 1)]
        assert logprobs.grad is not None
        assert logprobs.grad[row].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_finite_differences(name: str) -> None:
    _, reference, lengths = tensors()
    config = CONFIGS[name]
    draws = np.random.default_rng(3).normal(scale=2.0, size=(4, 2)) + reference.numpy()

    def value(numbers: Tensor) -> Tensor:
        return preference_objective(numbers, reference, lengths, config, 4.0)[0]

    assert torch.autograd.gradcheck(value, torch.tensor(draws, requires_grad=True))


@pytest.mark.parametrize(("kind", "expected"), [
    ("sigmoid", math.log(2)), ("ipo", 1 / (4 * 0.1**2)), ("hinge", 1.0),
])  # fmt: skip
def test_row22_at_step_0_the_policy_is_the_reference(kind: str, expected: float) -> None:
    """Seed section 8, row 22: ln 2, whatever the answers and whatever the smoothing."""
    _, reference, lengths = tensors()
    config = DPOConfig(loss=kind)  # type: ignore[arg-type]
    loss, stats = preference_objective(reference.clone(), reference, lengths, config, 4.0)
    assert loss.item() == pytest.approx(expected)
    assert stats["accuracy"].item() == 0.0  # a tie is not right
    assert stats["margin"].item() == stats["chosen_reward"].item() == stats["rejected_reward"].item() == 0.0
    smooth, _ = preference_objective(reference.clone(), reference, lengths, DPOConfig(label_smoothing=0.3), 4.0)
    assert smooth.item() == pytest.approx(math.log(2))


def test_row22_the_default_is_the_seeds() -> None:
    config = DPOConfig()
    assert (config.loss, config.beta, config.label_smoothing, config.length_normalised) == ("sigmoid", 0.1, 0.0, False)
    assert config.needs_reference
    assert config.train_eos  # the one deviation: the seed leaves EOS out


def test_statistics_by_hand() -> None:
    _, stats = preference_objective(*tensors(), DPOConfig(beta=0.5), 4.0)
    assert stats["accuracy"].item() == 0.5
    assert stats["margin"].item() == pytest.approx(0.5 * sum(GAPS) / 4)
    assert stats["chosen_reward"].item() == pytest.approx(0.5 * (1 - 2.5 + 0 + 1) / 4)
    assert stats["rejected_reward"].item() == pytest.approx(0.5 * (-3 + 4 + 0 - 39) / 4)
    assert stats["chosen_logprob"].item() == pytest.approx(-23.5 / 4)
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[0, 1, 2], [3]]])
def test_independent_of_the_split(name: str, split: list[list[int]]) -> None:
    config, (whole, reference, lengths) = CONFIGS[name], tensors()
    parts = whole.clone().requires_grad_()
    whole.requires_grad_()
    loss, stats = preference_objective(whole, reference, lengths, config, 4.0)
    loss.backward()
    total = dict.fromkeys(stats, 0.0)
    for rows in split:
        piece, numbers = preference_objective(parts[rows], reference[rows], lengths[rows], config, 4.0)
        piece.backward()
        total = {key: total[key] + numbers[key].item() for key in total}
    torch.testing.assert_close(parts.grad, whole.grad)
    assert total == pytest.approx({key: number.item() for key, number in stats.items()})


def lowest(loss: Callable[[Tensor], Tensor]) -> float:
    gaps = torch.linspace(-40, 40, 8_001, dtype=torch.float64)
    return float(gaps[torch.stack([loss(gap) for gap in gaps]).argmin()])


def test_where_the_losses_are_smallest() -> None:
    """cDPO stops where it believes 1 - e of the labels, IPO at its target, the hinge loss from 1 / beta on."""
    assert lowest(lambda gap: dpo.conservative_loss(gap, 0.5, 0.1, 1.0)) == pytest.approx(math.log(9) / 0.5, abs=1e-2)
    assert lowest(lambda gap: dpo.ipo_loss(gap, 0.05, 1.0)) == pytest.approx(10.0, abs=1e-2)
    assert dpo.hinge_loss(torch.tensor([10.0, 11.0]), 0.1, 1.0).item() == 0.0
    assert dpo.hinge_loss(torch.tensor([9.0]), 0.1, 1.0).item() == pytest.approx(0.1)


@pytest.mark.parametrize("loss", [dpo.sigmoid_loss, lambda g, b, d: dpo.conservative_loss(g, b, 0.1, d)])
def test_a_hopeless_pair_stays_finite(loss: Callable[[Tensor, float, float], Tensor]) -> None:
    gap = torch.tensor([-1e6, 1e6], requires_grad=True)
    value = loss(gap, 1.0, 2.0)
    value.backward()
    assert value.isfinite()
    assert gap.grad is not None
    assert gap.grad[0].item() < -0.3  # it still pulls


def test_a_reference_that_is_not_needed_is_not_looked_at() -> None:
    logprobs, reference, lengths = tensors()
    for name in ("simpo", "no reference"):
        assert not CONFIGS[name].needs_reference
        with_nan, _ = preference_objective(logprobs, reference * math.nan, lengths, CONFIGS[name], 4.0)
        assert with_nan.isfinite()
    with pytest.raises(NonFiniteError, match="reference"):
        preference_objective(logprobs, reference * math.nan, lengths, DPOConfig(), 4.0)


def test_what_does_not_fit_is_refused() -> None:
    logprobs, reference, lengths = tensors()
    with pytest.raises(TrainingError, match="no pair counts"):
        preference_objective(logprobs, reference, lengths, DPOConfig(), 0.0)
    with pytest.raises(TrainingError, match=r"must all be \[B, 2\]"):
        preference_objective(logprobs, reference[:3], lengths, DPOConfig(), 4.0)


@pytest.mark.parametrize("override", ["label_smoothing=0.1", "margin=0.5"])
def test_keys_of_another_loss_are_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to loss="):
        load(DPOConfig, None, ["loss=ipo", override])
