"""Files of answers to VLGuard: the published object from image to text, and our lines with row, id and question.

The published format has the image as its only key (seed page, section 4.5 and trap 14), so it cannot tell two rows
about one image apart; lines can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.rows import decoded, read_json, read_lines
from rlhf.errors import DataError, RowError
from rlhf.evaluation.vlguard import SUBSETS, Question, Subset


@dataclass(frozen=True, slots=True)
class Matched:
    """Answers of a file put to the questions of a subset; `missing` and `extra` are named by image or, of lines, by id.

    `elsewhere` is how many lines are of other subsets.
    """

    questions: list[Question]
    answers: list[str]
    missing: list[str]
    extra: list[str]
    elsewhere: int = 0

    @property
    def differing(self) -> list[str]:
        """Ids of which the file answers another question than the one that is missing."""
        return sorted(set(self.missing) & set(self.extra))


def read_answers(path: Path, subset: Subset, questions: Sequence[Question]) -> Matched:
    """The answers of a file for the questions of one subset.

    A file named *.jsonl has lines with id and response, and where they are known row (the index in the metadata),
    subset and question; lines of other subsets are left alone. Any other file is one JSON object from image to text:
    rows that share an image share its answer. Raises DataError for another content, for an answer that is no string,
    for a line that fits several questions, and where one is answered twice.
    """
    if path.suffix == ".jsonl":
        return _by_line(path, subset, questions)
    answers, images = _object(path), dict.fromkeys(one.row.image for one in questions)
    found = [one for one in questions if one.row.image in answers]
    missing = [one.row.image for one in questions if one.row.image not in answers]
    extra = [image for image in answers if image not in images]
    return Matched(found, [answers[one.row.image] for one in found], missing, extra)


def answer_line(question: Question, response: str, truncated: bool = False) -> dict[str, Any]:
    """One answer as a line that `read_answers` takes back."""
    row = question.row
    labels = {} if row.safe else {"category": row.category, "subcategory": row.subcategory}
    return {
        "row": row.index,
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


def _by_line(path: Path, subset: Subset, questions: Sequence[Question]) -> Matched:
    places: dict[str, list[int]] = {}
    for at, one in enumerate(questions):
        places.setdefault(one.row.id, []).append(at)
    answers: dict[int, str] = {}
    extra: list[str] = []
    elsewhere = 0
    for number, text in read_lines(path):
        try:
            line = _line(text)
            if line.get("subset", subset) != subset:
                elsewhere += 1
                continue
            place = _place(line, {at: questions[at] for at in places.get(line["id"], ())})
            if place is None:
                extra.append(line["id"])
            elif place in answers:
                raise RowError(f"id {line['id']} is answered twice; keep one")
            else:
                answers[place] = line["response"]
        except (ValueError, RowError) as error:
            raise RowError(str(getattr(error, "reason", error)), source=str(path), row=number) from None
    missing = [one.row.id for at, one in enumerate(questions) if at not in answers]
    found = sorted(answers)
    return Matched([questions[at] for at in found], [answers[at] for at in found], missing, extra, elsewhere)


def _place(line: Mapping[str, Any], named: Mapping[int, Question]) -> int | None:
    """Which of the questions with the line's id it answers. Raises RowError where it does not say."""
    fitting = [place for place, one in named.items() if line.get("question", one.text) == one.text]
    fitting = [place for place in fitting if named[place].row.index == line.get("row")] or fitting
    if len(fitting) > 1:
        texts = {named[place].text for place in fitting}
        needed = "row, its index in the metadata" if "question" in line or len(texts) < len(fitting) else "question"
        raise RowError(f"id {line['id']} stands for {len(fitting)} rows; give the line its {needed}")
    return fitting[0] if fitting else None


def _line(text: str) -> dict[str, Any]:
    line = decoded(text)
    if not isinstance(line, dict):
        raise RowError(f"expected an object, found {type(line).__name__}")
    for key, needed in (("id", True), ("response", True), ("subset", False), ("question", False)):
        if (needed or key in line) and not isinstance(line.get(key), str):
            raise RowError(f"{key!r} must be a string; a line has id, response, and maybe row, subset and question")
    if type(line.get("row", 0)) is not int:
        raise RowError(f"'row' must be a number, the row's index in the metadata, found {line['row']!r}")
    if line.get("subset", SUBSETS[0]) not in SUBSETS:
        raise RowError(f"'subset' is {line['subset']!r}; there are {', '.join(SUBSETS)}")
    return line
