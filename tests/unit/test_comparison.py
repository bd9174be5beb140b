from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.comparison import write_comparison
from rlhf.errors import DataError

RATES = ("harmful_refusal_rate", "biometric_refusal_rate", "benign_accuracy", "over_refusal_rate")


def a_run(folder: Path, after: float, *, algorithm: dict[str, Any], lora: bool = False, question: str = "why?") -> Path:
    (folder / "evaluation").mkdir(parents=True)
    counts = {"n_harmful": 10.0, "n_biometric": 10.0, "n_benign": 20.0}
    summary = {
        "label": "a <tiny> world",
        "before": {**dict.fromkeys(RATES, 0.25), **counts, "mean_score": -1.0},
        "after": {**dict.fromkeys(RATES, after), **counts, "mean_score": 1.25},
        "intervals": {"before": {}, "after": dict.fromkeys(RATES, (after - 0.1, after + 0.05))},
    }
    (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))
    (folder / "evaluation" / "after.jsonl").write_text(json.dumps({"id": "harmful:0", "question": question}) + "\n")
    trainable = {"lora": {"rank": 16} if lora else None}
    config = {"run": {"name": folder.name}, "algorithm": algorithm, "policy": {"trainable": trainable}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = [{"step": step, "time": 1000.0 + 90 * step} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_run_has_its_line_with_rates_intervals_and_changes(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / "ppo", 0.9, algorithm={"kind": "ppo"}),
        a_run(tmp_path / "dpo_lora", 0.15, algorithm={"loss": "ipo"}, lora=True),
    ]
    (runs[0] / "evaluation" / "selection.json").write_text(json.dumps({"best": 12}))
    page = write_comparison(runs, tmp_path).read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for shown in (
        "PPO, all weights, iteration 12 chosen",
        "DPO (IPO), LoRA r 16",
        "90.0 %",
        "+65.0 points",
        "-10.0 points",
        "40 prompts",
    ):
        assert shown in text, shown
    assert "before training 25.0 %" in text
    assert "3.0" in text.split("ppo PPO")[1]  # two steps of 90 s lie between the first line and the last
    assert "left:80.0%;width:15.0%" in page
    assert "a &lt;tiny&gt; world" in page  # whatever a run says about itself is escaped
    assert "<script" not in page


def test_a_rise_is_good_or_bad_by_what_is_counted(tmp_path: Path) -> None:
    page = write_comparison([a_run(tmp_path / "ppo", 0.9, algorithm={"kind": "ppo"})], tmp_path).read_text()
    tones = re.findall(r'<small class="(\w*)">\+65', page)
    assert tones == ["up", "up", "up", "down"]  # only refusing benign questions is worse


def test_runs_on_other_prompts_and_unfinished_runs_are_refused(tmp_path: Path) -> None:
    first = a_run(tmp_path / "a", 0.9, algorithm={"kind": "ppo"})
    other = a_run(tmp_path / "b", 0.9, algorithm={"kind": "ppo"}, question="how?")
    with pytest.raises(DataError, match="cannot be compared"):
        write_comparison([first, other], tmp_path)
    with pytest.raises(DataError, match="summary.json"):
        write_comparison([first, tmp_path / "none"], tmp_path)
    path = other / "evaluation" / "summary.json"
    path.write_text(json.dumps({"before": {}}))
    with pytest.raises(DataError, match="not finished"):
        write_comparison([first, other], tmp_path)
