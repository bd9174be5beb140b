"""Supervised fine-tuning: imitate the response tokens of a conversation."""

from __future__ import annotations

from torch import Tensor

from rlhf.batch import TokenBatch
from rlhf.losses import Stats, next_token_loss


def sft_objective(logprobs: Tensor, batch: TokenBatch, denominator: float) -> tuple[Tensor, Stats]:
    """Loss of some of a batch's rows.

    Args:
        logprobs: [B, T] of the tokens in `batch`, with gradient.
        batch: the same B rows; the response tokens (EOS included) are imitated.
        denominator: response tokens in the global batch.

    Returns the loss and, as mean over tokens: nll (nats). Errors: `next_token_loss`.
    """
    return next_token_loss(logprobs, batch.response_mask, denominator)
