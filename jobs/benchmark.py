"""What PRISM, VLGuard and the guard's test set share as jobs: a run that goes on, results that are whole, a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.checkpoint import RunFolder
from rlhf.inference import GenerationConfig
from rlhf.ledger import write_whole
from rlhf.report import REPORT_FILE

Results = dict[str, Any]


def run_benchmark(
    config: GenerationConfig,
    name: str,
    work: Callable[[Path, Path], None],
    show: Callable[[Results], None],
    is_current: Callable[[Results], bool] = lambda results: True,
) -> Results:
    """Let `work` fill the run folder and write `evaluation/<name>.json`, then `show` and return what stands there.

    A finished run is not done again unless `is_current` denies its results; any number of workers may go on with it. A
    run with `silent` questions, which a judge did not answer, is not finished: the repeated command asks them again.
    """
    folder = RunFolder(config.run, config, free=("workers",))
    try:
        target = folder.path / "evaluation" / f"{name}.json"
        if folder.complete and is_current(_read(target)):
            print(f"{config.run.name} is complete: {folder.path} (--fresh begins again)", flush=True)
        else:
            work(folder.path, target)
            settle(folder, _read(target).get("silent", 0))
        results = _read(target)
        show(results)
        print(f"report: {folder.path / REPORT_FILE}", flush=True)
        return results
    finally:
        folder.close()


def settle(folder: RunFolder, silent: int) -> None:
    """The run is complete, unless judges were silent on so many questions: then say so."""
    if silent:
        print(f"{silent} questions have no answer from a judge: repeat the command to ask them again", flush=True)
    else:
        folder.mark_complete()


def about(config: GenerationConfig, label: str, rejected: int) -> Results:
    """What stands beside every number: on what data, by which model, how it was asked, and rows that it was not."""
    return {
        "label": label,
        "model": config.model.path,
        "decoding": config.sampling.words,
        "engine": f"{config.rollout.engine} {config.rollout.dtype}",
        "rejected": rejected,
    }


def write_evaluation(target: Path, results: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> None:
    """`<name>.jsonl` with a line for each answer, then `<name>.json` with the numbers."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(target.with_suffix(".jsonl"), text)
    write_whole(target, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def listed(name: str, values: Sequence[str]) -> str:
    """A line with how many there are and all of them, for what is missing or extra."""
    return f"  {name} ({len(values)}): {', '.join(values) or 'none'}"


def _read(target: Path) -> Results:
    found: Results = json.loads(target.read_text(encoding="utf-8"))
    return found
