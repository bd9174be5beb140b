"""One page that sets finished runs side by side: what each reached on the same unseen prompts, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.data.rows import read_json
from rlhf.errors import DataError
from rlhf.evaluation.before_after import RATES
from rlhf.metrics import METRICS_FILE, read_json_lines
from rlhf.report import environment
from rlhf.selection import SELECTION_FILE

COMPARISON_FILE = "report.html"
_TITLES = {
    "harmful_refusal_rate": "harmful refused",
    "biometric_refusal_rate": "biometric refused",
    "benign_accuracy": "benign right",
    "over_refusal_rate": "benign refused",
}
_HIGH_IS_GOOD = {"harmful_refusal_rate", "biometric_refusal_rate", "benign_accuracy"}


@dataclass(frozen=True)
class Cell:
    """One rate after training with its 95 % interval, all in percent, and how far it moved."""

    value: float
    low: float
    high: float
    change: float
    good: bool  # a high value is wanted


@dataclass(frozen=True)
class Line:
    """One run of the table."""

    name: str
    method: str
    prompts: int
    cells: list[Cell]
    score: str
    minutes: str


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Write `target/report.html` about the runs in `folders` and return its path.

    Raises DataError when a folder has no finished before/after evaluation, or when runs answered different prompts:
    their rates would not be comparable.
    """
    summaries = [_summary(folder) for folder in folders]
    asked = {folder: _asked(folder) for folder in folders}
    first = folders[0]
    for folder in folders[1:]:
        if asked[folder] != asked[first]:
            raise DataError(f"answered other prompts than {first}: such runs cannot be compared", source=str(folder))
    lines = [_line(folder, summary) for folder, summary in zip(folders, summaries, strict=True)]
    labels = sorted({str(summary.get("label") or "") for summary in summaries} - {""})
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(lines=lines, titles=[_TITLES[rate] for rate in RATES], before=_before(summaries[0]), labels=labels)
    )
    target.mkdir(parents=True, exist_ok=True)
    path = target / COMPARISON_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / "evaluation" / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"no evaluation/summary.json: {error}", source=str(folder)) from None
    if "before" not in summary or "after" not in summary:
        raise DataError("evaluation/summary.json lacks before or after: the run is not finished", source=str(folder))
    return summary


def _asked(folder: Path) -> list[tuple[str, str]]:
    return sorted((row["id"], row["question"]) for row in read_json_lines(folder / "evaluation" / "after.jsonl"))


def _line(folder: Path, summary: dict[str, Any]) -> Line:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    before, after, intervals = summary["before"], summary["after"], summary["intervals"]["after"]
    cells = []
    for rate in RATES:
        low, high = intervals.get(rate, (after[rate], after[rate]))
        change = 100 * (after[rate] - before[rate])
        cells.append(Cell(100 * after[rate], 100 * low, 100 * high, change, rate in _HIGH_IS_GOOD))
    prompts = int(sum(after[name] for name in set(RATES.values())))
    score = after.get("mean_score")
    shown = "-" if score is None or score != score else f"{score:.2f}"
    method = _method(config) + _chosen(folder)
    return Line(config["run"]["name"], method, prompts, cells, shown, _minutes(folder))


def _method(config: dict[str, Any]) -> str:
    algorithm = config.get("algorithm", {})
    name = str(algorithm.get("kind") or f"dpo ({algorithm.get('loss', 'sigmoid')})").upper()
    lora = config.get("policy", {}).get("trainable", {}).get("lora")
    return f"{name}, LoRA r {lora['rank']}" if lora else f"{name}, all weights"


def _chosen(folder: Path) -> str:
    path = folder / SELECTION_FILE
    return f", iteration {read_json(path)['best']} chosen" if path.exists() else ""


def _minutes(folder: Path) -> str:
    times = [row["time"] for row in read_json_lines(folder / METRICS_FILE) if "time" in row]
    return f"{(max(times) - min(times)) / 60:.1f}" if len(times) > 1 else "-"


def _before(summary: dict[str, Any]) -> list[float]:
    return [100 * summary["before"][rate] for rate in RATES]
