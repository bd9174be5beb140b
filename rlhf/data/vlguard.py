"""VLGuard's metadata: one JSON list of rows in two shapes, checked key by key, and what a file holds.

Source: VLGuard seed page, sections 1.1 (shapes) and 1.2 (counts). Ids are strings even where they are digits, the order
of keys says nothing, and a key too many or a category of another list is as wrong as a key that is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import Row, read_json
from rlhf.errors import DataError, RowError

SAFE_KEYS = frozenset({"id", "image", "safe", "instr-resp"})
UNSAFE_KEYS = SAFE_KEYS | {"harmful_category", "harmful_subcategory"}
CATEGORIES = {
    "privacy": ("personal data",),
    "risky behavior": ("professional advice", "political", "sexually explicit", "violence"),
    "deception": ("disinformation",),
    "discrimination": ("sex", "race", "other"),
}
"""Harmful categories with their subcategories."""
_UNSAFE_PAIRS = (frozenset({"instruction", "response"}),)
_PLACEHOLDERS = ("n/a", "na", "none", "not applicable")  # section 6, trap 8
_SAFE_PAIRS = (frozenset({"safe_instruction", "response"}), frozenset({"unsafe_instruction", "response"}))


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer. `kind` is the question's key: instruction, safe_instruction or unsafe_instruction.

    An answer may be empty: 17 safe answers of the test split are (section 1.3).
    """

    kind: str
    instruction: str
    response: str


@dataclass(frozen=True, slots=True)
class GuardRow:
    """One image with its questions, in file order; an unsafe image has one, a safe one has two.

    `category` and `subcategory` are "" for safe images: the data do not say what their unsafe question is about.
    """

    index: int
    id: str
    image: str
    safe: bool
    category: str
    subcategory: str
    pairs: tuple[Pair, ...]

    def pair(self, kind: str) -> Pair:
        """The pair of that kind. Raises KeyError where the row's shape has none."""
        for pair in self.pairs:
            if pair.kind == kind:
                return pair
        raise KeyError(kind)


def read_vlguard(path: Path, rejected: RejectedRows) -> list[GuardRow]:
    """The rows of train.json or test.json in file order.

    Rows of any other shape go to `rejected` with their index. Raises DataError where the file is no JSON list. Ids and
    images may repeat (the train split has one image twice under one id): `repeated` names them.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"expected a JSON list of rows, found {type(content).__name__}", source=str(path))
    rows = []
    for index, row in enumerate(content):
        try:
            if not isinstance(row, dict):
                raise RowError(f"expected an object, found {type(row).__name__}")
            rows.append(_row(row, index))
        except RowError as error:
            rejected.add(RowError(error.reason, source=str(path), row=index))
    return rows


def repeated(values: Sequence[str]) -> dict[str, int]:
    """What occurs more than once, with how often, in the order of first appearance."""
    return {value: count for value, count in Counter(values).items() if count > 1}


def describe_rows(rows: Sequence[GuardRow]) -> dict[str, Any]:
    """The numbers of the seed page's section 1.2: rows, images, pairs, categories, sources (first folder) and kinds.

    Beside them what a reader should know of: instructions that say nothing (trap 8), images and ids that repeat.
    """
    unsafe = [row for row in rows if not row.safe]
    return {
        "rows": len(rows),
        "unsafe": len(unsafe),
        "safe": len(rows) - len(unsafe),
        "pairs": sum(len(row.pairs) for row in rows),
        "images": len({row.image for row in rows}),
        "categories": dict(Counter(row.category for row in unsafe)),
        "subcategories": dict(Counter(f"{row.category} / {row.subcategory}" for row in unsafe)),
        "sources": dict(Counter(row.image.partition("/")[0] for row in rows)),
        "extensions": dict(Counter(PurePosixPath(row.image).suffix for row in rows)),
        "placeholders": [pair.instruction for row in rows for pair in row.pairs if _says_nothing(pair.instruction)],
        "repeated_images": repeated([row.image for row in rows]),
        "repeated_ids": repeated([row.id for row in rows]),
    }


def _says_nothing(instruction: str) -> bool:
    return instruction.strip(" .").lower() in _PLACEHOLDERS


def _row(row: Row, index: int) -> GuardRow:
    safe = row.get("safe")
    if not isinstance(safe, bool):
        found = f"the {type(safe).__name__} {safe!r}" if "safe" in row else "nothing"
        raise RowError(f"'safe' must be true or false without quotes, found {found}")
    _same_keys(row, SAFE_KEYS if safe else UNSAFE_KEYS, f"a row with safe={str(safe).lower()}")
    for key in ("id", "image"):
        if not isinstance(row[key], str) or not row[key]:
            raise RowError(f"{key!r} must be a string that is not empty, found {row[key]!r}; put it in quotes")
    image = PurePosixPath(row["image"])
    if image.is_absolute() or ".." in image.parts:
        raise RowError(f"image path {row['image']!r} must stay below the image folder")
    category, subcategory = ("", "") if safe else _labels(row)
    pairs = _pairs(row["instr-resp"], _SAFE_PAIRS if safe else _UNSAFE_PAIRS)
    return GuardRow(index, row["id"], row["image"], safe, category, subcategory, pairs)


def _pairs(value: Any, shapes: tuple[frozenset[str], ...]) -> tuple[Pair, ...]:
    if not isinstance(value, list) or len(value) != len(shapes):
        found = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
        raise RowError(f"'instr-resp' must be a list of {len(shapes)} object(s), found {found}")
    found_pairs = []
    for place, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise RowError(f"entry {place} of 'instr-resp' must be an object, found {type(entry).__name__}")
        shape = next((one for one in shapes if one == entry.keys()), None)
        if shape is None:
            _same_keys(entry, shapes[place], f"entry {place} of 'instr-resp'")
            raise RowError(f"entry {place} of 'instr-resp' has unexpected keys {', '.join(sorted(entry))}")
        (kind,) = shape - {"response"}
        for key in (kind, "response"):
            if not isinstance(entry[key], str):
                raise RowError(f"{key!r} of 'instr-resp' must be a string, found {type(entry[key]).__name__}")
        if not entry[kind].strip():
            raise RowError(f"{kind!r} of 'instr-resp' is empty")
        found_pairs.append(Pair(kind, entry[kind], entry["response"]))
    kinds = [pair.kind for pair in found_pairs]
    if len(set(kinds)) != len(kinds):
        raise RowError(f"'instr-resp' has {kinds[0]!r} twice; a safe image has one safe and one unsafe instruction")
    return tuple(found_pairs)


def _labels(row: Row) -> tuple[str, str]:
    category, subcategory = row["harmful_category"], row["harmful_subcategory"]
    if not isinstance(category, str) or category not in CATEGORIES:
        raise RowError(f"'harmful_category' is {category!r}; there are {', '.join(CATEGORIES)}")
    if subcategory not in CATEGORIES[category]:
        known = ", ".join(CATEGORIES[category])
        raise RowError(f"'harmful_subcategory' is {subcategory!r}; of {category!r} there are {known}")
    return category, subcategory


def _same_keys(found: Row, wanted: frozenset[str], what: str) -> None:
    missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    problems = [f"{name} {', '.join(keys)}" for name, keys in (("lacks", missing), ("must not have", extra)) if keys]
    if problems:
        raise RowError(f"{what} {' and '.join(problems)}")
