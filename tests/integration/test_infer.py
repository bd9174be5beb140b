"""Whole inference runs on Ray Data with a random tiny model: kills, workers, bad rows. Mostly the slow engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes import draw_images, tiny_model
from tests.integration.here import refused

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ROWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, pictures, and two files of prompts that use the same ids."""
    folder = tmp_path_factory.mktemp("infer")
    tiny_model(folder / "model")
    draw_images(folder / "images")
    rows = [
        {"id": number, "question": f"What is picture {number} about?", "image": f"{number % 4}.png"}
        for number in reversed(range(ROWS // 2))
    ]
    del rows[3]["image"]  # a row of text only
    (folder / "one.json").write_text(json.dumps(rows))
    (folder / "two.json").write_text(json.dumps([{**row, "question": "Describe it."} for row in rows]))
    (folder / "both.json").write_text(json.dumps({"one": "one.json", "two": "two.json"}))
    return folder


def command(folder: Path, name: str, *overrides: str) -> list[str]:
    settings = [
        f"run.name={name}",
        f"run.root={folder}/runs",
        f"model.path={folder}/model",
        "model.max_length=256",
        f"data.prompts={folder}/both.json",
        f"data.image_root={folder}/images",
        "rollout.engine=transformers",
        "workers.cpus=0.5",
        "workers.threads=1",
        "batch_rows=3",
        *overrides,
    ]
    config = ROOT / "jobs" / "configs" / "tiny" / "infer.yaml"
    return [sys.executable, str(ROOT / "jobs" / "infer.py"), "--config", str(config), *settings]


def run(folder: Path, environment: dict[str, str], name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, name, *overrides), env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def start(folder: Path, environment: dict[str, str], name: str, batches: int, *overrides: str) -> subprocess.Popen[str]:
    """A run under way that has so many batches on disk, and more to do."""
    process = subprocess.Popen(
        command(folder, name, *overrides),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while len(lines(folder, name)) < batches:
        assert process.poll() is None, "the driver ended too early"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)
    return process


def lines(folder: Path, name: str) -> list[str]:
    parts = sorted((folder / "runs" / name / "generation" / "policy").glob("part-*.jsonl"))
    return [line for part in parts for line in part.read_text().splitlines()]


def answers(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "runs" / name / "answers.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_head: dict[str, str]) -> bytes:
    """The answer file of one worker that nobody stops."""
    done = run(folder, ray_head, "undisturbed")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return (folder / "runs" / "undisturbed" / "answers.json").read_bytes()


def test_row27_n_in_is_n_out_with_the_seeds_keys_in_input_order(undisturbed: bytes, folder: Path) -> None:
    rows = answers(folder, "undisturbed")
    assert len(rows) == ROWS
    asked = [(source, number) for source in ("one", "two") for number in reversed(range(ROWS // 2))]
    assert [(row["source"], row["id"]) for row in rows] == asked
    assert all(set(row) == {"source", "id", "query", "response"} for row in rows)
    assert rows[0]["query"] == f"USER: \nWhat is picture {ROWS // 2 - 1} about? ASSISTANT:"
    assert rows[3]["query"].startswith("USER: What")  # text only
    assert len({row["response"] for row in rows}) > 1
    assert (folder / "runs" / "undisturbed" / "rejected.jsonl").read_text() == ""


def test_row27_a_killed_run_goes_on_with_two_workers_of_which_one_is_killed_and_writes_the_same_file(
    undisturbed: bytes, folder: Path, ray_head: dict[str, str]
) -> None:
    process = start(folder, ray_head, "killed", 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = lines(folder, "killed")
    assert 3 <= len(before) < -(-ROWS // 3)
    assert not (folder / "runs" / "killed" / "answers.json").exists()
    process = start(folder, ray_head, "killed", len(before) + 2, "workers.ranks=2")
    victims = [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if "InferenceWorker" in (one.info["cmdline"] or [""])[0]
    ]  # fmt: skip
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    assert (folder / "runs" / "killed" / "answers.json").read_bytes() == undisturbed
    after = lines(folder, "killed")
    assert after[: len(before)] == before  # what was on disk was neither lost nor asked again
    keys = [json.loads(line)["key"] for line in after]
    assert len(keys) == len(set(keys)) == -(-ROWS // 3)


def test_a_complete_run_is_not_repeated_and_another_decoding_is_refused(
    undisturbed: bytes, folder: Path, ray_head: dict[str, str]
) -> None:
    done = run(folder, ray_head, "undisturbed")
    assert done.returncode == 0
    assert "is complete" in done.stdout
    other = run(folder, ray_head, "undisturbed", "sampling.max_new_tokens=5")
    assert other.returncode == 1
    assert "max_new_tokens: 5" in other.stderr
    assert (folder / "runs" / "undisturbed" / "answers.json").read_bytes() == undisturbed


def test_bad_rows_are_named_stop_the_run_or_are_left_out_by_config(
    folder: Path, ray_head: dict[str, str], undisturbed: bytes
) -> None:
    rows = json.loads((folder / "one.json").read_text())
    rows[0]["image"], rows[1]["id"], rows[5]["question"] = "broken.png", "seven", "word " * 400
    (folder / "images" / "broken.png").write_bytes((folder / "images" / "0.png").read_bytes()[:70])
    (folder / "bad.json").write_text(json.dumps(rows))
    bad = f"data.prompts={folder}/bad.json"
    strict = run(folder, ray_head, "strict", bad)
    assert strict.returncode == 1
    assert "rows were rejected" in strict.stderr
    assert not (folder / "runs" / "strict" / "answers.json").exists()
    lax = run(folder, ray_head, "lax", bad, "max_rejected_share=0.2")
    assert lax.returncode == 0, (lax.stdout + lax.stderr)[-4000:]
    rejected = [json.loads(line) for line in (folder / "runs" / "lax" / "rejected.jsonl").read_text().splitlines()]
    assert sorted((Path(row["source"]).stem, row["row"]) for row in rejected) == [("bad", 1), ("bad", 14), ("bad", 19)]
    assert all({"source", "row", "reason"} <= set(row) for row in rejected)
    kept = {row["id"]: row["response"] for row in answers(folder, "lax")}
    assert len(kept) == ROWS // 2 - 3
    expected = {row["id"]: row["response"] for row in json.loads(undisturbed) if row["source"] == "one"}
    assert kept == {number: expected[number] for number in kept}


def test_impossible_resources_are_refused_before_any_engine_starts(folder: Path, ray_head: dict[str, str]) -> None:
    gpus = run(folder, ray_head, "gpus", "workers.gpus=1", "workers.ranks=8")
    assert gpus.returncode == 1
    assert "8 GPUs are asked for, the cluster has 0" in gpus.stderr


def test_a_missing_model_is_refused_with_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = refused(command(folder, "model", "model.path=./runs/nowhere/model"), monkeypatch, capsys)
    assert code == 2
    assert "run the stage that writes it first" in error


def test_row27_vllm_gives_the_answers_of_the_reference_engine(
    undisturbed: bytes, folder: Path, ray_head: dict[str, str]
) -> None:
    done = run(folder, ray_head, "vllm", "rollout.engine=vllm", "rollout.kv_cache_mb=64", "batch_rows=20")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (folder / "runs" / "vllm" / "answers.json").read_bytes() == undisturbed
