"""Two arms that differ in their data alone: what is run for each, and what happens when one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.pair_safe_llava import ArmConfig, PairConfig, _command, run
from rlhf.config import RunConfig
from rlhf.errors import ConfigError, WorkerLostError
from rlhf.pair_report import ARMS, STAGES, pair_summary, write_pair_report

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs" / "tiny"


def pair(tmp_path: Path, **more: str) -> PairConfig:
    settings = {stage: str(CONFIGS / f"safe_{stage}.yaml") for stage in STAGES} | more
    arms = {arm: ArmConfig(pretrain=f"{arm}/pretrain.json", sft=f"{arm}/sft.json") for arm in ARMS}
    return PairConfig(run=RunConfig(name="pair", root=str(tmp_path)), together=True, **arms, **settings)


def overrides(command: list[str]) -> dict[str, str]:
    return dict(one.split("=", 1) for one in command if "=" in one)


@pytest.mark.parametrize("stage", STAGES)
def test_safe29_the_arms_run_the_same_settings_on_other_data(tmp_path: Path, stage: str) -> None:
    original, scrubbed = (_command(pair(tmp_path), arm, stage) for arm in ARMS)
    assert [one for one in original if "=" not in one] == [one for one in scrubbed if "=" not in one]
    left, right = overrides(original), overrides(scrubbed)
    differing = {key for key in left | right if left.get(key) != right.get(key)}
    expected = {"run.name"}
    if stage != "prism":
        expected |= {"data.train", "data.require_scrubbed"}
    if stage != "pretrain":
        expected |= {"model.path"}
    assert differing == expected
    demanded = [found.get("data.require_scrubbed") for found in (left, right)]
    assert demanded == ([None, None] if stage == "prism" else ["false", "true"])  # whatever the settings demand


def test_a_stage_goes_on_from_the_stage_before(tmp_path: Path) -> None:
    assert overrides(_command(pair(tmp_path), "scrubbed", "sft"))["model.path"] == str(
        tmp_path / "pair/scrubbed/pretrain/model"
    )
    with pytest.raises(ConfigError, match="no such file"):
        _command(pair(tmp_path, sft="/nowhere.yaml"), "original", "sft")


def test_an_arm_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("epochs: many\n")
    with pytest.raises(WorkerLostError, match=r"pretrain of \w+ died") as caught:
        run(pair(tmp_path, pretrain=str(broken)))
    assert "ConfigError" in str(caught.value)
    assert "epochs" in str(caught.value)
    assert not (tmp_path / "pair" / "COMPLETE").exists()


def results(refused: float, macro: float, accuracy: float) -> dict[str, Any]:
    ones = {"overall": refused}
    refusal = {"judge": "rules", "refusal_rate": ones, "intervals": {"overall": [0.0, 1.0]}}
    leakage = {
        "judge": "rules",
        "leakage_protection": {
            "v1": {"mean": macro},
            "v2": {"macro": macro, "sentence": macro, "intervals": {"sentence": [0, 1]}},
        },
        "leakage_protection_answered": {"v2": None},
        "over_refusal_rate": 0.25,
        "over_refusal_interval": [0.1, 0.4],
    }
    tasks = {"refusal_soft": {"judges": [refusal]}, "implicit_leakage": {"judges": [leakage]}}
    return {
        "label": "a test",
        "decoding": "greedy",
        "conditions": {"plain": tasks, "privacy_prompt": tasks},
        "controls": {"all": {"refused": 0.0, "interval": [0.0, 0.1]}},
        "general": {"all": {"accuracy": accuracy, "interval": [0.0, 1.0]}},
    }


def test_the_summary_and_its_page_have_both_arms_and_the_prompt_alone(tmp_path: Path) -> None:
    summary = pair_summary({"original": results(0.0, 0.4, 0.8), "scrubbed": results(1.0, 0.99, 0.79)})
    assert summary["measures"]["refusal_soft"] == {
        "original": 0.0, "scrubbed": 1.0, "original with a privacy prompt": 0.0
    }  # fmt: skip
    assert summary["measures"]["protection_v2"]["scrubbed"] == 0.99
    assert summary["measures"]["over_refusal_controls"]["original with a privacy prompt"] is None
    assert summary["measures"]["accuracy"] == {
        "original": 0.8, "scrubbed": 0.79, "original with a privacy prompt": None
    }  # fmt: skip
    json.dumps(summary)
    page = write_pair_report(tmp_path, summary).read_text()
    assert "99.0 %" in page
    assert "a test" in page
