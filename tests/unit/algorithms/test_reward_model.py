"""The reward model's and SFT's objectives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf.algorithms.reward_model import RewardModelConfig, pair_objective
from rlhf.algorithms.sft import sft_objective
from rlhf.batch import TokenBatch
from rlhf.errors import TrainingError

CHOSEN = torch.tensor([2.0, 0.0, -1.0, 3.0], dtype=torch.float64)
REJECTED = torch.tensor([1.0, 0.0, 1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["logsigmoid", "spa_vl"])
def test_statistics_by_hand(kind) -> None:  # type: ignore[no-untyped-def]
    loss, stats = pair_objective(CHOSEN, REJECTED, RewardModelConfig(loss=kind), 4.0)
    assert stats["accuracy"].item() == 0.5  # a tie is not right
    assert stats["margin"].item() == 0.75  # (1 + 0 - 2 + 4) / 4
    assert stats["score"].item() == 0.625  # 5 / 8
    softplus = [math.log1p(math.exp(-d)) for d in (1, 0, -2, 4)]
    assert loss.item() == pytest.approx(np.mean(softplus), abs=1e-4)


def test_centring_is_off_by_default_and_pulls_scores_to_zero() -> None:
    plain, _ = pair_objective(CHOSEN, REJECTED, RewardModelConfig(), 4.0)
    centred, _ = pair_objective(CHOSEN, REJECTED, RewardModelConfig(centring_coefficient=0.1), 4.0)
    assert centred.item() - plain.item() == pytest.approx(0.1 * (9 + 0 + 0 + 4) / 4)
    high = (CHOSEN + 10).requires_grad_(), (REJECTED + 10).requires_grad_()
    pair_objective(*high, RewardModelConfig(centring_coefficient=10.0), 4.0)[0].backward()
    assert (high[0].grad > 0).all()
    assert (high[1].grad > 0).all()


@pytest.mark.parametrize("kind", ["logsigmoid", "spa_vl"])
def test_row09_zero_margin_costs_ln_2_and_is_not_right(kind) -> None:  # type: ignore[no-untyped-def]
    loss, stats = pair_objective(torch.full((3,), 1.5), torch.full((3,), 1.5), RewardModelConfig(loss=kind), 3.0)
    assert loss.item() == pytest.approx(0.693147, abs=1e-4)
    assert stats["accuracy"].item() == 0.0


@pytest.mark.parametrize("kind", ["logsigmoid", "spa_vl"])
def test_row09_small_margins_cost_what_the_seed_says(kind) -> None:  # type: ignore[no-untyped-def]
    """-log(1 / (1 + e^-d) + 1e-5), worked out in Python's own floats; both losses are within 1e-4 of it."""
    for margin in (-1.0, -0.5, -0.01, 0.01, 0.5, 1.0, 2.0):
        expected = -math.log(1 / (1 + math.exp(-margin)) + 1e-5)
        chosen = torch.tensor([margin + 0.25], dtype=torch.float64)
        loss, _ = pair_objective(chosen, torch.tensor([0.25]).double(), RewardModelConfig(loss=kind), 1.0)
        assert loss.item() == pytest.approx(expected, abs=1e-9 if kind == "spa_vl" else 1e-4)


def test_row09_large_margins_are_where_the_two_losses_differ() -> None:
    """The seed's is capped at -log(1e-5) = 11.51 and has no gradient there; the other one is d itself."""
    wrong = torch.tensor([-50.0], requires_grad=True)
    seed, _ = pair_objective(wrong, torch.zeros(1), RewardModelConfig(loss="spa_vl"), 1.0)
    plain, _ = pair_objective(wrong, torch.zeros(1), RewardModelConfig(loss="logsigmoid"), 1.0)
    assert (seed.item(), plain.item()) == pytest.approx((11.5129, 50.0), abs=1e-3)


@pytest.mark.parametrize("kind", ["logsigmoid", "spa_vl"])
def test_a_wanted_margin_is_what_costs_ln_2(kind) -> None:  # type: ignore[no-untyped-def]
    """Touvron et al. 2023, eq. 2: with m = 1 a pair that wins by 1 costs what a tie costs without."""
    config = RewardModelConfig(loss=kind, margin=1.0)
    loss, stats = pair_objective(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]), config, 2.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    assert (stats["accuracy"].item(), stats["margin"].item()) == (1.0, 1.0)  # of the scores as they are
    fulfilled, _ = pair_objective(torch.tensor([9.0]), torch.tensor([0.0]), config, 1.0)
    assert fulfilled.item() == pytest.approx(math.log1p(math.exp(-8.0)), abs=2e-5)
    with pytest.raises(ValueError, match="margin"):
        RewardModelConfig(margin=-0.1)


def test_without_centring_a_common_shift_changes_nothing() -> None:
    here, _ = pair_objective(CHOSEN, REJECTED, RewardModelConfig(), 4.0)
    there, _ = pair_objective(CHOSEN + 5, REJECTED + 5, RewardModelConfig(), 4.0)
    assert here.item() == pytest.approx(there.item())


@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[0, 1, 2], [3]]])
def test_independent_of_the_split(split: list[list[int]]) -> None:
    config = RewardModelConfig(centring_coefficient=0.1)
    whole_input = CHOSEN.clone().requires_grad_()
    whole, whole_stats = pair_objective(whole_input, REJECTED, config, 4.0)
    whole.backward()
    parts_input = CHOSEN.clone().requires_grad_()
    total = dict.fromkeys(whole_stats, 0.0)
    for rows in split:
        loss, stats = pair_objective(parts_input[rows], REJECTED[rows], config, 4.0)
        loss.backward()
        total = {name: total[name] + stats[name].item() for name in total}
    assert torch.allclose(parts_input.grad, whole_input.grad)
    assert total == pytest.approx({name: number.item() for name, number in whole_stats.items()})


def test_sft_imitates_response_tokens_only() -> None:
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    batch = TokenBatch(torch.zeros(2, 4, dtype=torch.long), torch.tensor([3, 4]), mask, (None, None))
    logprobs = torch.where(mask, torch.tensor(math.log(0.25)), -1e30).requires_grad_()
    loss, stats = sft_objective(logprobs, batch, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert stats["nll"].item() == pytest.approx(math.log(4))
    assert torch.equal(logprobs.grad, torch.where(mask, -0.25, 0.0))


def test_a_batch_without_tokens_is_refused() -> None:
    batch = TokenBatch(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), torch.zeros(1, 1).bool(), (None,))
    with pytest.raises(TrainingError, match="nothing counts"):
        sft_objective(torch.zeros(1, 1), batch, 0.0)
