"""The order of rows: endless, shuffled, complete, and nothing but an integer to resume."""

from __future__ import annotations

import pytest

from rlhf.data.stream import rows_at


def test_an_epoch_has_every_row_once() -> None:
    for epoch in range(3):
        assert sorted(rows_at(10, seed=1, cursor=10 * epoch, count=10)) == list(range(10))


def test_pieces_of_any_size_give_the_same_order() -> None:
    whole = rows_at(7, seed=3, cursor=0, count=50)
    pieces = [row for start in range(0, 50, 5) for row in rows_at(7, seed=3, cursor=start, count=5)]
    assert pieces == whole


def test_epochs_and_seeds_differ() -> None:
    first, second = rows_at(100, 0, 0, 100), rows_at(100, 0, 100, 100)
    assert first != second
    assert first != rows_at(100, 1, 0, 100)
    assert first == rows_at(100, 0, 0, 100)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        rows_at(0, 0, 0, 1)
