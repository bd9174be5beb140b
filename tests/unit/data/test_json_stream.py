"""A JSON list in spans: the same rows as json.load, whatever is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.data import json_stream
from rlhf.data.json_stream import is_text, plan_spans, read_span
from rlhf.errors import DataError

ROWS = [
    {"id": 1, "text": "plain"},
    {"id": "2", "text": 'quoted ] } \\ " , [', "deep": [[1, 2], {"a": None}]},
    {"id": 3, "text": "\U0001f600 \u4e00 \u00e9" * 50},
    [1, 2],
    "a string",
    -1.5e3,
    None,
] * 20


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("chunk", [16, 101, 2**20])
def test_spans_give_every_row_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, ascii_only: bool, chunk: int
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    spans = plan_spans(path, 9)
    assert [span.rows for span in spans] == [9] * 15 + [5]
    assert [span.first_row for span in spans] == list(range(0, 140, 9))
    assert [row for span in spans for row in read_span(path, span)] == ROWS


def test_bytes_that_are_not_utf8_cost_their_row_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf[{"a": "good"}, {"a": "b\xff\xfed"}, {"a": "\xc3\xa9"}]')
    (span,) = plan_spans(path, 10)
    rows = list(read_span(path, span))
    assert [is_text(row["a"]) for row in rows] == [True, False, True]
    assert rows[2]["a"] == "\u00e9"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": 1}', "expected a JSON list"),
        ("", "expected a JSON list"),
        ('[{"a": 1}, {"a', "not JSON after byte 11"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError, match=reason):
        plan_spans(path, 10)


def test_an_empty_list_has_no_spans(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(" [ ] ")
    assert plan_spans(tmp_path / "rows.json", 10) == []
