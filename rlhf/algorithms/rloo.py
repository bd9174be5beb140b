"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740): the other answers are the baseline, no critic."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from rlhf.advantages import token_rewards
from rlhf.algorithms.on_policy import (
    RewardKLConfig,
    check_finite,
    common_metrics,
    grouped,
    policy_loss,
    shaped_scores,
)
from rlhf.batch import Experience
from rlhf.kl import token_kl

__all__ = ["RLOOConfig", "estimate", "policy_loss"]


class RLOOConfig(RewardKLConfig):
    """How RLOO turns scores into gradients."""

    kind: Literal["rloo"] = "rloo"
    """REINFORCE with a leave-one-out baseline, without a critic."""
    group_size: int = Field(default=4, ge=2)
    """Answers per prompt; each is compared with the mean of the others."""

    @property
    def answers_per_prompt(self) -> int:
        """Rollouts of one prompt in an iteration."""
        return self.group_size


def estimate(experience: Experience, config: RLOOConfig, kl_coefficient: float) -> tuple[Experience, dict[str, float]]:
    """Fill rewards, returns and advantages; all rows of an iteration at once, a prompt's answers side by side.

    The return of an answer is its score minus the coefficient times the KL of the whole answer; its advantage, the same
    for all of its tokens, is its return minus the mean return of the other answers.

    Args, errors: as for `rlhf.algorithms.ppo.estimate`; TrainingError if rows are no whole number of groups.
    Source: Ahmadian et al. 2024, eq. 9. The ratio is clipped as in PPO, which matters from the second step on only.
    """
    check_finite(experience)
    mask = experience.response_mask
    kl = token_kl(experience.old_logprobs, experience.reference_logprobs, config.kl_estimator)
    scores = shaped_scores(experience, config)
    rewards = token_rewards(kl, scores, mask, kl_coefficient)
    returns = rewards.sum(dim=1)  # [B]
    groups = grouped(returns, config.group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (config.group_size - 1)
    advantages = torch.where(mask, (groups - others).reshape(-1)[:, None], 0.0)
    metrics = common_metrics(experience, kl, scores, advantages)
    spread = torch.where(mask, returns[:, None], 0.0)
    return replace(experience, rewards=rewards, returns=spread, advantages=advantages), metrics
