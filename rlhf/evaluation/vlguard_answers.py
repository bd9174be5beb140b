"""Files of answers to VLGuard: the published object from image to text, and our lines with id, subset and question.

The published format has the image as its only key (seed page, section 4.5 and trap 14), so it cannot tell two rows
about one image apart; lines can.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.data.rows import decoded, read_json, read_lines
from rlhf.errors import DataError, RowError
from rlhf.evaluation.vlguard import Matched, Question, Subset, match


def read_answers(path: Path, subset: Subset, questions: Sequence[Question]) -> Matched:
    """The answers of a file for the questions of one subset.

    A file named *.jsonl has lines with id and response, and where they are known subset and question; lines of other
    subsets are left alone. Any other file is one JSON object from image to text. Raises DataError for another content,
    for an answer that is no string, and where one key is answered twice.
    """
    if path.suffix == ".jsonl":
        return match(questions, _lines(path, subset), lambda one: [(one.row.id, one.text), (one.row.id, None)])
    return match(questions, _object(path), lambda one: [one.row.image])


def answer_line(question: Question, response: str, truncated: bool = False) -> dict[str, Any]:
    """One answer as a line that `read_answers` takes back."""
    row = question.row
    labels = {} if row.safe else {"category": row.category, "subcategory": row.subcategory}
    return {
        "id": row.id,
        "subset": question.subset,
        "image": row.image,
        "question": question.text,
        **labels,
        "response": response,
        "truncated": truncated,
    }


def _object(path: Path) -> dict[str, str]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DataError(f"{key!r} is answered twice; keep one", source=str(path))
            found[key] = value
        return found

    content = read_json(path, unique)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(f"expected an object from image to text, found {kind}; lines are for *.jsonl", source=str(path))
    for key, value in content.items():
        if not isinstance(value, str):
            raise RowError(f"the answer must be a string, found {type(value).__name__}", source=str(path), row=key)
    return content


def _lines(path: Path, subset: Subset) -> dict[tuple[str, str | None], str]:
    found: dict[tuple[str, str | None], str] = {}
    for number, line in read_lines(path):
        try:
            row = _line(line)
        except (ValueError, RowError) as error:
            raise RowError(str(getattr(error, "reason", error)), source=str(path), row=number) from None
        if row.get("subset", subset) != subset:
            continue
        key = (row["id"], row.get("question"))
        if key in found:
            raise RowError(f"id {row['id']} is answered twice; keep one", source=str(path), row=number)
        found[key] = row["response"]
    return found


def _line(line: str) -> dict[str, Any]:
    row = decoded(line)
    if not isinstance(row, dict):
        raise RowError(f"expected an object, found {type(row).__name__}")
    for key, needed in (("id", True), ("response", True), ("subset", False), ("question", False)):
        if (needed or key in row) and not isinstance(row.get(key), str):
            raise RowError(f"{key!r} must be a string; a line has id, response, and maybe subset and question")
    return row
