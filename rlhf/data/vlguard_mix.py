"""Safety conversations mixed with helpful ones: for fine-tuning a released model, or as part of instruction tuning.

Source: VLGuard seed page, sections 3.1 (2,000 and 5,000 rows), 3.2 (appended once to everything) and 5.3 to 5.5
(ablations). Files of helpful rows are streamed: the instruction data of LLaVA have a gigabyte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from rlhf.data.json_stream import plan_spans, read_span
from rlhf.data.rows import Row, read_json
from rlhf.data.subset import nested_subset
from rlhf.errors import ConfigError, DataError, RowError

Source = Literal["llava", "alpaca"]
_SPAN = 2000  # rows read at a time


@dataclass
class Mixture:
    """What was written: rows of both kinds, and ids that had to change because they were taken."""

    helpful: int = 0
    safety: int = 0
    pool: int = 0  # helpful rows that a sample was drawn from: those without an id of a safety row
    renamed: dict[str, str] = field(default_factory=dict)  # new id -> the id that was taken

    @property
    def safety_share(self) -> float:
        """Safety rows among all, 0 to 1."""
        total = self.helpful + self.safety
        return self.safety / total if total else 0.0


def read_safety(path: Path, rows: int | None, hold_out: Sequence[str], seed: int) -> list[Row]:
    """The conversations of a converted VLGuard file, in file order: without categories, then at most so many rows.

    Smaller numbers of rows are contained in larger ones of the same seed. Safe images have no category, so holding one
    out removes unsafe images only. Raises ConfigError for a category or number that the file does not have, DataError
    for a file of anything else.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(row, dict) and "conversations" in row for row in content):
        raise DataError("expected conversations; convert with jobs/prepare_vlguard.py first", source=str(path))
    if (nameless := next((place for place, row in enumerate(content) if "id" not in row), None)) is not None:
        raise RowError("key 'id' is missing", source=str(path), row=nameless)
    names = {row["harmful_category"] for row in content if "harmful_category" in row}
    if unknown := sorted(set(hold_out) - names):
        known = ", ".join(sorted(names))
        raise ConfigError([f"hold_out: no category {', '.join(unknown)} in {path}; there are {known}"])
    left = [row for row in content if row.get("harmful_category") not in hold_out]
    if rows is None:
        return left
    if rows > len(left):
        raise ConfigError([f"safety_rows: {rows} are asked for, {path} has {len(left)}; lower it"])
    chosen = nested_subset(range(len(left)), rows, seed)
    return [row for place, row in enumerate(left) if place in chosen]


def mix(
    output: Path, safety: Sequence[Row], helpful: Path | None, source: Source, helpful_rows: int | None, seed: int
) -> Mixture:
    """Write the helpful rows in file order and, once, the safety rows behind them; every id stands once.

    `helpful_rows` is how many are drawn without replacement, by `seed` and nested in larger samples; None takes all.
    A row with the id of a safety row is no candidate of a sample. Rows that share an id are: LLaVA's instruction data
    have one id for all conversations about an image, so all but the first that is taken get a new one. Raises
    ConfigError for a sample larger than its pool, RowError for a row that is no conversation.
    """
    made = Mixture()
    taken = {str(row["id"]) for row in safety}
    wanted: set[int] | None = None
    if helpful is not None and helpful_rows is not None:
        wanted = _sample(helpful, source, helpful_rows, seed, taken, made)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.partial")
    used: dict[str, int] = {}
    with draft.open("w", encoding="utf-8") as file:
        if helpful is not None and helpful_rows != 0:
            for index, row in _rows(helpful, source):
                if wanted is None or index in wanted:
                    made.helpful += 1
                    _write(file, _with_own_id(row, used, made), first=len(used) == 1)
        for row in safety:
            made.safety += 1
            _write(file, _with_own_id(row, used, made), first=len(used) == 1)
        file.write("\n]\n" if used else "[]\n")
    draft.replace(output)
    return made


def _sample(path: Path, source: Source, count: int, seed: int, taken: set[str], made: Mixture) -> set[int]:
    """The places of the drawn rows."""
    if count == 0:
        return set()
    pool = [index for index, row in _rows(path, source) if str(row["id"]) not in taken]
    made.pool = len(pool)
    if count > len(pool):
        raise ConfigError([f"helpful_rows: {count} are asked for, {path} has {len(pool)} without a safety row's id"])
    return nested_subset(pool, count, seed)


def _rows(path: Path, source: Source) -> Iterator[tuple[int, Row]]:
    for span in plan_spans(path, _SPAN):
        for place, row in enumerate(read_span(path, span)):
            index = span.first_row + place
            try:
                yield index, _conversation(row) if source == "llava" else _from_alpaca(row, index)
            except RowError as error:
                raise RowError(error.reason, source=str(path), row=index) from None


def _conversation(row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list) or "id" not in row:
        raise RowError("expected an object with id and conversations; is helpful_format right?")
    return row


def _from_alpaca(row: Any, index: int) -> Row:
    """One turn each from instruction, input (which may be empty) and output; Alpaca has no ids and no images."""
    keys = ("instruction", "input", "output")
    if not isinstance(row, dict) or not all(isinstance(row.get(key, ""), str) for key in keys):
        raise RowError("expected an object with instruction, input and output; is helpful_format right?")
    if not row.get("instruction", "").strip() or not row.get("output", "").strip():
        raise RowError("'instruction' or 'output' is missing or empty; remove the row")
    asked = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part.strip())
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": row["output"]}]
    return {"id": f"alpaca_{index}", "conversations": turns}


def _with_own_id(row: Row, used: dict[str, int], made: Mixture) -> Row:
    """The row, with "#2" and so on behind an id that was used; `used` has the last such number of every id."""
    name = identifier = str(row["id"])
    number = used.get(identifier, 0)
    while name in used:
        number += 1
        name = f"{identifier}#{number}"
    used[name] = 1
    used[identifier] = max(number, 1)
    if name == identifier:
        return row
    made.renamed[name] = identifier
    return {**row, "id": name}


def _write(file: IO[str], row: Row, first: bool) -> None:
    file.write(("[\n" if first else ",\n") + json.dumps(row, ensure_ascii=False))
