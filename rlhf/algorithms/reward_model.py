"""Reward model: learn to score the preferred answer above the other one (seed section 2)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from rlhf.config import Config
from rlhf.losses import PairLoss, Stats, pairwise_loss


class RewardModelConfig(Config):
    """How preference pairs turn into gradients."""

    loss: PairLoss = "logsigmoid"
    """Bradley-Terry loss: logsigmoid, or spa_vl, which adds 1e-5 inside the logarithm as the seed does."""
    margin: float = Field(default=0.0, ge=0)
    """By how much a chosen answer should win: -log s(r_chosen - r_rejected - margin); 0 switches it off."""
    centring_coefficient: float = Field(default=0.0, ge=0)
    """Factor on the squared sum of a pair's scores, which keeps scores around zero; 0 switches it off."""


def pair_objective(
    chosen_scores: Tensor, rejected_scores: Tensor, config: RewardModelConfig, denominator: float
) -> tuple[Tensor, Stats]:
    """Loss of some of a batch's pairs.

    Args:
        chosen_scores: [B], with gradient.
        rejected_scores: [B], with gradient, aligned with the chosen ones.
        config: of the objective.
        denominator: pairs in the global batch.

    Returns the loss and, as means over pairs: accuracy, margin, and score (of all answers). Errors: `pairwise_loss`.
    Source: seed section 2; the margin is Touvron et al. 2023 (arXiv 2307.09288), eq. 2; the centring term is
    Eisenstein et al. 2023 (arXiv 2312.09244), regulariser.
    """
    loss, stats = pairwise_loss(chosen_scores, rejected_scores, denominator, config.loss, config.margin)
    total = chosen_scores + rejected_scores  # [B]
    stats["score"] = 0.5 * total.detach().sum() / denominator
    if config.centring_coefficient:
        loss = loss + config.centring_coefficient * total.square().sum() / denominator
    return loss, stats
