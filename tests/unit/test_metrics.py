"""What a run writes while it runs, and what is left of it after a crash."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.errors import DataError
from rlhf.metrics import MetricsLog, Progress, SamplesLog, read_json_lines


def _log(folder: Path, steps: range, value: float, resume_from: int | None = None) -> None:
    log = MetricsLog(folder, resume_from)
    for step in steps:
        log.log(step, {"score/mean": value + step})
    log.close()


def _board(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_each_step_is_one_line_with_time_and_values(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 4), 0.5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["score/mean"]) for row in rows] == [(1, 1.5), (2, 2.5), (3, 3.5)]
    assert all(row["time"] > 1.6e9 for row in rows)


def test_tensorboard_reads_back_the_same_values(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 4), 0.5)
    assert _board(tmp_path, "score/mean") == [(1, 1.5), (2, 2.5), (3, 3.5)]


def test_not_finite_values_are_null_and_the_line_stays_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log(1, {"loss": float("nan"), "norm": float("inf"), "kl": 0.25})
    log.close()

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["loss"], row["norm"], row["kl"]) == (None, None, 0.25)


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log(1, {"loss": 1.0})
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 1
    log.close()


def test_resuming_repeats_no_step_in_the_file_or_in_tensorboard(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 8), 0.0)
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which begin with the second
    _log(tmp_path, range(5, 9), 100.0, resume_from=4)
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 105.0), (6, 106.0), (7, 107.0), (8, 108.0)]
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["score/mean"]) for row in rows] == expected
    assert _board(tmp_path, "score/mean") == expected


@pytest.mark.parametrize("start", [None, 0])
def test_a_run_without_a_checkpoint_begins_its_files_anew(tmp_path: Path, start: int | None) -> None:
    _log(tmp_path, range(1, 4), 0.0)
    _log(tmp_path, range(1, 2), 50.0, resume_from=start)
    assert [row["score/mean"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [51.0]
    assert _board(tmp_path, "score/mean") == [(1, 51.0)]


def test_a_line_torn_by_a_crash_is_dropped_on_resume(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 4), 0.0)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "score/me')
    assert [row["step"] for row in read_json_lines(path)] == [1, 2, 3]
    _log(tmp_path, range(4, 5), 0.0, resume_from=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_complete_number_without_line_end_is_torn_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert [row["step"] for row in read_json_lines(path)] == [1]


@pytest.mark.parametrize("damage", ['{"step": 2, "kl": \n', "[1, 2]\n", "\n"])
def test_damage_inside_the_file_is_an_error_that_names_the_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damage + '{"step": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_json_lines(path)


def test_samples_keep_their_fields_and_are_cut_on_resume(tmp_path: Path) -> None:
    rows = [{"response": "é <b> 猫", "score": float("nan"), "parts": {"length": float("inf"), "model": 0.5}}]
    log = SamplesLog(tmp_path)
    for step in (1, 2, 3):
        log.append(step, rows * 2)
    log.close()
    log = SamplesLog(tmp_path, resume_from=1)
    log.append(2, [{"response": "again"}])
    log.close()
    kept = read_json_lines(tmp_path / "samples.jsonl")
    assert [row["step"] for row in kept] == [1, 1, 2]
    assert kept[0] == {"step": 1, "response": "é <b> 猫", "score": None, "parts": {"length": None, "model": 0.5}}
    assert kept[2]["response"] == "again"


def test_a_job_log_gets_the_first_and_last_step_but_not_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tiny/ppo", total=50, start=10) as progress:
        for step in range(11, 51):
            progress.advance(step, {"reward": 0.125, "kl": 1234.5})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["tiny/ppo 11/50", "tiny/ppo 50/50"]
    assert lines[0].endswith("reward 0.125, kl 1,234")
    assert "0:00:00 left" in lines[-1]


def test_a_job_log_gets_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("rlhf.metrics.time.monotonic", lambda: now)
    with Progress("sft", total=100) as progress:
        for step in range(1, 31):
            now += 2.0
            progress.advance(step, {"loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/100", "4/100", "7/100"]
    assert "0:00:08, 0:03:12 left" in lines[1]  # 8 s for 4 steps, so 192 s for the other 96


def test_a_terminal_gets_a_live_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with Progress("tiny/ppo", total=4) as progress:
        progress.advance(4, {"reward [a]": 0.5})
    shown = capsys.readouterr().out
    assert "tiny/ppo" in shown
    assert "4/4" in shown
    assert "reward [a] 0.5" in shown
