"""From scores to token rewards, and from token rewards to advantages and returns."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.masking import last_index


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Reward of every response token: -coefficient * KL, plus the score on the row's last response token.

    Args:
        kl: [B, T] nats, as `rlhf.kl.token_kl` gives it.
        scores: [B] one score per sequence.
        mask: [B, T] bool, True on response tokens.
        kl_coefficient: score units per nat.

    Returns [B, T], zero where `mask` is False. Raises TrainingError for a row without response tokens.
    Source: Ziegler et al. 2019, eq. 2; seed section 3.2, step 5. The place is found by mask, never by column (T2).
    """
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    last = torch.nn.functional.one_hot(last_index(mask), mask.shape[1]).bool()  # [B, T]
    return torch.where(last, rewards + scores[:, None], rewards)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the response tokens of every row.

    Rows may start and end in different columns. A position where `mask` is False is skipped as if its column did not
    exist in that row: it adds no reward, no value and no discount, and the tokens on both sides of it are neighbours.
    The state after a row's last response token is terminal and worth zero.

    Args:
        rewards: [B, T] reward for taking token t.
        values: [B, T] value of the state before token t.
        mask: [B, T] bool, True on response tokens.
        gamma: discount per token.
        lam: 0 gives TD errors, 1 gives discounted returns minus values.

    Returns (advantages, returns), both [B, T] and zero where `mask` is False; returns = advantages + values.
    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16, as a backward recursion.
    """
    advantages = torch.zeros_like(values)
    next_advantage = next_value = torch.zeros_like(values[:, 0])  # [B]
    # Columns that count in no row (the prompt, with its hundreds of image tokens) are not visited.
    for t in reversed(mask.any(dim=0).nonzero().flatten().tolist()):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, next_advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)
