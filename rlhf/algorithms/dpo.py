"""Direct preference optimisation and its relatives: preference pairs straight into gradients, no reward model.

Every loss is a sum over pairs divided by `denominator`, the pairs of the whole global batch, so that neither it nor
its gradient depends on micro-batches or ranks (see `rlhf/losses.py`). All of them see the `gap` [B]: how much more the
log-probability of the chosen answer rose above the reference's than that of the rejected one, in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from rlhf.config import Config
from rlhf.errors import NonFiniteError, TrainingError
from rlhf.losses import Stats

DPOLoss = Literal["sigmoid", "ipo", "hinge", "simpo"]


class DPOConfig(Config):
    """How preference pairs turn into gradients; the defaults are the seed's (seed section 4), but EOS is trained."""

    loss: DPOLoss = "sigmoid"
    """sigmoid (DPO, or cDPO with label_smoothing), ipo, hinge (SLiC), or simpo (no reference, mean per token)."""
    beta: float = Field(default=0.1, gt=0)
    """Reward per nat above the reference; smaller lets the policy move further away."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """cDPO: the share of pairs that are taken to be labelled the wrong way round (loss sigmoid only)."""
    length_normalised: bool = False
    """Divide each answer's log-ratio by its tokens, EOS included; simpo always does."""
    reference_free: bool = False
    """Take the reference's log-probabilities as zero; simpo always does, and then no reference is started."""
    margin: float = Field(default=0.0, ge=0)
    """SimPO's gamma: the reward by which the chosen answer should win (loss simpo only)."""
    train_eos: bool = True
    """End both answers with EOS; false leaves it out as the seed does, and answers then run on (trap T9)."""

    @model_validator(mode="after")
    def _keys_belong_to_the_loss(self) -> DPOConfig:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing belongs to loss=sigmoid, not to loss={self.loss}")
        if self.margin and self.loss != "simpo":
            raise ValueError(f"margin belongs to loss=simpo, not to loss={self.loss}")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy takes part."""
        return not (self.reference_free or self.loss == "simpo")

    @property
    def per_token(self) -> bool:
        """Whether log-ratios are means over tokens instead of sums."""
        return self.length_normalised or self.loss == "simpo"


def sigmoid_loss(gap: Tensor, beta: float, denominator: float) -> Tensor:
    """DPO: -log s(beta gap), ln 2 at a gap of zero.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; seed section 4.
    """
    return -functional.logsigmoid(beta * gap).sum() / denominator


def conservative_loss(gap: Tensor, beta: float, smoothing: float, denominator: float) -> Tensor:
    """cDPO: -(1 - e) log s(beta gap) - e log s(-beta gap), smallest where s(beta gap) = 1 - e.

    Source: Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO".
    """
    right, wrong = functional.logsigmoid(beta * gap), functional.logsigmoid(-beta * gap)
    return -((1.0 - smoothing) * right + smoothing * wrong).sum() / denominator


def ipo_loss(gap: Tensor, beta: float, denominator: float) -> Tensor:
    """IPO: (gap - 1 / (2 beta))^2 with beta for the paper's tau: the gap has a target, not only a direction.

    Source: Azar et al. 2023 (arXiv 2310.12036), eq. 17.
    """
    return (gap - 0.5 / beta).square().sum() / denominator


def hinge_loss(gap: Tensor, beta: float, denominator: float) -> Tensor:
    """SLiC's rank calibration, max(0, 1 - beta gap): a pair that wins by enough no longer counts.

    Source: Zhao et al. 2023 (arXiv 2305.10425), calibration loss with delta = 1 / beta, here of log-ratios to the
    reference and without the regulariser (Liu et al. 2023, arXiv 2309.06657).
    """
    return functional.relu(1.0 - beta * gap).sum() / denominator


def simpo_loss(gap: Tensor, beta: float, margin: float, denominator: float) -> Tensor:
    """SimPO: -log s(beta gap - margin), for a gap of mean log-probabilities per token without a reference.

    Source: Meng et al. 2024 (arXiv 2405.14734), eq. 6.
    """
    return -functional.logsigmoid(beta * gap - margin).sum() / denominator


def preference_objective(
    logprobs: Tensor, reference: Tensor, lengths: Tensor, config: DPOConfig, denominator: float
) -> tuple[Tensor, Stats]:
    """Loss of some of a batch's pairs.

    Args:
        logprobs: [B, 2] of the policy, summed over each answer (chosen, rejected), with gradient.
        reference: [B, 2] of the reference, the same sums; not looked at if the loss needs none.
        lengths: [B, 2] tokens of each answer.
        config: of the objective.
        denominator: pairs in the global batch.

    Returns the loss and, as means over pairs: accuracy (the chosen answer's reward is the higher one; a tie is
    wrong), margin (difference of the rewards), chosen_reward, rejected_reward (beta times the log-ratio), and
    chosen_logprob, rejected_logprob (nats per answer; a chosen one that falls too is DPO's usual failure).
    Raises TrainingError for a denominator that is not positive or tensors of other shapes, NonFiniteError for a
    reference that is not finite.
    """
    if not denominator > 0:
        raise TrainingError(f"the loss denominator is {denominator}: no pair counts in the global batch")
    shapes = {tuple(tensor.shape) for tensor in (logprobs, reference, lengths)}
    if shapes != {(len(logprobs), 2)}:
        raise TrainingError(f"log-probabilities, reference and lengths must all be [B, 2], found {sorted(shapes)}")
    ratios = logprobs
    if config.needs_reference:
        if not reference.isfinite().all():
            raise NonFiniteError("a reference log-probability is not finite")
        ratios = ratios - reference
    if config.per_token:
        ratios = ratios / lengths
    loss = _loss(ratios[:, 0] - ratios[:, 1], config, denominator)
    with torch.no_grad():
        rewards, sums = config.beta * ratios, logprobs.sum(dim=0)  # [B, 2], [2]
        margins = rewards[:, 0] - rewards[:, 1]
        totals = {
            "accuracy": (margins > 0).to(margins.dtype).sum(),
            "margin": margins.sum(),
            "chosen_reward": rewards[:, 0].sum(),
            "rejected_reward": rewards[:, 1].sum(),
            "chosen_logprob": sums[0],
            "rejected_logprob": sums[1],
        }
    return loss, {name: total / denominator for name, total in totals.items()}


def _loss(gap: Tensor, config: DPOConfig, denominator: float) -> Tensor:
    if config.loss == "ipo":
        return ipo_loss(gap, config.beta, denominator)
    if config.loss == "hinge":
        return hinge_loss(gap, config.beta, denominator)
    if config.loss == "simpo":
        return simpo_loss(gap, config.beta, config.margin, denominator)
    if config.label_smoothing:
        return conservative_loss(gap, config.beta, config.label_smoothing, denominator)
    return sigmoid_loss(gap, config.beta, denominator)
