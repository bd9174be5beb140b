"""Jobs that are made of other jobs: their commands, and what stands in their folder when the steps are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.prove_vlguard import ProofConfig, questions, trainings
from jobs.steps import command, run_steps
from rlhf.config import Config, RunConfig, load
from rlhf.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs" / "tiny"


class Steps(Config):
    """A configuration with a run."""

    run: RunConfig


def test_the_summary_is_written_with_its_page_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Steps(run=RunConfig(name="steps", root=str(tmp_path)))
    summary = {"measures": {"asr": {"before": 0.5, "after": None}}}

    def page(folder: Path, found: Mapping[str, Any]) -> Path:
        (folder / "report.html").write_text(str(found["measures"]))
        return folder / "report.html"

    assert run_steps(config.run, config, lambda folder: summary, page) == summary
    assert json.loads((tmp_path / "steps" / "summary.json").read_text()) == summary
    assert (tmp_path / "steps" / "COMPLETE").exists()
    said = capsys.readouterr().out
    assert "asr: before 0.500, after -" in said
    assert f"report: {tmp_path / 'steps' / 'report.html'}" in said


def test_a_step_has_its_own_run_below_that_of_the_whole(tmp_path: Path) -> None:
    settings, run = tmp_path / "sft.yaml", RunConfig(name="whole", root="./elsewhere")
    settings.write_text("a: 1\n")
    (_, *rest) = command(("jobs/x.py", "--benchmark", "y"), str(settings), run, "one/two", "model.path=./m")
    assert rest == [
        "jobs/x.py", "--benchmark", "y", "--config", str(settings),
        "run.name=whole/one/two", "run.root=./elsewhere", "model.path=./m",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"settings of one: no such file .*/none\.yaml"):
        command(("jobs/x.py",), str(tmp_path / "none.yaml"), run, "one")


def test_vlguard05_vlguard06_each_way_starts_from_its_own_model_and_all_three_are_asked(tmp_path: Path) -> None:
    config = load(ProofConfig, CONFIGS / "vlguard_proof.yaml")
    training, answers = (
        {name: dict(one.split("=", 1) for one in words if "=" in one) for name, words in commands.items()}
        for commands in (trainings(config, {"posthoc": "p.json", "mixed": "m.json"}), questions(config, tmp_path))
    )
    assert {name: (one["model.path"], one["data.train"]) for name, one in training.items()} == {
        "posthoc": (config.before, "p.json"), "mixed": (config.untuned, "m.json")
    }  # fmt: skip
    assert {name: one["model.path"] for name, one in answers.items()} == {
        "before": config.before, "posthoc": f"{tmp_path}/posthoc/model", "mixed": f"{tmp_path}/mixed/model"
    }  # fmt: skip
    assert answers["mixed"]["run.name"] == f"{config.run.name}/mixed_answers"
