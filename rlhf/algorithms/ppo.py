"""Proximal policy optimisation with a KL penalty to the reference policy (Schulman et al. 2017; Ziegler et al. 2019).

The defaults are the numbers of the seed's full-parameter script (seed section 3.3). Everything here is pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from rlhf.advantages import gae, token_rewards
from rlhf.algorithms.on_policy import RewardKLConfig, check_finite, common_metrics, policy_loss, shaped_scores
from rlhf.batch import Experience
from rlhf.kl import token_kl
from rlhf.losses import Stats, clipped_value_loss
from rlhf.masking import explained_variance, masked_mean, masked_var, whiten

__all__ = ["PPOConfig", "estimate", "policy_loss", "value_loss"]


class PPOConfig(RewardKLConfig):
    """How PPO turns scores into gradients."""

    needs_critic: ClassVar[bool] = True

    kind: Literal["ppo"] = "ppo"
    """Proximal policy optimisation, with a critic."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """Lambda of generalised advantage estimation: 0 trusts the critic, 1 the returns."""
    value_clip_range: float = Field(default=0.2, gt=0)
    """A value gains nothing by moving further than this from its value before the update."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Factor on the critic's loss."""
    whiten_advantages: bool = False
    """Bring the advantages of an iteration to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Bring the token rewards of an iteration to variance 1, keeping their mean."""


def estimate(experience: Experience, config: PPOConfig, kl_coefficient: float) -> tuple[Experience, dict[str, float]]:
    """Fill rewards, advantages and returns; all rows of an iteration at once, because whitening looks at all of them.

    Args:
        experience: B rows; its rewards, advantages and returns are ignored.
        config: of the algorithm.
        kl_coefficient: the controller's present one.

    Returns the filled experience and the iteration's metrics (KL in nats, lengths in tokens, the rest in score units).
    Raises NonFiniteError naming the field and rows that hold a NaN or infinity, TrainingError for an empty response.
    Source: seed section 3.2, steps 5 and 6.
    """
    check_finite(experience)
    mask = experience.response_mask
    kl = token_kl(experience.old_logprobs, experience.reference_logprobs, config.kl_estimator)
    scores = shaped_scores(experience, config)
    rewards = token_rewards(kl, scores, mask, kl_coefficient)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, experience.old_values, mask, config.gamma, config.lam)
    metrics = common_metrics(experience, kl, scores, advantages) | _value_metrics(experience, returns)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return replace(experience, rewards=rewards, advantages=advantages, returns=returns), metrics


def value_loss(values: Tensor, experience: Experience, config: PPOConfig, denominator: float) -> tuple[Tensor, Stats]:
    """The critic's share of the loss, `value_coefficient` included, for some rows of a mini-batch.

    Args and result as for `policy_loss`; `values` is [B, T] with gradient.
    """
    loss, stats = clipped_value_loss(
        values,
        experience.old_values,
        experience.returns,
        experience.response_mask,
        config.value_clip_range,
        denominator,
    )
    return config.value_coefficient * loss, stats


def _value_metrics(experience: Experience, returns: Tensor) -> dict[str, float]:
    mask, values = experience.response_mask, experience.old_values
    numbers = {
        "return/mean": masked_mean(returns, mask),
        "return/std": masked_var(returns, mask).sqrt(),
        "value/mean": masked_mean(values, mask),
        "value/std": masked_var(values, mask).sqrt(),
        "value/explained_variance": explained_variance(values, returns, mask),
    }
    return {name: float(number) for name, number in numbers.items()}
