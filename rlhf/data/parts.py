"""Units of a long conversion as part files: complete under their final names, or not there."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_part(part: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines aside and rename; two processes that write the same part leave one of them whole."""
    part.parent.mkdir(parents=True, exist_ok=True)
    partial = aside(part)
    with partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(part)


def read_parts(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The lines of all parts in order."""
    for part in parts:
        with part.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def aside(target: Path) -> Path:
    """A name beside the target that no other process uses; process ids repeat on the nodes of a cluster."""
    return target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
