"""Rows that could not be used: written down, counted, and refused past a share."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf.errors import DataError

_SHOWN = 3


class RejectedRows:
    """Collects refused rows and writes each as a line {source, row, reason} of `rejected.jsonl`.

    With a path, an old file is emptied first (a restarted job reads its data again); without one, rows are only
    collected.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.errors: list[DataError] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    @property
    def count(self) -> int:
        """Rows refused so far."""
        return len(self.errors)

    def add(self, error: DataError) -> None:
        """Record one refused row; it is on disk when this returns."""
        self.errors.append(error)
        if self.path is not None:
            line = {"source": error.source, "row": error.row, "reason": error.reason}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def check(self, total: int, max_share: float = 0.0) -> None:
        """Raise DataError when more than `max_share` (0 to 1) of the `total` rows seen were refused.

        The message has the first few reasons and the file with all of them.
        """
        if self.count <= max_share * total:
            return
        first = "; ".join(str(error) for error in self.errors[:_SHOWN])
        more = f"; and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        where = f" (all of them: {self.path})" if self.path is not None else ""
        share = f"{self.count} of {total} rows were rejected, at most a share of {max_share:g} is allowed"
        raise DataError(f"{share}{where}: {first}{more}", source=self.errors[0].source)
