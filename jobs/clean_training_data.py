"""Unsafe samples out of LLaVA training data, on Ray Data: `python jobs/clean_training_data.py --config ...`.

Every sample is scored once. A killed job goes on with the units that are not finished; a finished one writes the same
files again, and asks about rows on which the judge was silent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs.command_line import claim_output, main
from jobs.units import run_units
from rlhf.config import Config, resolve
from rlhf.data.json_stream import plan_spans
from rlhf.data.prepared import file_hash
from rlhf.errors import DataError, JudgeError
from rlhf.evaluation.clean_filter import CleanerConfig, UnitScorer, build_cleaner, write_clean
from rlhf.ledger import write_whole


class CleanConfig(Config):
    """What is filtered, by whom."""

    source: str
    """A JSON list of LLaVA conversations."""
    output: str
    """JSON file for the rows that stay; beside it <name>.removed.jsonl with reasons, and a manifest."""
    scored: str
    """Folder for finished units; on a cluster, a file system that all nodes share. May be removed afterwards."""
    cleaner: CleanerConfig = CleanerConfig()
    workers: int = Field(default=4, ge=1)
    """CPUs that score at the same time, at most."""
    unit_rows: int = Field(default=1000, ge=1)
    """Rows of a unit; what a kill can cost."""


def run(config: CleanConfig) -> dict[str, Any]:
    """Score what is not scored, write the rows that stay; returns the manifest."""
    source, output = Path(resolve(config.source)), Path(resolve(config.output))
    claim_output(output, source)
    spans = plan_spans(source, config.unit_rows)
    if not spans:
        raise DataError("no rows in it", source=str(source))
    arguments = (source, config.cleaner, unit_folder(config))
    scorer = UnitScorer(*arguments)
    finished = scorer.finished(spans)
    print(f"{len(finished)} of {len(spans)} units are scored", flush=True)
    if pending := [asdict(span) for span in spans if span not in finished or finished[span].silent]:
        run_units(UnitScorer, arguments, pending, config.workers)
        finished = scorer.finished(spans)
    done = [finished[span] for span in spans]
    removed = [one for unit in done for one in unit.removed]
    silent = [one for unit in done for one in unit.silent]
    unclear = sorted([*(one for unit in done for one in unit.unclear), *silent], key=lambda one: one.row)
    rows, judge = sum(unit.rows for unit in done), build_cleaner(config.cleaner)[0].name
    if silent and len(unclear) == rows:
        raise JudgeError(f"{judge} has an answer on none of {rows} rows; the first: {silent[0].reason}", silent=True)
    manifest = {
        "judge": judge,
        "source": file_hash(source),
        "rows": rows,
        "removed": len(removed),
        "kept": write_clean(source, spans, removed, output),
        "unclear": [asdict(one) for one in unclear],
        "silent": len(silent),
        "file": file_hash(output),
    }
    write_whole(output.with_suffix(".manifest.json"), json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    print(f"{output}: {manifest['kept']} of {manifest['rows']} rows stay, {len(removed)} are removed", flush=True)
    print(f"  unclear, and kept: {len(unclear)}", flush=True)
    if silent:
        print(f"  of these, {len(silent)} had no answer: repeat the command to ask about them again", flush=True)
    return manifest


def unit_folder(config: CleanConfig) -> Path:
    """Where the units of this file, this judge and this size of units are. Raises DataError for a bad phrase list."""
    judge, _ = build_cleaner(config.cleaner)
    source = file_hash(Path(resolve(config.source)))["sha256"]
    key = hashlib.sha256(json.dumps([source, judge.name, config.unit_rows]).encode()).hexdigest()[:16]
    return Path(resolve(config.scored)) / key


if __name__ == "__main__":
    main(CleanConfig, run, __doc__ or "")
