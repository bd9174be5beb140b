"""A JSON list read one row at a time, whatever its size, with the place of every row in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import DataError

_CHUNK = 2**20  # bytes
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of a file: bytes `start` to `end`, the first one's index and how many there are."""

    start: int
    end: int
    first_row: int
    rows: int


def plan_spans(path: Path, rows_per_span: int) -> list[Span]:
    """Cut a JSON list into spans of so many rows. Raises DataError where the file is not a JSON list."""
    spans: list[Span] = []
    start, end, count, total = 0, 0, 0, 0
    for _, low, high in _rows(path):
        start = low if count == 0 else start
        end, count, total = high, count + 1, total + 1
        if count == rows_per_span:
            spans.append(Span(start, end, total - count, count))
            count = 0
    if count:
        spans.append(Span(start, end, total - count, count))
    return spans


def read_span(path: Path, span: Span) -> Iterator[Any]:
    """The rows of a span. Bytes that are not UTF-8 stay as lone surrogates: `is_text` finds them."""
    with path.open("rb") as file:
        file.seek(span.start)
        text = file.read(span.end - span.start).decode("utf-8", "surrogateescape")
    decoder, place = json.JSONDecoder(), 0
    for _ in range(span.rows):
        row, place = decoder.raw_decode(text, _skip(text, place, _SPACE + ","))
        yield row


def stream_rows(path: Path) -> Iterator[Any]:
    """Every row of a JSON list, with one chunk of the file in memory. Raises what `plan_spans` raises."""
    return (row for row, _, _ in _rows(path))


def is_text(value: str) -> bool:
    """Whether a string that was read is UTF-8."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _rows(path: Path) -> Iterator[tuple[Any, int, int]]:
    """Every row with its first byte and the byte after its last."""
    decoder = json.JSONDecoder()
    try:
        file = path.open(encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", source=str(path)) from None
    with file:
        buffer = file.read(_CHUNK)
        place = _skip(buffer, 0, _SPACE + "\ufeff")
        if buffer[place : place + 1] != "[":
            raise DataError("expected a JSON list of rows", source=str(path))
        read, byte = place + 1, _size(buffer[: place + 1])  # of the buffer, and of the file
        while True:
            place = _skip(buffer, read, _SPACE + ",")
            byte, read = byte + place - read, place
            if buffer[place : place + 1] == "]":
                return
            problem = ""
            try:
                row, after = decoder.raw_decode(buffer, place)
            except ValueError as error:
                problem = str(error)
            if problem or after == len(buffer):  # the row, or a number, may go on
                more = file.read(max(_CHUNK, len(buffer) - place))  # doubling: a long row costs no square
                if not more and problem:
                    raise DataError(f"not JSON after byte {byte}: {problem}", source=str(path))
                if more:
                    buffer, read = buffer[place:] + more, 0
                    continue
            start = byte
            byte, read = byte + _size(buffer[place:after]), after
            yield row, start, byte


def _skip(text: str, place: int, characters: str) -> int:
    while place < len(text) and text[place] in characters:
        place += 1
    return place


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
