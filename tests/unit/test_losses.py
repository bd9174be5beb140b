"""Losses: hand-computed values, scipy's functions, and independence of how a batch is split."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_expit
from torch import Tensor

from rlhf.errors import ConfigError, TrainingError
from rlhf.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    next_token_loss,
    pairwise_loss,
    truncated_importance,
)


def random_batch(seed: int = 0, rows: int = 6, width: int = 8) -> dict[str, Tensor]:
    """Rows of unequal length and start; one row counts nothing at all."""
    rng = np.random.default_rng(seed)
    now, old, advantages, returns = torch.from_numpy(rng.normal(size=(4, rows, width)))
    mask = torch.from_numpy(rng.random((rows, width)) < 0.5)
    mask[2] = False
    return {
        "logprobs": -now.abs(),
        "old": -now.abs() + 0.3 * old,
        "advantages": advantages,
        "returns": returns,
        "mask": mask,
    }


def policy(batch: dict[str, Tensor], rows: list[int], logprobs: Tensor, denominator: float):  # type: ignore[no-untyped-def]
    old, advantages, mask = (batch[name][rows] for name in ("old", "advantages", "mask"))
    return clipped_policy_loss(logprobs[rows], old, advantages, mask, 0.2, denominator)


def value(batch: dict[str, Tensor], rows: list[int], values: Tensor, denominator: float):  # type: ignore[no-untyped-def]
    old, returns, mask = (batch[name][rows] for name in ("old", "returns", "mask"))
    return clipped_value_loss(values[rows], old, returns, mask, 0.2, denominator)


def imitation(batch: dict[str, Tensor], rows: list[int], logprobs: Tensor, denominator: float):  # type: ignore[no-untyped-def]
    return next_token_loss(logprobs[rows], batch["mask"][rows], denominator)


@pytest.mark.parametrize("loss_of", [policy, value, imitation])
@pytest.mark.parametrize(
    "split", [[[0], [1], [2], [3], [4], [5]], [[0, 1, 2], [3, 4, 5]], [[5, 0], [4, 2, 1], [3]], [[2], [0, 1, 3, 4, 5]]]
)
def test_loss_gradient_and_stats_are_independent_of_the_split(loss_of, split: list[list[int]]) -> None:  # type: ignore[no-untyped-def]
    batch = random_batch()
    denominator = float(batch["mask"].sum())
    whole_input = batch["logprobs"].clone().requires_grad_()
    whole, whole_stats = loss_of(batch, [0, 1, 2, 3, 4, 5], whole_input, denominator)
    whole.backward()
    parts_input = batch["logprobs"].clone().requires_grad_()
    parts = [loss_of(batch, rows, parts_input, denominator) for rows in split]
    for loss, _ in parts:
        loss.backward()
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), abs=1e-12)
    assert torch.allclose(parts_input.grad, whole_input.grad, atol=1e-12)
    for name, number in whole_stats.items():
        assert sum(stats[name].item() for _, stats in parts) == pytest.approx(number.item(), abs=1e-12)
        assert not number.requires_grad


@pytest.mark.parametrize("loss_of", [policy, value, imitation])
def test_padding_changes_neither_loss_nor_gradient(loss_of) -> None:  # type: ignore[no-untyped-def]
    batch = random_batch(1)
    results = []
    for garbage in (0.0, 1e4, -1e30):
        dirty = {n: t if n == "mask" else torch.where(batch["mask"], t, garbage) for n, t in batch.items()}
        dirty["old"] = torch.where(batch["mask"], batch["old"], 0.0)  # a gap that overflows exp
        given = dirty["logprobs"].clone().requires_grad_()
        loss, _ = loss_of(dirty, [0, 1, 3, 4], given, 10.0)
        loss.backward()
        assert not given.grad[~batch["mask"]].any()
        results.append((loss.item(), given.grad))
    assert results[0][0] == results[1][0] == results[2][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][1], results[2][1])


def test_first_update_has_ratio_one_and_the_gradient_of_reinforce() -> None:
    batch = random_batch(2)
    mask, advantages = batch["mask"], batch["advantages"]
    denominator = float(mask.sum())
    logprobs = batch["logprobs"].clone().requires_grad_()
    loss, stats = clipped_policy_loss(logprobs, batch["logprobs"], advantages, mask, 0.2, denominator)
    loss.backward()
    assert stats["ratio"].item() == pytest.approx(1.0)
    assert stats["clip_fraction"].item() == 0.0
    assert stats["approx_kl"].item() == 0.0
    assert loss.item() == pytest.approx(-advantages[mask].mean().item())
    # d/d logp of -A logp is -A
    assert torch.allclose(logprobs.grad, torch.where(mask, -advantages / denominator, 0.0))


def test_row18_policy_clip_branches_by_hand() -> None:
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    everywhere = torch.ones(1, 5, dtype=torch.bool)
    loss, stats = clipped_policy_loss(logprobs, torch.zeros(1, 5), advantages, everywhere, 0.2, 5.0)
    loss.backward()
    # objective per token: 1.2 (clipped), -1.5, 0.5, -0.8 (clipped), 2.2
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5)
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 1.5 / 5, -0.5 / 5, 0.0, -2.2 / 5])
    assert stats["clip_fraction"].item() == pytest.approx(0.4)
    assert stats["ratio"].item() == pytest.approx(1.02)
    kl = sum(r - 1 - math.log(r) for r in (1.5, 1.5, 0.5, 0.5, 1.1)) / 5
    assert stats["approx_kl"].item() == pytest.approx(kl)


def test_policy_gradient_matches_finite_differences() -> None:
    batch = random_batch(3)
    given = batch["logprobs"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy(batch, [0, 1, 2, 3, 4, 5], x, 7.0)[0], (given,))


def test_importance_weights_scale_each_token() -> None:
    batch = random_batch(4)
    args = (batch["old"], batch["advantages"], batch["mask"], 0.2, 9.0)
    plain = batch["logprobs"].clone().requires_grad_()
    clipped_policy_loss(plain, *args)[0].backward()
    weights = torch.rand_like(plain)
    weighted = batch["logprobs"].clone().requires_grad_()
    clipped_policy_loss(weighted, *args, importance=weights)[0].backward()
    assert torch.allclose(weighted.grad, plain.grad * weights)


def test_truncated_importance_by_hand() -> None:
    learner = torch.tensor([[math.log(0.5), math.log(0.8), -1.0, 1e30]])
    engine = torch.tensor([[math.log(0.25), math.log(0.1), -1.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    weights = truncated_importance(learner.requires_grad_(), engine, mask, 3.0)
    assert weights[0].tolist() == pytest.approx([2.0, 3.0, 1.0, 1.0])
    assert not weights.requires_grad


def test_row18_value_clip_branches_by_hand() -> None:
    values = torch.tensor([[1.0, 1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(1, 3, dtype=torch.float64)
    returns = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)
    loss, stats = clipped_value_loss(values, old, returns, torch.ones(1, 3, dtype=torch.bool), 0.2, 3.0)
    loss.backward()
    # errors: max(0, 0.8^2) clipped; max(2^2, 1.2^2) not; 0.4^2 inside the range
    assert loss.item() == pytest.approx(0.5 * (0.64 + 4.0 + 0.16) / 3)
    assert values.grad[0].tolist() == pytest.approx([0.0, 2.0 / 3, -0.4 / 3])
    assert stats["clip_fraction"].item() == pytest.approx(1 / 3)
    assert stats["error"].item() == pytest.approx((0.0 + 4.0 + 0.16) / 3)


def test_pairwise_loss_against_scipy() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(scale=2.0, size=(2, 50))
    loss, stats = pairwise_loss(torch.from_numpy(chosen), torch.from_numpy(rejected), 50.0, "logsigmoid")
    assert loss.item() == pytest.approx(-log_expit(chosen - rejected).mean())
    assert stats["accuracy"].item() == pytest.approx((chosen > rejected).mean())
    assert stats["margin"].item() == pytest.approx((chosen - rejected).mean())
    seed_loss, _ = pairwise_loss(torch.from_numpy(chosen), torch.from_numpy(rejected), 50.0, "spa_vl")
    assert seed_loss.item() == pytest.approx(loss.item(), abs=1e-3)
    assert seed_loss.item() < loss.item()


@pytest.mark.parametrize("kind", ["logsigmoid", "spa_vl"])
def test_pairwise_loss_at_zero_margin_is_ln_2_and_a_tie_is_wrong(kind) -> None:  # type: ignore[no-untyped-def]
    loss, stats = pairwise_loss(torch.ones(4), torch.ones(4), 4.0, kind)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    assert stats["accuracy"].item() == 0.0


def test_badly_wrong_pair_keeps_its_gradient_only_without_the_seeds_cap() -> None:
    gradients, losses = {}, {}
    for kind in ("logsigmoid", "spa_vl"):
        chosen = torch.tensor([-40.0], requires_grad=True)
        loss, _ = pairwise_loss(chosen, torch.zeros(1), 1.0, kind)  # type: ignore[arg-type]
        loss.backward()
        gradients[kind], losses[kind] = chosen.grad.item(), loss.item()
    assert losses == pytest.approx({"logsigmoid": 40.0, "spa_vl": 11.5129}, abs=1e-3)
    assert gradients == pytest.approx({"logsigmoid": -1.0, "spa_vl": 0.0}, abs=1e-6)


def test_scores_that_would_broadcast_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"\[3, 1\]"):
        pairwise_loss(torch.zeros(3, 1), torch.zeros(3), 3.0, "logsigmoid")


def test_unknown_pair_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="hinge"):
        pairwise_loss(torch.zeros(3), torch.zeros(3), 3.0, "hinge")  # type: ignore[arg-type]


def test_next_token_loss_is_cross_entropy() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3, 4, 5], [6, 0, 1, 2, 3]])
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    loss, stats = next_token_loss(logprobs, mask, 5.0)
    expected = torch.nn.functional.cross_entropy(logits[mask], targets[mask])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert stats["nll"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("denominator", [0.0, -1.0, float("nan")])
def test_denominator_must_be_positive(denominator: float) -> None:
    with pytest.raises(TrainingError, match="denominator"):
        next_token_loss(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), denominator)
