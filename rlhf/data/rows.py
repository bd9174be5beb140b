"""What the JSON readers share: opening a list of rows, and taking text and images out of one row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rlhf.data.images import verify_image
from rlhf.data.json_stream import is_text
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError, ImageError, RowError

Row = dict[str, Any]
Record = TypeVar("Record")

IMAGE_TAG = "<image>"
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(path: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The content of a JSON file; `pairs_hook` gets the keys and values of each object, repeated keys included.

    Raises DataError when the file is missing, not UTF-8 or not JSON.
    """
    try:
        return decoded(path.read_text(encoding="utf-8-sig"), pairs_hook)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", source=str(path)) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DataError(f"not JSON: {error}", source=str(path)) from None


def decoded(text: str, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """JSON read. Raises ValueError for what is none, and for what is nested more deeply than can be read."""
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def whole_characters(text: str) -> str:
    """The text with U+FFFD for every half of a character: JSON can escape one ("\\ud800"), and no file can hold it."""
    return _SURROGATE.sub("\ufffd", text)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank with their numbers from 0. A line feed ends a line, and not U+2028, which JSON may hold.

    Raises DataError when the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", source=str(path)) from None
    return [(number, line) for number, line in enumerate(lines) if line.strip()]


def read_rows(path: Path, parse: Callable[[Row], Record], rejected: RejectedRows) -> list[Record]:
    """Parse every object of a JSON list; a row whose `parse` raises DataError goes to `rejected` with its index.

    Raises DataError when the file as a whole is unusable.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"expected a JSON list of rows, found {type(rows).__name__}", source=str(path))
    records = []
    for index, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise RowError(f"expected an object, found {type(row).__name__}")
            records.append(parse(row))
        except DataError as error:
            rejected.add(type(error)(error.reason, source=str(path), row=index))
    return records


def read_json_rows(path: Path, parse: Callable[[Row, int], Record], rejected: RejectedRows) -> list[Record]:
    """Parse every line of a file of JSON objects with its number; bad lines go to `rejected`, blank ones nowhere.

    Raises DataError when the file cannot be read.
    """
    records = []
    for number, line in read_lines(path):
        try:
            row = decoded(line)
            if not isinstance(row, dict):
                raise RowError(f"expected an object, found {type(row).__name__}")
            records.append(parse(row, number))
        except DataError as error:
            rejected.add(type(error)(error.reason, source=str(path), row=number))
        except ValueError as error:
            rejected.add(RowError(f"not JSON: {error}", source=str(path), row=number))
    return records


def text_of(row: Row, key: str) -> str:
    """A required string that is not blank, without surrounding white space. Raises RowError."""
    if key not in row:
        raise RowError(f"key {key!r} is missing")
    value = row[key]
    if not isinstance(value, str):
        raise RowError(f"{key!r} must be a string, found {type(value).__name__}")
    if not value.strip():
        raise RowError(f"{key!r} is empty")
    if not is_text(value):
        raise RowError(f"{key!r} has half a character (a lone surrogate), which no file can hold")
    return value.strip()


def id_of(row: Row) -> str:
    """The row's id as text, which is an integer or a string that is not blank. Raises RowError."""
    value = row.get("id")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(row, "id")


def without_image_tag(text: str) -> tuple[str, int]:
    """The text without `<image>` placeholders (the template adds its own), and how many there were."""
    count = text.count(IMAGE_TAG)
    return (" ".join(text.split(IMAGE_TAG)).strip() if count else text), count


class UniqueIds:
    """Remembers ids of one file. `check` raises RowError when it meets one again."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def check(self, identifier: int | str) -> None:
        """Refuse an id that was checked before; 7 and "7" are the same id."""
        if str(identifier) in self._seen:
            raise RowError(f"id {identifier!r} occurs more than once in this file; give every row an id of its own")
        self._seen.add(str(identifier))


class ImageFolder:
    """Turns the `image` of rows into absolute paths below `root`, checking each distinct file at most once."""

    def __init__(self, root: Path, check: bool) -> None:
        self._root = root.absolute()
        self._check = check
        self._reasons: dict[str, str] = {}  # "" where the image is good

    def path_of(self, row: Row) -> str | None:
        """Absolute path of the row's image, None where the key is absent or null. Raises RowError or ImageError."""
        name = row.get("image")
        if name is None:
            return None
        if not isinstance(name, str) or not name:
            raise RowError(f"'image' must be a relative path, found {name!r}")
        return self.locate(name)

    def locate(self, name: str) -> str:
        """Absolute path of the image `name`; paths that lead out of the folder are refused."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise RowError(f"image path {name!r} must stay below the image folder")
        path = str(self._root / name)
        if self._check and path not in self._reasons:
            try:
                verify_image(path)
                self._reasons[path] = ""
            except ImageError as error:
                self._reasons[path] = error.reason
        if self._reasons.get(path):
            raise ImageError(f"image {name}: {self._reasons[path]}")
        return path
