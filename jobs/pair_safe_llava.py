"""The same model trained twice, on original and on scrubbed data, and asked the same: `python jobs/pair_safe_llava.py`.

Both arms run the same stages from the same files of settings; the files of training data, and the models and folders
that follow from them, are all that differs. Writes `summary.json` and `report.html`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from jobs.command_line import main
from jobs.steps import command, run_steps, run_together
from rlhf.config import Config, RunConfig, resolve
from rlhf.pair_report import ARMS, STAGES, pair_summary, write_pair_report

_SCRIPTS: dict[str, tuple[str, ...]] = {
    "pretrain": ("jobs/pretrain_safe_llava.py",),
    "sft": ("jobs/sft_safe_llava.py",),
    "prism": ("jobs/evaluate.py", "--benchmark", "prism"),
}


class ArmConfig(Config):
    """The training data of one arm."""

    pretrain: str
    """Captions (stage 1)."""
    sft: str
    """Instructions (stage 2)."""


class PairConfig(Config):
    """Two arms that differ in their data alone."""

    run: RunConfig
    original: ArmConfig
    scrubbed: ArmConfig
    """Files of `jobs/scrub_safe_llava.py`, whose manifest is demanded."""
    pretrain: str
    """Settings of stage 1; run.name and data.train are set for each arm."""
    sft: str
    """Settings of stage 2; model.path is stage 1's model."""
    prism: str
    """Settings of PRISM; model.path is stage 2's model."""
    together: bool = False
    """Both arms at the same time: for small models on one machine."""


def run(config: PairConfig) -> dict[str, Any]:
    """Run what is not finished yet; returns the content of summary.json."""
    return run_steps(config.run, config, partial(_run, config), write_pair_report, free=("together",))


def _run(config: PairConfig, folder: Path) -> dict[str, Any]:
    for stage in STAGES:
        commands = {arm: _command(config, arm, stage) for arm in ARMS}
        for arms in [ARMS] if config.together else [[arm] for arm in ARMS]:
            run_together({arm: commands[arm] for arm in arms}, folder, stage)
    return pair_summary({arm: json.loads((folder / arm / "prism/evaluation/prism.json").read_text()) for arm in ARMS})


def _command(config: PairConfig, arm: str, stage: str) -> list[str]:
    """One stage of one arm: its own data in training, and the model of the stage before."""
    overrides = []
    if stage != "prism":
        overrides.append(f"data.train={getattr(getattr(config, arm), stage)}")
        overrides.append(f"data.require_scrubbed={'true' if arm == 'scrubbed' else 'false'}")
    if stage != "pretrain":
        before = STAGES[STAGES.index(stage) - 1]
        overrides.append(f"model.path={Path(resolve(config.run.root)) / config.run.name / arm / before / 'model'}")
    return command(_SCRIPTS[stage], getattr(config, stage), config.run, f"{arm}/{stage}", *overrides)


if __name__ == "__main__":
    main(PairConfig, run, __doc__ or "")
