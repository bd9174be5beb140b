"""VLGuard's two ways to use its data, before and after: `python jobs/prove_vlguard.py --config ...`.

Converts the metadata, mixes it with helpful rows, fine-tunes a model that answers everything (post-hoc) and one that
was not instruction-tuned yet (mixed), and asks all three the test split. Writes `summary.json` and `report.html`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jobs import mix_vlguard, prepare_vlguard
from jobs.command_line import main
from jobs.steps import command, run_steps, run_together
from rlhf.config import Config, RunConfig, resolve
from rlhf.metrics import read_json_lines
from rlhf.vlguard_proof import MODELS, proof_summary, write_proof_report

_TRAIN = ("jobs/sft_safe_llava.py",)
_ASK = ("jobs/evaluate.py", "--benchmark", "vlguard")


class ProofConfig(Config):
    """The files, the settings of each stage, and the two models to start from."""

    run: RunConfig
    meta: str
    """VLGuard's train.json."""
    test: str
    """VLGuard's test.json, whose safe answers are exact."""
    image_root: str
    """Folder of both splits' images."""
    helpful: str
    """Helpful conversations, in LLaVA's format."""
    helpful_rows: int = 1000
    """Of them for post-hoc fine-tuning; mixed fine-tuning takes all."""
    before: str
    """The instruction-tuned model that post-hoc fine-tuning starts from."""
    untuned: str
    """The model that mixed fine-tuning starts from."""
    posthoc: str
    """Settings of post-hoc fine-tuning; model.path and data.train are set here."""
    mixed: str
    """Settings of mixed fine-tuning; model.path and data.train are set here."""
    evaluate: str
    """Settings of the evaluation; model.path is set for each model."""


def run(config: ProofConfig) -> dict[str, Any]:
    """Run what is not finished yet; returns the content of summary.json."""
    return run_steps(config.run, config, partial(_run, config), write_proof_report)


def _run(config: ProofConfig, folder: Path) -> dict[str, Any]:
    run_together(trainings(config, _mixtures(config, folder)), folder, "training")
    run_together(questions(config, folder), folder, "answers")
    return _summary(config, folder)


def trainings(config: ProofConfig, mixtures: Mapping[str, str]) -> dict[str, list[str]]:
    """The command of each fine-tuning on its mixture, from the model that it starts from."""
    starts = {"posthoc": (config.posthoc, config.before), "mixed": (config.mixed, config.untuned)}
    return {
        name: command(_TRAIN, settings, config.run, name, f"data.train={mixtures[name]}", f"model.path={start}")
        for name, (settings, start) in starts.items()
    }


def questions(config: ProofConfig, folder: Path) -> dict[str, list[str]]:
    """The command that asks each model, the one to start from and both that were trained in `folder`."""
    models = {name: str(folder / name / "model") for name in MODELS} | {"before": config.before}
    return {
        name: command(_ASK, config.evaluate, config.run, f"{name}_answers", f"model.path={path}")
        for name, path in models.items()
    }


def _mixtures(config: ProofConfig, folder: Path) -> dict[str, str]:
    """The training file of each way, from the converted metadata."""
    safety = folder / "safety.json"
    prepare_vlguard.run(Path(resolve(config.meta)), safety)
    found = {}
    for name, rows in (("posthoc", config.helpful_rows), ("mixed", None)):
        output = folder / f"{name}.json"
        mix_vlguard.run(
            mix_vlguard.MixConfig(output=str(output), safety=str(safety), helpful=config.helpful, helpful_rows=rows)
        )
        found[name] = str(output)
    return found


def _summary(config: ProofConfig, folder: Path) -> dict[str, Any]:
    answers = {name: list(read_json_lines(folder / f"{name}_answers/evaluation/vlguard.jsonl")) for name in MODELS}
    results = {
        name: json.loads((folder / f"{name}_answers/evaluation/vlguard.json").read_text(encoding="utf-8"))
        for name in MODELS
    }
    return proof_summary(results, answers, Path(resolve(config.test)))


if __name__ == "__main__":
    main(ProofConfig, run, __doc__ or "")
