"""Finished pieces of work on disk, written as they finish: what makes inference and judging resumable.

Every process appends to a part file of its own, so a line that a kill tore is always the last of its part and is left
out when the parts are read again. A piece is one line: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rlhf.errors import CheckpointError
from rlhf.metrics import read_json_lines

BINDING_FILE = "made_by.json"
_PART = re.compile(r"part-(\d+)\.jsonl")


class Ledger:
    """Values by key in `folder`. Use as a context manager; one process at a time (the run folder's lock sees to it).

    `made_by` says what the values depend on beside their keys (model, decoding). Raises CheckpointError if the folder
    was made by something else: answers of two models must not end up in one file.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _bind(folder, dict(made_by))
        self._folder = folder
        self._file: IO[str] | None = None
        self.entries: dict[str, dict[str, Any]] = {}
        for part in self._parts():
            for line in read_json_lines(part):
                self.entries[line["key"]] = line["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Record one finished piece; it is on disk when this returns. A later value for a key replaces the earlier."""
        if self._file is None:
            number = max((_number(part) for part in self._parts()), default=0) + 1
            self._file = (self._folder / f"part-{number:04d}.jsonl").open("x", encoding="utf-8")
        self._file.write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries[key] = value

    def _parts(self) -> list[Path]:
        return sorted((path for path in self._folder.iterdir() if _PART.fullmatch(path.name)), key=_number)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _number(part: Path) -> int:
    return int(part.name.removeprefix("part-").removesuffix(".jsonl"))


def _bind(folder: Path, made_by: dict[str, str]) -> None:
    file = folder / BINDING_FILE
    if not file.exists():
        write_whole(file, json.dumps(made_by, indent=2))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [
        f"{name}: {before.get(name)!r} then, {made_by.get(name)!r} now"
        for name in sorted({*before, *made_by})
        if before.get(name) != made_by.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} holds results of something else:\n  "
            + "\n  ".join(changed)
            + "\nset run.name to start beside it, or give --fresh to begin again"
        )
