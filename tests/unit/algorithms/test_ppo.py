"""PPO's pure parts: estimation, losses over typed batches, mini-batches, configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf.algorithms import ON_POLICY
from rlhf.algorithms.grpo import GRPOConfig
from rlhf.algorithms.on_policy import OnPolicyConfig, mini_batches
from rlhf.algorithms.ppo import PPOConfig, estimate, policy_loss, value_loss
from rlhf.algorithms.rloo import RLOOConfig
from rlhf.batch import Experience, TokenBatch
from rlhf.config import load
from rlhf.errors import ConfigError, NonFiniteError, TrainingError
from rlhf.kl import AdaptiveKL, FixedKL

CONFIG = PPOConfig(mini_batch_size=2, importance_cap=None)
STARTS, LENGTHS = [2, 4, 1], [3, 1, 6]
WIDTH = 9


def experience(fill: float = 0.0) -> Experience:
    """Three rows whose responses start and end in different columns; `fill` stands where nothing counts."""
    generator = torch.Generator().manual_seed(5)

    def noise() -> Tensor:
        drawn = torch.randn(3, WIDTH, generator=generator, dtype=torch.float64)
        return torch.where(mask, drawn, fill)

    columns = torch.arange(WIDTH)[None, :]
    starts, ends = torch.tensor(STARTS)[:, None], torch.tensor(STARTS)[:, None] + torch.tensor(LENGTHS)[:, None]
    mask = (columns >= starts) & (columns < ends)
    tokens = TokenBatch(torch.zeros(3, WIDTH, dtype=torch.long), ends[:, 0], mask, (None, None, None))
    zeros = torch.zeros(3, WIDTH, dtype=torch.float64)
    return Experience(
        tokens=tokens,
        old_logprobs=-noise().abs(),
        reference_logprobs=-noise().abs(),
        rollout_logprobs=-noise().abs(),
        old_values=noise(),
        scores=torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64),
        truncated=torch.tensor([False, True, False]),
        rewards=zeros,
        advantages=zeros,
        returns=zeros,
    )


def test_seed_preset_first_return_is_score_minus_kl_and_advantage_is_return_minus_value() -> None:
    rollouts = experience()
    filled, metrics = estimate(rollouts, CONFIG, kl_coefficient=0.1)
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        response = slice(start, start + length)
        gap = (rollouts.old_logprobs - rollouts.reference_logprobs)[row, response]
        expected = rollouts.scores[row] - 0.1 * gap.sum()
        assert filled.returns[row, start].item() == pytest.approx(expected.item())
        left = (filled.returns - rollouts.old_values)[row, response]
        assert torch.allclose(filled.advantages[row, response], left)
        assert filled.rewards[row].sum().item() == pytest.approx(expected.item())
    assert not rollouts.rewards.any()  # the input is left alone
    assert metrics["response/length"] == pytest.approx(10 / 3)
    assert metrics["response/length_max"] == 6.0
    assert metrics["response/truncated_share"] == pytest.approx(1 / 3)
    assert metrics["score/mean"] == pytest.approx(0.5)
    assert metrics["score/std"] == pytest.approx(math.sqrt(1.5))
    assert metrics["kl/sequence"] == pytest.approx(metrics["kl/token"] * 10 / 3)
    gaps = (rollouts.old_logprobs - rollouts.reference_logprobs).sum() / 3
    assert metrics["kl/sequence"] == pytest.approx(gaps.item())
    assert all(isinstance(number, float) and math.isfinite(number) for number in metrics.values())


@pytest.mark.parametrize("trap", ["T2_unequal_lengths", "T3_unequal_starts"])
def test_trap_T2_T3_a_batch_equals_its_rows_alone(trap: str) -> None:
    rollouts = experience()
    if trap == "T2_unequal_lengths":
        mask = torch.arange(WIDTH)[None, :] < torch.tensor(LENGTHS)[:, None]
        rollouts = replace(rollouts, tokens=replace(rollouts.tokens, response_mask=mask))
    config = PPOConfig(mini_batch_size=1, gamma=0.95, lam=0.9, kl_estimator="k3")
    together, _ = estimate(rollouts, config, 0.2)
    for row in range(3):
        alone, _ = estimate(rollouts.select([row]), config, 0.2)
        for name in ("rewards", "advantages", "returns"):
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0])


@pytest.mark.parametrize("garbage", [1e4, -1e30])
def test_padding_content_never_matters(garbage: float) -> None:
    config = PPOConfig(mini_batch_size=1, whiten_advantages=True, whiten_rewards=True, kl_estimator="k3")
    clean, clean_metrics = estimate(experience(), config, 0.1)
    dirty, dirty_metrics = estimate(experience(garbage), config, 0.1)
    assert clean_metrics == dirty_metrics
    for name in ("rewards", "advantages", "returns"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name))


def test_trap_T12_a_truncated_answer_loses_the_penalty_on_its_last_token_only() -> None:
    without, _ = estimate(experience(), CONFIG, 0.1)
    lowered, metrics = estimate(experience(), PPOConfig(mini_batch_size=1, truncation_penalty=3.0), 0.1)
    expected = torch.zeros(3, WIDTH, dtype=torch.float64)
    expected[1, 4] = -3.0  # row 1 is truncated; its only token is in column 4
    assert torch.allclose(lowered.rewards - without.rewards, expected)
    assert metrics["score/shaped_mean"] == pytest.approx(0.5 - 1.0)
    assert metrics["score/mean"] == pytest.approx(0.5)


def test_scores_are_clipped_before_bias_and_penalty() -> None:
    config = PPOConfig(mini_batch_size=1, score_clip=0.75, reward_bias=10.0, truncation_penalty=4.0)
    filled, _ = estimate(experience(), config, 0.0)
    assert filled.rewards.sum(dim=1).tolist() == pytest.approx([10.75, 10 - 0.75 - 4.0, 10.5])


def test_whitened_advantages_have_mean_zero_and_the_same_returns() -> None:
    plain, _ = estimate(experience(), CONFIG, 0.1)
    white, _ = estimate(experience(), PPOConfig(mini_batch_size=1, whiten_advantages=True), 0.1)
    counted = white.advantages[white.response_mask].numpy()
    assert counted.mean() == pytest.approx(0.0, abs=1e-12)
    assert counted.std() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(plain.returns, white.returns)


@pytest.mark.parametrize(
    ("kind", "schema", "more"),
    [("ppo", PPOConfig, {}), ("grpo", GRPOConfig, {"group_size": 3}), ("rloo", RLOOConfig, {"group_size": 3})],
)
def test_row16_a_length_penalty_takes_as_much_for_every_token(
    kind: str, schema: type[OnPolicyConfig], more: dict[str, int]
) -> None:
    """Answers of 3, 1 and 6 tokens, clipped before they pay; by default nobody does."""
    config = schema(mini_batch_size=1, score_clip=1.5, length_penalty=0.25, **more)
    filled, metrics = ON_POLICY[kind].estimate(experience(), config, 0.0)
    paid = [1.5 - 0.75, -1.0 - 0.25, 0.5 - 1.5]
    assert filled.rewards.sum(dim=1).tolist() == pytest.approx(paid)
    assert metrics["score/shaped_mean"] == pytest.approx(sum(paid) / 3)
    free = schema(mini_batch_size=1, **more)
    assert free.length_penalty == free.truncation_penalty == 0


def test_whitened_rewards_keep_their_mean() -> None:
    plain, _ = estimate(experience(), CONFIG, 0.1)
    white, _ = estimate(experience(), PPOConfig(mini_batch_size=1, whiten_rewards=True), 0.1)
    mask = plain.response_mask
    assert white.rewards[mask].mean().item() == pytest.approx(plain.rewards[mask].mean().item())
    assert white.rewards[mask].numpy().std() == pytest.approx(1.0, abs=1e-6)


def test_a_perfect_critic_has_no_advantage() -> None:
    rollouts = experience()
    filled, _ = estimate(rollouts, CONFIG, 0.1)
    again, metrics = estimate(replace(rollouts, old_values=filled.returns), CONFIG, 0.1)
    assert again.advantages.abs().max().item() < 1e-12
    assert metrics["value/explained_variance"] == pytest.approx(1.0)


@pytest.mark.parametrize("field", ["old_logprobs", "reference_logprobs", "rollout_logprobs", "old_values", "scores"])
def test_non_finite_input_is_named(field: str) -> None:
    rollouts = experience()
    broken = getattr(rollouts, field).clone()
    broken.view(3, -1)[1, 4 if broken.ndim == 2 else 0] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"{field} .*row\(s\) \[1\]"):
        estimate(replace(rollouts, **{field: broken}), CONFIG, 0.1)


def test_empty_response_is_refused() -> None:
    rollouts = experience()
    mask = rollouts.response_mask.clone()
    mask[2] = False
    empty = replace(rollouts, tokens=replace(rollouts.tokens, response_mask=mask))
    with pytest.raises(TrainingError, match=r"row\(s\) \[2\]"):
        estimate(empty, CONFIG, 0.1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_losses_are_independent_of_the_micro_batch_size(size: int) -> None:
    filled, _ = estimate(experience(), CONFIG, 0.1)
    config = PPOConfig(mini_batch_size=1, entropy_coefficient=0.5, importance_cap=2.0)
    offset = torch.linspace(-0.5, 0.5, 3 * WIDTH, dtype=torch.float64).view(3, WIDTH)

    def total(pieces: list[list[int]]) -> tuple[float, float, Tensor, Tensor]:
        logprobs = (filled.old_logprobs + offset).requires_grad_()
        values = (filled.old_values + offset).requires_grad_()
        policy_total = value_total = 0.0
        for rows in pieces:
            piece = filled.select(rows)
            policy, _ = policy_loss(logprobs[rows], -logprobs[rows], piece, config, 10.0)
            value, _ = value_loss(values[rows], piece, config, 10.0)
            (policy + value).backward()
            policy_total, value_total = policy_total + policy.item(), value_total + value.item()
        return policy_total, value_total, logprobs.grad, values.grad

    whole, split = total([[0, 1, 2]]), total([list(range(3))[i : i + size] for i in range(0, 3, size)])
    assert split[:2] == pytest.approx(whole[:2], abs=1e-12)
    assert torch.allclose(split[2], whole[2], atol=1e-12)
    assert torch.allclose(split[3], whole[3], atol=1e-12)


def test_ratio_is_one_on_the_first_pass_and_entropy_is_measured() -> None:
    filled, _ = estimate(experience(), CONFIG, 0.1)
    entropy = torch.full((3, WIDTH), 1.5, dtype=torch.float64)
    loss, stats = policy_loss(filled.old_logprobs, entropy, filled, CONFIG, 10.0)
    assert stats["ratio"].item() == pytest.approx(1.0)
    assert stats["entropy"].item() == pytest.approx(1.5)
    assert loss.item() == pytest.approx(-filled.advantages.sum().item() / 10)
    bonus, _ = policy_loss(
        filled.old_logprobs,
        entropy,
        filled,
        PPOConfig(mini_batch_size=1, entropy_coefficient=0.2, importance_cap=None),
        10.0,
    )
    assert loss.item() - bonus.item() == pytest.approx(0.3)


def test_importance_is_one_for_an_exact_engine() -> None:
    filled, _ = estimate(replace(experience(), rollout_logprobs=experience().old_logprobs), CONFIG, 0.1)
    plain, _ = policy_loss(filled.old_logprobs, filled.old_values, filled, CONFIG, 10.0)
    capped, stats = policy_loss(
        filled.old_logprobs, filled.old_values, filled, PPOConfig(mini_batch_size=1, importance_cap=2.0), 10.0
    )
    assert stats["importance"].item() == pytest.approx(1.0)
    assert capped.item() == pytest.approx(plain.item())


def test_value_loss_carries_its_coefficient() -> None:
    filled, _ = estimate(experience(), CONFIG, 0.1)
    small, _ = value_loss(filled.old_values, filled, CONFIG, 10.0)
    mean_square = ((filled.old_values - filled.returns)[filled.response_mask] ** 2).mean()
    assert small.item() == pytest.approx(0.1 * 0.5 * mean_square.item())


def test_mini_batches_partition_the_rows_by_seed() -> None:
    first, again, other = mini_batches(24, 6, 1), mini_batches(24, 6, 1), mini_batches(24, 6, 2)
    for batches in (first, other):
        assert [len(batch) for batch in batches] == [6, 6, 6, 6]
        assert sorted(row for batch in batches for row in batch) == list(range(24))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (4, 8), (0, 4), (4, 0)])
def test_mini_batches_never_round(rows: int, size: int) -> None:
    with pytest.raises(ConfigError, match=f"mini_batch_size={size}"):
        mini_batches(rows, size, 0)


def test_row19_defaults_are_the_seeds_numbers() -> None:
    numbers = (CONFIG.kl_coefficient, CONFIG.gamma, CONFIG.lam, CONFIG.clip_range, CONFIG.value_clip_range)
    assert numbers == (0.1, 1.0, 1.0, 0.2, 0.2)
    assert (CONFIG.value_coefficient, CONFIG.epochs, CONFIG.kl_estimator) == (0.1, 1, "k1")
    assert PPOConfig.needs_critic
    assert all(field.description for field in PPOConfig.model_fields.values())


def test_config_makes_its_controller() -> None:
    assert CONFIG.controller() == FixedKL(0.1)
    adaptive = PPOConfig(mini_batch_size=1, kl_controller="adaptive", kl_target=3.0, kl_horizon=50.0)
    assert adaptive.controller() == AdaptiveKL(0.1, 3.0, 50.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clip_range=1.5", "clip_range: .*less than 1"),
        ("length_penalty=-0.1", "length_penalty: .*greater than or equal to 0"),
        ("truncation_penalty=-1", "truncation_penalty: .*greater than or equal to 0"),
        ("score_clip=0", "score_clip: .*greater than 0"),
        ("kl_estimator=k2", "kl_estimator"),
        ("gama=0.9", "gama: unknown key.*gamma"),
        ("kl_controller=adaptive kl_coefficient=0", "must not start at 0"),
    ],
)
def test_bad_configuration_is_explained(override: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text("mini_batch_size: 8\n")
    with pytest.raises(ConfigError, match=message):
        load(PPOConfig, file, override.split())
