"""Encoded rows kept small: a list of Python integers costs ten times what its numbers do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from rlhf.data.processor import TokenRow
from rlhf.data.rejected import RejectedRows

Item = TypeVar("Item")


def encode_all(
    items: Iterable[Item], encode: Callable[[Item], tuple[TokenRow, ...]], rejected: RejectedRows
) -> list[tuple[Item, tuple[TokenRow, ...]]]:
    """Encode every item once, before training starts, so that a row that does not fit is found now and counted."""
    return [(item, tuple(_shrink(row) for row in rows)) for item, rows in rejected.survivors(items, encode)]


def _shrink(row: TokenRow) -> TokenRow:
    return TokenRow(np.asarray(row.ids, dtype=np.int32), np.asarray(row.response, dtype=np.bool_), row.image)
