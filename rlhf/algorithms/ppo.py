"""Proximal policy optimisation with a KL penalty to the reference policy (Schulman et al. 2017; Ziegler et al. 2019).

The defaults are the numbers of the seed's full-parameter script (seed section 3.3). Everything here is pure.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf.advantages import gae, token_rewards
from rlhf.batch import Experience
from rlhf.config import Config
from rlhf.errors import ConfigError, NonFiniteError
from rlhf.kl import ControllerKind, Estimator, KLController, make_controller, token_kl
from rlhf.losses import Stats, clipped_policy_loss, clipped_value_loss, truncated_importance
from rlhf.masking import explained_variance, masked_mean, masked_sum, masked_var, whiten


class PPOConfig(Config):
    """How PPO turns scores into gradients."""

    needs_critic: ClassVar[bool] = True

    kl_coefficient: float = Field(default=0.1, ge=0)
    """Weight of the KL to the reference in the token reward (score units per nat); where an adaptive one starts."""
    kl_estimator: Estimator = "k1"
    """KL per token: k1 (log ratio, unbiased) or k3 (never negative)."""
    kl_controller: ControllerKind = "fixed"
    """Keep kl_coefficient, or adapt it until the KL meets kl_target."""
    kl_target: float = Field(default=6.0, gt=0)
    """Nats per sequence that the adaptive controller aims at."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Sequences over which the adaptive controller acts; larger is slower."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """Lambda of generalised advantage estimation: 0 trusts the critic, 1 the returns."""
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """The probability ratio gains nothing outside 1 +- this."""
    value_clip_range: float = Field(default=0.2, gt=0)
    """A value gains nothing by moving further than this from its value before the update."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Factor on the critic's loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Factor on the entropy bonus."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of one iteration."""
    mini_batch_size: int = Field(ge=1)
    """Rows per optimizer step over all ranks; must divide the rows of an iteration."""
    whiten_advantages: bool = False
    """Bring the advantages of an iteration to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Bring the token rewards of an iteration to variance 1, keeping their mean."""
    truncation_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of an answer that did not end with EOS."""
    reward_bias: float = 0.0
    """Added to every score."""
    score_clip: float | None = Field(default=None, gt=0)
    """Clip scores to +- this, before bias and penalty."""
    importance_cap: float | None = Field(default=None, gt=0)
    """Weigh tokens by min(p_learner / p_engine, this), to correct for the rollout engine's own arithmetic."""

    @model_validator(mode="after")
    def _adaptive_can_move(self) -> PPOConfig:
        if self.kl_controller == "adaptive" and self.kl_coefficient == 0:
            raise ValueError("kl_controller=adaptive multiplies kl_coefficient, so it must not start at 0")
        return self

    def controller(self) -> KLController:
        """The KL controller at the start of training."""
        return make_controller(self.kl_controller, self.kl_coefficient, self.kl_target, self.kl_horizon)


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
    _check_finite(experience)
    mask = experience.response_mask
    kl = token_kl(experience.old_logprobs, experience.reference_logprobs, config.kl_estimator)
    scores = shaped_scores(experience.scores, experience.truncated, config)
    rewards = token_rewards(kl, scores, mask, kl_coefficient)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, experience.old_values, mask, config.gamma, config.lam)
    metrics = _metrics(experience, kl, scores, advantages, returns)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return replace(experience, rewards=rewards, advantages=advantages, returns=returns), metrics


def shaped_scores(scores: Tensor, truncated: Tensor, config: PPOConfig) -> Tensor:
    """Scores [B] clipped, then biased, then lowered where `truncated` [B] bool (seed trap T12)."""
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    return scores + config.reward_bias - config.truncation_penalty * truncated.to(scores.dtype)


def policy_loss(
    logprobs: Tensor, entropy: Tensor, experience: Experience, config: PPOConfig, denominator: float
) -> tuple[Tensor, Stats]:
    """The policy's share of the loss for some rows of a mini-batch.

    Args:
        logprobs: [B, T] of the policy now, with gradient.
        entropy: [B, T] nats per token, with gradient if entropy_coefficient is not zero.
        experience: the same B rows, after `estimate`.
        config: of the algorithm.
        denominator: response tokens of the whole mini-batch.

    Returns the loss and the means of `clipped_policy_loss`, entropy and, with a cap, importance.
    """
    mask = experience.response_mask
    importance = None
    if config.importance_cap is not None:
        importance = truncated_importance(
            experience.old_logprobs, experience.rollout_logprobs, mask, config.importance_cap
        )
    loss, stats = clipped_policy_loss(
        logprobs, experience.old_logprobs, experience.advantages, mask, config.clip_range, denominator, importance
    )
    mean_entropy = masked_sum(entropy, mask) / denominator
    stats["entropy"] = mean_entropy.detach()
    if importance is not None:
        stats["importance"] = masked_sum(importance, mask) / denominator
    if config.entropy_coefficient:
        loss = loss - config.entropy_coefficient * mean_entropy
    return loss, stats


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


def mini_batches(n_rows: int, size: int, epoch_seed: int) -> list[list[int]]:
    """The rows of one epoch in seeded random order, cut into pieces of exactly `size`.

    Raises ConfigError if `size` does not divide `n_rows`; nothing is dropped or rounded.
    """
    if size < 1 or n_rows < 1 or n_rows % size:
        raise ConfigError([f"mini_batch_size={size} does not divide the {n_rows} rows of an iteration"])
    rows = list(range(n_rows))
    random.Random(epoch_seed).shuffle(rows)
    return [rows[start : start + size] for start in range(0, n_rows, size)]


def _check_finite(experience: Experience) -> None:
    mask = experience.response_mask
    for name in ("old_logprobs", "reference_logprobs", "rollout_logprobs", "old_values"):
        broken = (~getattr(experience, name).isfinite() & mask).any(dim=1)
        if broken.any():
            raise NonFiniteError(f"{name} is not finite in row(s) {broken.nonzero().flatten().tolist()}")
    if not experience.scores.isfinite().all():
        rows = (~experience.scores.isfinite()).nonzero().flatten().tolist()
        raise NonFiniteError(f"scores is not finite in row(s) {rows}")


def _metrics(
    experience: Experience, kl: Tensor, scores: Tensor, advantages: Tensor, returns: Tensor
) -> dict[str, float]:
    mask, values = experience.response_mask, experience.old_values
    lengths = mask.sum(dim=1).to(values.dtype)  # [B]
    numbers = {
        "kl/token": masked_mean(kl, mask),
        "kl/sequence": masked_sum(kl, mask) / len(mask),
        "score/mean": experience.scores.mean(),
        "score/std": experience.scores.std(correction=0),
        "score/shaped_mean": scores.mean(),
        "advantage/mean": masked_mean(advantages, mask),
        "advantage/std": masked_var(advantages, mask).sqrt(),
        "return/mean": masked_mean(returns, mask),
        "return/std": masked_var(returns, mask).sqrt(),
        "value/mean": masked_mean(values, mask),
        "value/std": masked_var(values, mask).sqrt(),
        "value/explained_variance": explained_variance(values, returns, mask),
        "response/truncated_share": experience.truncated.to(torch.float32).mean(),
        "response/length": lengths.mean(),
        "response/length_max": lengths.amax(),
    }
    return {name: float(number) for name, number in numbers.items()}
