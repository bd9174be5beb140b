"""Statistics over the positions that count. Masks are bool, True where a position counts, of the values' shape.

What stands at the other positions never matters: they are selected away, not multiplied by zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.errors import TrainingError


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` is True; a scalar, 0 for an empty mask."""
    return torch.where(mask, values, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True; a scalar. Raises TrainingError for an empty mask."""
    count = int(mask.sum())
    if count == 0:
        raise TrainingError("no position counts: the mean over an empty mask is undefined")
    return masked_sum(values, mask) / count


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by n) where `mask` is True; a scalar. Raises TrainingError for an empty mask."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the counted values to variance one.

    Args:
        values: any shape.
        mask: bool, same shape.
        shift_mean: True moves their mean to zero; False keeps the mean that they had.

    Returns a tensor of the same shape, zero where `mask` is False. Raises TrainingError for an empty mask.
    """
    mean = masked_mean(values, mask)
    # The epsilon keeps values that do not vary finite.
    whitened = (values - mean) * torch.rsqrt(masked_var(values, mask) + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns); a scalar, 1 for a perfect critic, 0 for a constant one.

    Returns that do not vary leave nothing to explain: 0. Raises TrainingError for an empty mask.
    """
    total = masked_var(returns, mask)
    if float(total) == 0.0:
        return torch.zeros_like(total)
    return 1.0 - masked_var(returns - values, mask) / total


def last_index(mask: Tensor) -> Tensor:
    """Column of the last True of every row: [B, T] bool -> [B] long. Raises TrainingError for a row without one."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, columns, -1).amax(dim=1)
    empty = (last < 0).nonzero().flatten().tolist()
    if empty:
        raise TrainingError(f"no position counts in row(s) {empty}: a response has at least one token")
    return last
