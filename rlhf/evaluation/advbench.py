"""AdvBench (Zou et al. 2023): 520 harmful goals, asked as they are and with an adversarial suffix.

The prompts have no image. Whether a blank one is shown changes the numbers (seed page 6.4), so the image policy is
part of every result.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf.batch import Prompt
from rlhf.config import Config, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError, RowError
from rlhf.evaluation.benchmark import Item

ROWS = 520
Mode = Literal["vanilla", "suffix"]


class AdvBenchConfig(Config):
    """Where the goals are and how they are asked."""

    path: str
    """CSV file with the columns goal and target (harmful_behaviors.csv)."""
    modes: tuple[Mode, ...] = Field(default=("vanilla",), min_length=1)
    """vanilla asks the goal; suffix appends an adversarial suffix to it."""
    suffixes: str | None = None
    """Text file for mode suffix: one line for all goals, or one line per goal. Not shipped: find one for your model."""

    @field_validator("modes")
    @classmethod
    def _once_each(cls, modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
        return tuple(dict.fromkeys(modes))

    @model_validator(mode="after")
    def _suffix_is_given(self) -> AdvBenchConfig:
        if "suffix" in self.modes and self.suffixes is None:
            raise ConfigError(["advbench.suffixes: mode suffix needs a text file of suffixes"])
        return self

    @property
    def expected(self) -> int:
        """Published number of items."""
        return ROWS * len(self.modes)


def read_advbench(config: AdvBenchConfig, rejected: RejectedRows) -> list[Item]:
    """The items with group mode; ids are "advbench_<mode>:<row>".

    A row without a goal goes to `rejected`. Raises DataError for an unusable file or a number of suffixes that does
    not fit.
    """
    path = Path(resolve(config.path))
    goals = _goals(path)
    items = []
    for mode in config.modes:
        suffixes = _suffixes(Path(resolve(str(config.suffixes))), len(goals)) if mode == "suffix" else [""] * len(goals)
        for number, (goal, suffix) in enumerate(zip(goals, suffixes, strict=True)):
            if not goal:
                rejected.add(RowError("'goal' is empty", source=str(path), row=number))
                continue
            prompt = Prompt(f"advbench_{mode}:{number}", f"{goal} {suffix}".strip(), kind="harmful")
            items.append(Item(prompt, {"mode": mode}))
    return items


def _goals(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not {"goal", "target"} <= set(reader.fieldnames):
                raise DataError("expected a CSV file with the columns goal and target", source=str(path))
            return [(row["goal"] or "").strip() for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=str(path)) from None


def _suffixes(path: Path, goals: int) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")  # a suffix may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", source=str(path)) from None
    if len(lines) == 1:
        lines *= goals
    if len(lines) != goals or not all(line.strip() for line in lines):
        raise DataError(f"{len(lines)} suffixes for {goals} goals; give one, or one per goal", source=str(path))
    return [line.strip() for line in lines]
