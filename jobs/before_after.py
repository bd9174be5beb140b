"""What jobs share that answer the same unseen prompts before and after training."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.batch import Prompt
from rlhf.config import resolve
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_prompts
from rlhf.errors import ConfigError
from rlhf.evaluation.before_after import Answers, evaluate, record
from rlhf.metrics import METRICS_FILE, read_json_lines
from rlhf.monitors import hacking_signs
from rlhf.roles import Reward
from rlhf.selection import SELECTION_FILE, in_words


def evaluation_prompts(key: str, path: str | None, image_root: str, rejected: RejectedRows) -> list[Prompt]:
    """Every prompt of the keyword configuration that `key` names, whose keywords are the kinds; none without a path.

    Raises ConfigError for a map that cannot be read, DataError for an unusable file of it.
    """
    if not path:
        return []
    try:
        return load_prompts(resolve(path), None, Path(resolve(image_root)), rejected)
    except ConfigError as error:
        raise ConfigError([f"{key}: {problem}" for problem in error.problems]) from None


def fitting(
    prompts: Sequence[Prompt], processor: Processor, budget: int, context: int, rejected: RejectedRows
) -> list[Prompt]:
    """The prompts that leave room for `budget` new tokens in `context`; the others go to `rejected`."""
    kept = rejected.survivors(prompts, lambda prompt: processor.prompt_ids(prompt, budget, context))
    return [prompt for prompt, _ in kept]


def answer(
    folder: Path,
    moment: str,
    engines: Answers,
    reward: Reward | None,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    label: str,
) -> None:
    """Evaluate at one `moment` ("before" or "after") and write it to the run folder; nothing without prompts."""
    if not prompts:
        return
    began = time.monotonic()
    record(folder, moment, evaluate(engines, reward, prompts, max_new_tokens), label)
    print(f"evaluated {len(prompts)} prompts {moment} training in {time.monotonic() - began:.0f} s", flush=True)


def show(folder: Path) -> dict[str, Any]:
    """Print a run folder's before/after table, the chosen checkpoint and what to look into, and return its summary."""
    from rich.console import Console
    from rich.table import Table

    path = folder / "evaluation" / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    console = Console(width=100)
    if summary:
        table = Table("", "before", "after", title=summary.get("label"))
        for name in summary["before"]:
            table.add_row(name, *(f"{summary[moment][name]:.3f}" for moment in ("before", "after")))
        console.print(table)
    if (folder / SELECTION_FILE).exists():
        console.print(in_words(json.loads((folder / SELECTION_FILE).read_text())), soft_wrap=True, highlight=False)
    metrics = folder / METRICS_FILE
    for sign in hacking_signs(read_json_lines(metrics) if metrics.exists() else []):
        console.print(f"look into: {sign}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return summary
