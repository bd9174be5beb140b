"""GRPO and RLOO: several answers per prompt, no critic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms import ON_POLICY
from rlhf.algorithms.grpo import GRPOConfig
from rlhf.algorithms.rloo import RLOOConfig
from rlhf.batch import Experience, TokenBatch
from rlhf.errors import NonFiniteError, TrainingError
from rlhf.kl import token_kl

GROUP, WIDTH = 3, 8
LENGTHS = [3, 1, 5, 2, 4, 3]
SCORES = [1.0, 2.0, 6.0, -1.0, -1.0, -1.0]
GRPO = GRPOConfig(mini_batch_size=2, group_size=GROUP, kl_coefficient=0.0)
RLOO = RLOOConfig(mini_batch_size=2, group_size=GROUP, kl_coefficient=0.0)


def experience(scores: list[float] | None = None) -> Experience:
    """Two prompts with three answers each, of unequal lengths."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(WIDTH)[None, :] < torch.tensor(LENGTHS)[:, None] + 2
    mask[:, :2] = False

    def noise() -> Tensor:
        drawn = -torch.randn(6, WIDTH, generator=generator, dtype=torch.float64).abs()
        return torch.where(mask, drawn, 0.0)

    zeros = torch.zeros(6, WIDTH, dtype=torch.float64)
    tokens = TokenBatch(torch.zeros(6, WIDTH, dtype=torch.long), mask.sum(1) + 2, mask, (None,) * 6)
    return Experience(
        tokens=tokens,
        old_logprobs=noise(),
        reference_logprobs=noise(),
        rollout_logprobs=noise(),
        old_values=zeros,
        scores=torch.tensor(scores or SCORES, dtype=torch.float64),
        truncated=torch.zeros(6, dtype=torch.bool),
        rewards=zeros,
        advantages=zeros,
        returns=zeros,
    )


def per_answer(filled: Experience) -> list[float]:
    """The advantage of each answer, after checking that all of its tokens share it and nothing else has one."""
    values = []
    for row, mask in zip(filled.advantages, filled.response_mask, strict=True):
        assert (row[mask] == row[mask][0]).all()
        assert not row[~mask].any()
        values.append(float(row[mask][0]))
    return values


def test_grpo_compares_an_answer_with_its_group() -> None:
    filled, metrics = ON_POLICY["grpo"].estimate(experience(), GRPO, 0.0)
    spread = math.sqrt((4 + 1 + 9) / 3)  # scores 1, 2, 6 around their mean 3
    assert per_answer(filled) == pytest.approx([-2 / spread, -1 / spread, 3 / spread, 0, 0, 0])
    assert metrics["advantage/silent_groups"] == 0.5  # three equal scores teach nothing
    plain, _ = ON_POLICY["grpo"].estimate(experience(), GRPO.model_copy(update={"scale_by_std": False}), 0.0)
    assert per_answer(plain) == pytest.approx([-2, -1, 3, 0, 0, 0])


def test_rloo_compares_an_answer_with_the_others() -> None:
    filled, _ = ON_POLICY["rloo"].estimate(experience(), RLOO, 0.0)
    assert per_answer(filled) == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])


