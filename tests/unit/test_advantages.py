"""Token rewards and GAE, against brute-force sums over every token's future."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.advantages import gae, token_rewards
from rlhf.errors import TrainingError


def brute_force(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Eq. 16 of the GAE paper as a double sum over one answer without padding."""
    n = len(rewards)
    extended = [*values, 0.0]
    deltas = [rewards[t] + gamma * extended[t + 1] - extended[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def random_case(seed: int, rows: int = 5, width: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask whose rows start and end in different columns, garbage elsewhere."""
    rng = np.random.default_rng(seed)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row in range(rows):
        start, end = sorted(rng.choice(width + 1, size=2, replace=False))
        mask[row, start:end] = True
    rewards, values = torch.from_numpy(rng.normal(size=(2, rows, width)))
    return torch.where(mask, rewards, 1e9), torch.where(mask, values, -1e9), mask


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_sum_over_futures(seed: int, gamma: float, lam: float) -> None:
    rewards, values, mask = random_case(seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        here = mask[row]
        expected = brute_force(rewards[row, here].tolist(), values[row, here].tolist(), gamma, lam)
        assert advantages[row, here].tolist() == pytest.approx(expected, abs=1e-9)
    assert torch.allclose(returns[mask], (advantages + values)[mask])
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_row17_lambda_one_gives_discounted_returns_minus_values() -> None:
    rewards, values, mask = random_case(3)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    for row in range(len(mask)):
        r = rewards[row, mask[row]].numpy()
        future = np.array([(r[t:] * 0.9 ** np.arange(len(r) - t)).sum() for t in range(len(r))])
        assert returns[row, mask[row]].tolist() == pytest.approx(future.tolist(), abs=1e-9)
        left = advantages[row, mask[row]].numpy()
        assert left.tolist() == pytest.approx((future - values[row, mask[row]].numpy()).tolist(), abs=1e-9)


def test_lambda_zero_gives_td_errors_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    values = torch.tensor([[9.0, 10.0, 20.0, 9.0]])
    mask = torch.tensor([[False, True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.0)
    assert advantages.tolist() == [[0.0, 1.0, -18.0, 0.0]]  # 1 + 0.5 * 20 - 10, then 2 + 0 - 20
    assert returns.tolist() == [[0.0, 11.0, 2.0, 0.0]]


def test_row17_trap_T2_unequal_lengths_in_a_batch_equal_each_row_alone() -> None:
    lengths = [1, 7, 4]
    rng = np.random.default_rng(0)
    rewards, values = torch.from_numpy(rng.normal(size=(2, 3, 7)))
    mask = torch.arange(7)[None, :] < torch.tensor(lengths)[:, None]
    together = gae(rewards, values, mask, 0.97, 0.9)
    for row, length in enumerate(lengths):
        cut = (slice(row, row + 1), slice(0, length))
        alone = gae(rewards[cut], values[cut], mask[cut], 0.97, 0.9)
        assert torch.equal(together[0][cut], alone[0])
        assert torch.equal(together[1][cut], alone[1])


def test_trap_T3_different_start_columns_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    rewards, values = torch.from_numpy(rng.normal(size=(2, 1, 4)))
    plain = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), 0.97, 0.9)[0]
    shifted_rewards, shifted_values = torch.full((2, 3, 9), 1e6, dtype=torch.float64)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, start in enumerate([0, 2, 5]):
        shifted_rewards[row, start : start + 4] = rewards[0]
        shifted_values[row, start : start + 4] = values[0]
        mask[row, start : start + 4] = True
    shifted = gae(shifted_rewards, shifted_values, mask, 0.97, 0.9)[0]
    assert torch.equal(shifted[mask].view(3, 4), plain.expand(3, 4))


def test_a_hole_is_skipped_as_if_its_column_did_not_exist() -> None:
    rng = np.random.default_rng(2)
    rewards, values = torch.from_numpy(rng.normal(size=(2, 2, 5)))
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)  # the other row counts in the hole
    kept = mask[0]
    expected = brute_force(rewards[0, kept].tolist(), values[0, kept].tolist(), 0.9, 0.8)
    advantages, _ = gae(rewards, values, mask, 0.9, 0.8)
    assert advantages[0, kept].tolist() == pytest.approx(expected, abs=1e-12)
    assert advantages[0, 2].item() == 0.0


@pytest.mark.parametrize("garbage", [1e30, float("nan")])
def test_padding_content_never_matters(garbage: float) -> None:
    rewards, values, mask = random_case(7)
    clean = gae(rewards, values, mask, 0.9, 0.8)
    dirty = gae(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask, 0.9, 0.8)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


def test_row16_trap_T2_score_lands_on_the_last_response_token_only() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    scores = torch.tensor([10.0, 20.0, 30.0])
    only_scores = token_rewards(torch.zeros(3, 5), scores, mask, 0.1)
    assert only_scores.tolist() == [[0, 0, 10, 0, 0], [0, 0, 0, 0, 20], [30, 0, 0, 0, 0]]
    kl = torch.where(mask, 2.0, 1e30)
    both = token_rewards(kl, scores, mask, 0.5)
    assert both.tolist() == [[0, -1, 9, 0, 0], [0, 0, -1, -1, 19], [29, 0, 0, 0, 0]]


def test_row_without_response_is_refused() -> None:
    with pytest.raises(TrainingError, match="at least one token"):
        token_rewards(torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2, dtype=torch.bool), 0.1)
