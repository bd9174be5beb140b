"""What a run tells while it runs: numbers (JSON lines and TensorBoard), samples, and a progress line.

Both logs are append-only files of the run folder. A run that continues from step k first removes what was written
after k, since those steps will be repeated; a last line that a crash left half-written is removed too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from rlhf.errors import DataError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

_SECONDS_BETWEEN_LINES = 5.0


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an unfinished last line (a crash, or a run still writing) is left out.

    Raises DataError for a damaged line before the last, and for a line that is not an object.
    """
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last line end: nothing, or an unfinished line
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise DataError(f"line {number} is not JSON: {error}", source=str(path)) from None
        if not isinstance(row, dict):
            raise DataError(f"line {number} is not an object", source=str(path))
        rows.append(row)
    return rows


class MetricsLog:
    """Scalars per step, to `metrics.jsonl` and to TensorBoard event files below `tensorboard/`.

    `resume_from` is the step of the checkpoint that the run continues from; None starts anew.
    """

    def __init__(self, folder: Path, resume_from: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second; readers of this module do without

        self._lines = _StepLines(folder / METRICS_FILE, resume_from)
        if not resume_from:  # nothing of an earlier log counts
            shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
        first = 0 if resume_from is None else resume_from + 1
        self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line {"step", "time" (Unix seconds), **values}; NaN and infinity are written as null."""
        numbers = {name: float(value) for name, value in values.items()}
        self._lines.append([{"step": step, "time": time.time(), **numbers}])
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Write out what is buffered; the log takes no more lines."""
        self._lines.close()
        self._board.close()


class SamplesLog:
    """Rollouts worth looking at, to `samples.jsonl`: one line a row, each with its step."""

    def __init__(self, folder: Path, resume_from: int | None = None) -> None:
        self._lines = _StepLines(folder / SAMPLES_FILE, resume_from)

    def append(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows of one step."""
        self._lines.append([{"step": step, **row} for row in rows])

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class Progress:
    """How far a loop is and how it goes: a live bar on a terminal, a plain line every few seconds in a job's log.

    The first and the last step always get a line. Use as a context manager around the loop.
    """

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self._title, self._total, self._start = title, total, start
        self._began = time.monotonic()
        self._last_line: float | None = None
        self._bar = _live_bar() if sys.stdout.isatty() else None
        self._task = self._bar.add_task(title, total=total, completed=start, values="") if self._bar else None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, values: Mapping[str, float]) -> None:
        """Say that `step` of `total` steps are done and show a few values."""
        text = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, values=text)
            return
        now = time.monotonic()
        due = self._last_line is None or now - self._last_line >= _SECONDS_BETWEEN_LINES or step >= self._total
        if due:
            self._last_line = now
            sys.stdout.write(f"{self._title} {step}/{self._total} | {self._clock(step, now)} | {text}\n")
            sys.stdout.flush()

    def _clock(self, step: int, now: float) -> str:
        elapsed = now - self._began
        done = step - self._start
        if done <= 0:
            return _hours(elapsed)
        return f"{_hours(elapsed)}, {_hours(elapsed / done * (self._total - step))} left"


class _StepLines:
    """A JSON-lines file whose rows carry a step; opening it forgets the steps after `resume_from`."""

    def __init__(self, path: Path, resume_from: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [] if resume_from is None else [r for r in read_json_lines(path) if r["step"] <= resume_from]
            draft = path.with_suffix(".partial")
            draft.write_text("".join(map(_line, kept)), encoding="utf-8")
            os.replace(draft, path)  # a crash here must not cost the lines that are kept
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._file.write("".join(map(_line, rows)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    """The same value with every NaN and infinity replaced by None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _live_bar() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[values]}", markup=False),
        console=Console(),
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _hours(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