def test_rloo_pays_for_the_kl_of_the_whole_answer() -> None:
    rollouts = experience([0.0] * 6)
    filled, _ = ON_POLICY["rloo"].estimate(rollouts, RLOO, 0.5)
    kl = (rollouts.old_logprobs - rollouts.reference_logprobs).sum(dim=1)  # masked positions are zero in both
    paid = -0.5 * kl
    expected = [float(paid[i] - (paid[3 * (i // 3) : 3 * (i // 3) + 3].sum() - paid[i]) / 2) for i in range(6)]
    assert per_answer(filled) == pytest.approx(expected)


def test_grpo_refuses_a_kl_loss_that_pushes_nowhere() -> None:
    """The gradient averaged over all tokens of the policy's own distribution: that of k1 is zero, that of k3 is not."""
    logits = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 1.0, -0.5, 0.3], dtype=torch.float64), 0)
    sizes = {}
    for estimator in ("k1", "k3"):
        logprobs = torch.log_softmax(logits, 0)
        mean = (logprobs.exp().detach() * token_kl(logprobs, reference, estimator)).sum()  # type: ignore[arg-type]
        sizes[estimator] = float(torch.autograd.grad(mean, logits)[0].abs().max())
    assert sizes["k1"] < 1e-12 < 0.1 < sizes["k3"]
    with pytest.raises(ValueError, match="kl_estimator=k1 in the loss pushes nowhere"):
        GRPOConfig(mini_batch_size=4, kl_estimator="k1")
    assert GRPOConfig(mini_batch_size=4, kl_estimator="k1", kl_coefficient=0.0).kl_coefficient == 0


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_shift_of_all_scores_changes_nothing(kind: str) -> None:
    config = {"grpo": GRPO, "rloo": RLOO}[kind]
    here, _ = ON_POLICY[kind].estimate(experience(), config, 0.1)
    there, _ = ON_POLICY[kind].estimate(experience([score + 50 for score in SCORES]), config, 0.1)
    torch.testing.assert_close(here.advantages, there.advantages)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_groups_do_not_touch_each_other(kind: str) -> None:
    config = {"grpo": GRPO, "rloo": RLOO}[kind]
    whole, _ = ON_POLICY[kind].estimate(experience(), config, 0.1)
    first, _ = ON_POLICY[kind].estimate(experience().select(range(3)), config, 0.1)
    torch.testing.assert_close(whole.advantages[:3], first.advantages)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_half_a_group_and_a_nan_are_errors(kind: str) -> None:
    config = {"grpo": GRPO, "rloo": RLOO}[kind]
    with pytest.raises(TrainingError, match="groups of 3"):
        ON_POLICY[kind].estimate(experience().select(range(4)), config, 0.1)
    with pytest.raises(NonFiniteError, match=r"scores .* \[2\]"):
        ON_POLICY[kind].estimate(experience([1.0, 1.0, float("nan"), 1.0, 1.0, 1.0]), config, 0.1)


def test_the_gradient_at_ratio_one_is_reinforce() -> None:
    filled, _ = ON_POLICY["rloo"].estimate(experience(), RLOO, 0.0)
    logprobs = filled.old_logprobs.clone().requires_grad_()
    loss, stats = ON_POLICY["rloo"].policy_loss(logprobs, torch.zeros_like(logprobs), filled, _uncapped(RLOO), 18.0)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.where(filled.response_mask, -filled.advantages / 18.0, 0.0))
    assert float(stats["ratio"]) == pytest.approx(1.0)


def test_grpo_pulls_back_to_the_reference() -> None:
    """Without scores that differ only the KL moves: its gradient is coefficient x (1 - q/p), k3's derivative."""
    filled, _ = ON_POLICY["grpo"].estimate(experience([0.0] * 6), GRPO, 0.0)
    config = _uncapped(GRPO).model_copy(update={"kl_coefficient": 0.3})
    logprobs = filled.old_logprobs.clone().requires_grad_()
    loss, stats = ON_POLICY["grpo"].policy_loss(logprobs, torch.zeros_like(logprobs), filled, config, 18.0)
    loss.backward()
    ratio = (filled.reference_logprobs - filled.old_logprobs).exp()
    torch.testing.assert_close(logprobs.grad, torch.where(filled.response_mask, 0.3 * (1 - ratio) / 18.0, 0.0))
    assert float(stats["kl_loss"]) > 0
    at_home = replace(filled, reference_logprobs=filled.old_logprobs)
    assert (
        float(ON_POLICY["grpo"].policy_loss(filled.old_logprobs, torch.zeros(6, WIDTH), at_home, config, 18.0)[0]) == 0
    )


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_loss_adds_up_over_micro_batches(kind: str) -> None:
    config = {"grpo": GRPO.model_copy(update={"kl_coefficient": 0.2}), "rloo": RLOO}[kind]
    filled, _ = ON_POLICY[kind].estimate(experience(), config, 0.1)
    moved, entropy = filled.old_logprobs + 0.1 * filled.response_mask, torch.zeros(6, WIDTH)

    def loss(rows: range) -> float:
        piece = filled.select(rows)
        return float(ON_POLICY[kind].policy_loss(moved[rows], entropy[rows], piece, config, 18.0)[0])

    assert loss(range(6)) == pytest.approx(loss(range(1)) + loss(range(1, 6)))


def _uncapped(config: GRPOConfig | RLOOConfig) -> GRPOConfig | RLOOConfig:
    return config.model_copy(update={"importance_cap": None})
