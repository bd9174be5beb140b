"""Which rows come next: an endless, shuffled, resumable order whose whole state is one integer."""

from __future__ import annotations

import random
from functools import lru_cache


def rows_at(total: int, seed: int, cursor: int, count: int) -> list[int]:
    """Row indices at positions cursor .. cursor + count of an endless stream over `total` rows.

    Every epoch is a fresh permutation; no row is dropped or repeated within an epoch, at its end either.
    """
    if total < 1:
        raise ValueError("a stream needs at least one row")
    positions = range(cursor, cursor + count)
    return [_permutation(total, seed, position // total)[position % total] for position in positions]


@lru_cache(maxsize=4)
def _permutation(total: int, seed: int, epoch: int) -> list[int]:
    order = list(range(total))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order
