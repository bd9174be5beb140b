"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): several answers per prompt, no critic."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf.advantages import token_rewards
from rlhf.algorithms import on_policy
from rlhf.algorithms.on_policy import OnPolicyConfig, check_finite, common_metrics, grouped, shaped_scores
from rlhf.batch import Experience
from rlhf.kl import Estimator, token_kl
from rlhf.losses import Stats
from rlhf.masking import masked_sum

_SMALLEST_STD = 1e-6


class GRPOConfig(OnPolicyConfig):
    """How GRPO turns scores into gradients."""

    kind: Literal["grpo"] = "grpo"
    """Group-relative policy optimisation, without a critic."""
    group_size: int = Field(default=8, ge=2)
    """Answers per prompt, compared with each other."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation; false weighs every prompt by how much its answers differ."""
    kl_coefficient: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference in the loss."""
    kl_estimator: Estimator = "k3"
    """KL per token: k3 (never negative) as in the paper. k1 only without its weight, to be logged."""

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> GRPOConfig:
        if self.kl_estimator == "k1" and self.kl_coefficient:
            raise ValueError(
                "kl_estimator=k1 in the loss pushes nowhere: the gradient of log p averages to zero over p's own "
                "tokens; use k3, or kl_coefficient=0"
            )
        return self

    @property
    def answers_per_prompt(self) -> int:
        """Rollouts of one prompt in an iteration."""
        return self.group_size


def estimate(experience: Experience, config: GRPOConfig, kl_coefficient: float) -> tuple[Experience, dict[str, float]]:
    """Fill rewards and advantages; all rows of an iteration at once, the answers to one prompt side by side.

    Every token of an answer has the same advantage: how its score differs from the mean of its group, in units of the
    group's standard deviation (population). The KL is not here but in the loss.

    Args, errors: as for `rlhf.algorithms.ppo.estimate`; TrainingError if rows are no whole number of groups.
    Source: Shao et al. 2024, section 4.1.2.
    """
    check_finite(experience)
    mask = experience.response_mask
    kl = token_kl(experience.old_logprobs, experience.reference_logprobs, config.kl_estimator)
    scores = shaped_scores(experience, config)
    groups = grouped(scores, config.group_size)
    spread = groups.std(dim=1, correction=0, keepdim=True)
    relative = groups - groups.mean(dim=1, keepdim=True)
    if config.scale_by_std:
        relative = relative / spread.clamp(min=_SMALLEST_STD)
    advantages = torch.where(mask, relative.reshape(-1)[:, None], 0.0)
    metrics = common_metrics(experience, kl, scores, advantages)
    metrics["advantage/silent_groups"] = float((spread < _SMALLEST_STD).to(scores.dtype).mean())
    rewards = token_rewards(kl, scores, mask, 0.0)
    return replace(experience, rewards=rewards, advantages=advantages), metrics


def policy_loss(
    logprobs: Tensor, entropy: Tensor, experience: Experience, config: GRPOConfig, denominator: float
) -> tuple[Tensor, Stats]:
    """The clipped loss plus the KL to the reference.

    Args, result: as for `rlhf.algorithms.on_policy.policy_loss`, and the mean kl_loss (nats per token).
    Source: Shao et al. 2024, eq. 3 and 4. Deviation: the mean is over all tokens of the mini-batch, not first within
    an answer, which would let long answers off cheaply (Yu et al. 2025, arXiv 2503.14476, section 3.3).
    """
    loss, stats = on_policy.policy_loss(logprobs, entropy, experience, config, denominator)
    kl = token_kl(logprobs, experience.reference_logprobs, config.kl_estimator)
    mean_kl = masked_sum(kl, experience.response_mask) / denominator
    stats["kl_loss"] = mean_kl.detach()
    return loss + config.kl_coefficient * mean_kl, stats
