from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError, ImageError, RowError


def test_lines_have_source_row_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rejected.jsonl"
    rejected = RejectedRows(path)
    assert path.read_text() == ""
    rejected.add(RowError("empty é", source="a.json", row=3))
    rejected.add(ImageError("gone", source="b.json", row="x"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"source": "a.json", "row": 3, "kind": "RowError", "reason": "empty é"},
        {"source": "b.json", "row": "x", "kind": "ImageError", "reason": "gone"},
    ]
    assert rejected.count == 2


def test_a_new_collector_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    RejectedRows(path).add(RowError("old"))
    assert RejectedRows(path).count == 0
    assert path.read_text() == ""


def test_check_names_reasons_and_file(tmp_path: Path) -> None:
    rejected = RejectedRows(tmp_path / "rejected.jsonl")
    for row in range(5):
        rejected.add(RowError(f"reason{row}", source="a.json", row=row))
    with pytest.raises(DataError) as caught:
        rejected.check(100)
    message = str(caught.value)
    assert "reason0" in message
    assert "reason2" in message
    assert "5 of 100" in message
    assert "2 more" in message
    assert str(tmp_path / "rejected.jsonl") in message


@pytest.mark.parametrize(("bad", "total", "share", "fails"), [
    (0, 0, 0.0, False), (0, 10, 0.0, False), (1, 10, 0.0, True), (1, 10, 0.1, False), (2, 10, 0.1, True),
    (10, 10, 1.0, False),
])  # fmt: skip
def test_share(bad: int, total: int, share: float, fails: bool) -> None:
    rejected = RejectedRows()
    for row in range(bad):
        rejected.add(RowError("x", row=row))
    outcome = None
    try:
        rejected.check(total, share)
    except DataError as error:
        outcome = error
    assert (outcome is not None) == fails
