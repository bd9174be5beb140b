"""What PPO, GRPO and RLOO share: their common keys, the clipped policy loss, mini-batches and metrics. All pure."""

from __future__ import annotations

import random
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf.batch import Experience
from rlhf.config import Config
from rlhf.errors import ConfigError, NonFiniteError, TrainingError
from rlhf.kl import ControllerKind, Estimator, FixedKL, KLController, make_controller
from rlhf.losses import Stats, clipped_policy_loss, truncated_importance
from rlhf.masking import masked_mean, masked_sum, masked_var


class OnPolicyConfig(Config):
    """How scores of the policy's own answers turn into gradients."""

    needs_critic: ClassVar[bool] = False

    kl_coefficient: float = Field(default=0.1, ge=0)
    """Weight of the KL to the reference (score units per nat)."""
    kl_estimator: Estimator = "k1"
    """KL per token: k1 (log ratio, unbiased) or k3 (never negative)."""
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """The probability ratio gains nothing outside 1 +- this."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Factor on the entropy bonus."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of one iteration."""
    mini_batch_size: int = Field(ge=1)
    """Rows per optimizer step over all ranks; must divide the rows of an iteration."""
    truncation_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of an answer that did not end with EOS."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score for every token of the answer, EOS included (score units per token)."""
    reward_bias: float = 0.0
    """Added to every score."""
    score_clip: float | None = Field(default=None, gt=0)
    """Clip scores to +- this, before bias and penalties."""
    importance_cap: float | None = Field(default=2.0, gt=0)
    """Weigh tokens by min(p_learner / p_engine, this), to correct for the engine's own arithmetic; null: do not."""

    @property
    def answers_per_prompt(self) -> int:
        """Rollouts of one prompt in an iteration; they stand next to each other."""
        return 1

    def controller(self) -> KLController:
        """The KL controller at the start of training."""
        return FixedKL(self.kl_coefficient)


class RewardKLConfig(OnPolicyConfig):
    """The KL is part of the reward, so its coefficient may change from one iteration to the next."""

    kl_controller: ControllerKind = "fixed"
    """Keep kl_coefficient, or adapt it until the KL meets kl_target."""
    kl_target: float = Field(default=6.0, gt=0)
    """Nats per sequence that the adaptive controller aims at."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Sequences over which the adaptive controller acts; larger is slower."""

    @model_validator(mode="after")
    def _adaptive_can_move(self) -> RewardKLConfig:
        if self.kl_controller == "adaptive" and self.kl_coefficient == 0:
            raise ValueError("kl_controller=adaptive multiplies kl_coefficient, so it must not start at 0")
        return self

    def controller(self) -> KLController:
        """The KL controller at the start of training."""
        return make_controller(self.kl_controller, self.kl_coefficient, self.kl_target, self.kl_horizon)


def shaped_scores(experience: Experience, config: OnPolicyConfig) -> Tensor:
    """Scores [B] clipped, then biased, then lowered where the answer was truncated and by its length in tokens.

    Source: seed section 8, row 16, whose penalties are zero; trap T12.
    """
    scores = experience.scores
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    tokens = experience.response_mask.sum(dim=1).to(scores.dtype)  # [B]
    cut = experience.truncated.to(scores.dtype)  # [B]
    return scores + config.reward_bias - config.truncation_penalty * cut - config.length_penalty * tokens


def policy_loss(
    logprobs: Tensor, entropy: Tensor, experience: Experience, config: OnPolicyConfig, denominator: float
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


def mini_batches(n_rows: int, size: int, epoch_seed: int) -> list[list[int]]:
    """The rows of one epoch in seeded random order, cut into pieces of exactly `size`.

    Raises ConfigError if `size` does not divide `n_rows`; nothing is dropped or rounded.
    """
    if size < 1 or n_rows < 1 or n_rows % size:
        raise ConfigError([f"mini_batch_size={size} does not divide the {n_rows} rows of an iteration"])
    rows = list(range(n_rows))
    random.Random(epoch_seed).shuffle(rows)
    return [rows[start : start + size] for start in range(0, n_rows, size)]


def check_finite(experience: Experience) -> None:
    """Raise NonFiniteError naming the field and the rows that hold a NaN or infinity where something counts."""
    mask = experience.response_mask
    for name in ("old_logprobs", "reference_logprobs", "rollout_logprobs", "old_values"):
        broken = (~getattr(experience, name).isfinite() & mask).any(dim=1)
        if broken.any():
            raise NonFiniteError(f"{name} is not finite in row(s) {broken.nonzero().flatten().tolist()}")
    if not experience.scores.isfinite().all():
        rows = (~experience.scores.isfinite()).nonzero().flatten().tolist()
        raise NonFiniteError(f"scores is not finite in row(s) {rows}")


def common_metrics(experience: Experience, kl: Tensor, scores: Tensor, advantages: Tensor) -> dict[str, float]:
    """Means over an iteration: KL in nats, lengths in tokens, the rest in score units.

    Args:
        experience: B rows.
        kl: [B, T] nats per token.
        scores: [B] after `shaped_scores`.
        advantages: [B, T] before any whitening.
    """
    mask = experience.response_mask
    lengths = mask.sum(dim=1).to(kl.dtype)  # [B]
    numbers = {
        "kl/token": masked_mean(kl, mask),
        "kl/sequence": masked_sum(kl, mask) / len(mask),
        "score/mean": experience.scores.mean(),
        "score/std": experience.scores.std(correction=0),
        "score/shaped_mean": scores.mean(),
        "advantage/mean": masked_mean(advantages, mask),
        "advantage/std": masked_var(advantages, mask).sqrt(),
        "response/truncated_share": experience.truncated.to(torch.float32).mean(),
        "response/length": lengths.mean(),
        "response/length_max": lengths.amax(),
    }
    return {name: float(number) for name, number in numbers.items()}


def grouped(scores: Tensor, size: int) -> Tensor:
    """[B] scores as [B / size, size], a prompt's answers side by side. Raises TrainingError if B is no multiple."""
    if len(scores) % size:
        raise TrainingError(f"{len(scores)} rollouts are no whole number of groups of {size}")
    return scores.view(-1, size)
