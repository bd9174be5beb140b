"""Loss functions: tensors in, (loss, statistics) out.

Every loss is a sum divided by `denominator`, the count of what it sums over (tokens or pairs) in the whole global
batch. Every statistic is divided the same way and detached. Both can therefore be added over micro-batches and ranks,
and neither the total nor its gradient depends on how the batch was split. A piece in which nothing counts gives zero.
All functions raise TrainingError for a denominator that is not positive.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rlhf.errors import ConfigError, TrainingError
from rlhf.masking import masked_sum

Stats = dict[str, Tensor]
PairLoss = Literal["logsigmoid", "spa_vl"]


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: float,
    importance: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate, negated.

    Args:
        logprobs: [B, T] of the policy now, with gradient.
        old_logprobs: [B, T] of the policy before any update on these rollouts.
        advantages: [B, T].
        mask: [B, T] bool, True on response tokens.
        clip_range: the ratio is clipped to [1 - clip_range, 1 + clip_range].
        denominator: response tokens in the global batch.
        importance: [B, T] constant weights per token (see `truncated_importance`); None means ones.

    Returns the loss and, as means over tokens: clip_fraction (the clip is what decides the loss), ratio, and
    approx_kl (k3 from the old to the new policy, nats).
    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7.
    """
    _check(denominator)
    # Masked before exp: an overflow in the padding would turn into a NaN gradient.
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    loss = torch.maximum(unclipped, clipped)
    if importance is not None:
        loss = loss * importance
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_sum((clipped > unclipped).to(ratio.dtype), mask) / denominator,
            "ratio": masked_sum(ratio, mask) / denominator,
            "approx_kl": masked_sum(torch.expm1(log_ratio) - log_ratio, mask) / denominator,
        }
    return masked_sum(loss, mask) / denominator, stats


def truncated_importance(learner_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(p_learner / p_engine, cap) per sampled token: corrects for an engine that is not quite the learner.

    [B, T] in and out, without gradient, 1 where `mask` is False.
    Source: Ionides 2008, "Truncated Importance Sampling", applied per token.
    """
    gap = torch.where(mask, learner_logprobs - engine_logprobs, 0.0).detach()
    return torch.where(mask, gap.exp().clamp(max=cap), 1.0)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float, denominator: float
) -> tuple[Tensor, Stats]:
    """Half the squared error of the values, where a value may not gain by leaving old_values +- clip_range.

    Args:
        values: [B, T] of the critic now, with gradient.
        old_values: [B, T] of the critic before any update on these rollouts.
        returns: [B, T].
        mask: [B, T] bool, True on response tokens.
        clip_range: in units of the value.
        denominator: response tokens in the global batch.

    Returns the loss and, as means over tokens: clip_fraction (the clip is what decides the loss) and
    error (squared error without the clip). Source: seed section 3.2, step 8.
    """
    _check(denominator)
    change = torch.where(mask, values - old_values, 0.0)
    target = torch.where(mask, returns - old_values, 0.0)
    unclipped = (change - target).square()
    clipped = (change.clamp(-clip_range, clip_range) - target).square()
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_sum((clipped > unclipped).to(values.dtype), mask) / denominator,
            "error": masked_sum(unclipped, mask) / denominator,
        }
    return 0.5 * masked_sum(torch.maximum(unclipped, clipped), mask) / denominator, stats


def pairwise_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, denominator: float, kind: PairLoss, wanted_margin: float = 0.0
) -> tuple[Tensor, Stats]:
    """Bradley-Terry loss of preference pairs.

    Args:
        chosen_scores: [B].
        rejected_scores: [B], aligned with the chosen ones.
        denominator: pairs in the global batch.
        kind: "logsigmoid", -log s(d - m) with d the margin and m the wanted one; "spa_vl", -log(s(d - m) + 1e-5),
            which is capped near 11.5 and loses its gradient for badly wrong pairs.
        wanted_margin: m, by which a chosen answer should win; 0 gives the plain losses.

    Returns the loss and, as means over pairs and regardless of m: accuracy (a tie is wrong) and margin.
    Raises TrainingError for different shapes, ConfigError for another kind.
    Source: Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; seed section 2, "Loss"; m is m(r) of Touvron et al. 2023
    (arXiv 2307.09288), eq. 2, the same for every pair because SPA-VL does not grade its preferences.
    """
    _check(denominator)
    if chosen_scores.shape != rejected_scores.shape or chosen_scores.ndim != 1:
        raise TrainingError(f"scores must both be [B]: {[*chosen_scores.shape]} and {[*rejected_scores.shape]}")
    margin = chosen_scores - rejected_scores
    if kind == "logsigmoid":
        loss = -functional.logsigmoid(margin - wanted_margin)
    elif kind == "spa_vl":
        loss = -((margin - wanted_margin).sigmoid() + 1e-5).log()
    else:
        raise ConfigError([f"pairwise loss {kind!r} is unknown: choose logsigmoid or spa_vl"])
    seen = margin.detach()
    stats = {"accuracy": (seen > 0).to(seen.dtype).sum() / denominator, "margin": seen.sum() / denominator}
    return loss.sum() / denominator, stats


def next_token_loss(logprobs: Tensor, mask: Tensor, denominator: float) -> tuple[Tensor, Stats]:
    """Negative log-likelihood of the counted tokens.

    Args:
        logprobs: [B, T] of the target tokens, with gradient.
        mask: [B, T] bool, True on the tokens to imitate.
        denominator: such tokens in the global batch.

    Returns the loss and, as mean over tokens: nll (nats).
    """
    _check(denominator)
    loss = -masked_sum(logprobs, mask) / denominator
    return loss, {"nll": loss.detach()}


def _check(denominator: float) -> None:
    if not denominator > 0:
        raise TrainingError(f"the loss denominator is {denominator}: nothing counts in the global batch")
