"""The frame of a benchmark's run: done once, done again where its results no longer hold, and whole on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark import about, run_benchmark, write_evaluation
from rlhf.config import load
from rlhf.errors import DataError
from rlhf.inference import GenerationConfig


def config_of(tmp_path: Path, *overrides: str) -> GenerationConfig:
    return load(GenerationConfig, None, ["run.name=b", f"run.root={tmp_path}", "model.path=./m", *overrides])


def test_a_finished_run_is_shown_and_not_done_again_unless_it_no_longer_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Path] = []
    shown: list[Any] = []

    def work(folder: Path, target: Path) -> None:
        done.append(folder)
        write_evaluation(target, {"runs": len(done)}, [{"id": "ü"}])

    config = config_of(tmp_path)
    assert run_benchmark(config, "mine", work, shown.append) == {"runs": 1}
    more = config_of(tmp_path, "workers.ranks=3")  # no result depends on that
    assert run_benchmark(more, "mine", work, shown.append) == {"runs": 1}
    assert "b is complete" in capsys.readouterr().out
    assert run_benchmark(config, "mine", work, shown.append, lambda found: found["runs"] == 2) == {"runs": 2}
    assert (done, shown) == ([tmp_path / "b"] * 2, [{"runs": 1}, {"runs": 1}, {"runs": 2}])
    assert json.loads((tmp_path / "b" / "evaluation" / "mine.jsonl").read_text(encoding="utf-8")) == {"id": "ü"}


def test_a_run_with_questions_on_which_a_judge_was_silent_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = iter([2, 0])

    def work(folder: Path, target: Path) -> None:
        write_evaluation(target, {"silent": next(silent)}, [])

    config = config_of(tmp_path)
    assert run_benchmark(config, "mine", work, lambda _: None) == {"silent": 2}
    assert "2 questions have no answer from a judge: repeat the command" in capsys.readouterr().out
    for _ in range(2):
        assert run_benchmark(config, "mine", work, lambda _: None) == {"silent": 0}


def test_work_that_fails_is_not_complete_and_leaves_the_folder_free(tmp_path: Path) -> None:
    def fails(folder: Path, target: Path) -> None:
        raise DataError("no usable row")

    with pytest.raises(DataError):
        run_benchmark(config_of(tmp_path), "mine", fails, lambda _: None)
    assert not (tmp_path / "b" / "COMPLETE").exists()
    found = run_benchmark(config_of(tmp_path), "mine", lambda _, at: write_evaluation(at, {}, []), lambda _: None)
    assert found == {}


def test_what_stands_beside_every_number(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sampling.max_new_tokens=7", "rollout.dtype=float32")
    assert about(config, "made up", 3) == {
        "label": "made up",
        "model": "./m",
        "decoding": "greedy, at most 7 new tokens",
        "engine": "vllm float32",
        "rejected": 3,
    }
