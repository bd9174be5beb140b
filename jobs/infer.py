"""Answers to a file of prompts, on Ray Data: `python jobs/infer.py --config jobs/configs/tiny/infer.yaml`.

Writes `answers.json` in the run folder: the seed's {id, query, response} and the source of every row.
"""

from __future__ import annotations

import time
from pathlib import Path

from jobs.command_line import main
from rlhf.checkpoint import RunFolder
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError
from rlhf.inference import ANSWERS_FILE, InferenceConfig, read_inputs, write_answers


def run(config: InferenceConfig) -> Path:
    """Answer every prompt, or go on where an earlier process was stopped; returns the answer file."""
    folder = RunFolder(config.run, config, free=("workers",))
    try:
        target = folder.path / ANSWERS_FILE
        if folder.complete:
            print(f"{config.run.name} is complete: {target} (--fresh begins again)", flush=True)
        else:
            _run(config, folder, target)
        return target
    finally:
        folder.close()


def _run(config: InferenceConfig, folder: RunFolder, target: Path) -> None:
    from jobs.generation import answer_prompts
    from rlhf.data.processor import Processor

    began = time.monotonic()
    rejected = RejectedRows(folder.path / "rejected.jsonl")
    processor = Processor.load(config.model)
    prompts = read_inputs(config.data, rejected)
    if not prompts:
        rejected.check(rejected.count, config.max_rejected_share)
        raise DataError("no usable prompt", source=config.data.prompts)
    models = {"policy": (config.model, prompts)}
    answers = answer_prompts(config, models, folder.path / "generation", rejected)["policy"]
    rows = write_answers(target, prompts, answers, processor)
    folder.mark_complete()
    truncated = sum(answer.truncated for answer in answers.values())
    print(
        f"{rows} answers ({config.sampling.words}) in {target}, {truncated} of them truncated, "
        f"{rejected.count} rows rejected, {time.monotonic() - began:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main(InferenceConfig, run, __doc__ or "")
