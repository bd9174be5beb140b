"""Whole DPO runs on Ray and DeepSpeed with a random tiny model, and what they survive."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.data.synthetic import WorldSizes, write_world
from tests.fakes import tiny_model
from tests.integration.here import refused

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 6
NO_ANSWERS = "data.evaluation=null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world with 24 pairs, and a random policy."""
    folder = tmp_path_factory.mktemp("dpo")
    sizes = WorldSizes(train_images=12, val_images=4, test_images=4, sft=4, pairs_train=8, pairs_val=3, test_prompts=2)
    write_world(folder / "world", 0, sizes)
    tiny_model(folder / "policy")
    return folder


def command(folder: Path, name: str, *overrides: str) -> list[str]:
    """Two ranks, six steps: two epochs of 24 pairs, eight at a time."""
    settings = [
        f"run.name={name}",
        f"run.root={folder}/runs",
        "run.checkpoint_every=2",
        "run.log_every=1",
        f"model.path={folder}/policy",
        "model.max_length=256",
        f"model.feature_store={folder}/features",
        f"data.train={folder}/world/pairs_train.json",
        f"data.validation={folder}/world/pairs_val.json",
        f"data.evaluation={folder}/world/test.json",
        f"data.image_root={folder}/world/images",
        "batch_pairs=8",
        "epochs=2",
        "policy.micro_rows=2",
        "reference.micro_rows=3",
        "policy.optimizer.lr=0.001",
        "policy.deepspeed.whole_below=100",
        "answers.engine.engine=transformers",
        "answers.max_new_tokens=8",
        *overrides,
    ]
    config = ROOT / "jobs" / "configs" / "tiny" / "dpo.yaml"
    return [sys.executable, str(ROOT / "jobs" / "dpo_spa_vl.py"), "--config", str(config), *settings]


def run(folder: Path, environment: dict[str, str], name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, name, *overrides), env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / name / "model" / "model.safetensors")


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_head: dict[str, str]) -> Path:
    done = run(folder, ray_head, "undisturbed")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder / "runs" / "undisturbed"


def test_row22_a_run_starts_at_ln_2_and_leaves_everything_that_it_promises(undisturbed: Path, folder: Path) -> None:
    metrics = rows(folder, "undisturbed")
    assert [row["step"] for row in metrics] == [*range(1, STEPS + 1), STEPS]  # the last one is the validation
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert metrics[STEPS - 1]["loss"] < metrics[0]["loss"]
    assert {"validation/accuracy_all", "validation/accuracy_easy", "validation/loss"} <= set(metrics[-1])
    summary = json.loads((undisturbed / "evaluation" / "summary.json").read_text())
    for moment in ("before", "after"):
        assert {"harmful_refusal_rate", "benign_accuracy", "over_refusal_rate"} <= set(summary[moment])
    for name in ("report.html", "config.yaml", "rejected.jsonl", "model/tokenizer.json", "COMPLETE"):
        assert (undisturbed / name).exists(), name
    start = load_file(folder / "policy" / "model.safetensors")
    trained = weights(folder, "undisturbed")
    moved = {key.split(".")[0] for key in start if not torch.equal(start[key], trained[key])}
    assert moved == {"language_model", "multi_modal_projector"}  # the vision tower is frozen, the rest learns


def test_sigkill_of_the_driver_then_the_same_command_ends_with_the_same_weights(
    undisturbed: Path, folder: Path, ray_head: dict[str, str]
) -> None:
    process = subprocess.Popen(
        command(folder, "killed", NO_ANSWERS), env=ray_head, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 240
    while len(rows(folder, "killed")) < 3:
        assert process.poll() is None, "the driver ended too early"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = run(folder, ray_head, "killed", NO_ANSWERS)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert "going on from" in again.stdout
    assert [row["step"] for row in rows(folder, "killed")] == [*range(1, STEPS + 1), STEPS]
    assert_same_weights(weights(folder, "killed"), weights(folder, "undisturbed"))


@pytest.fixture(scope="module")
def columns(folder: Path, ray_head: dict[str, str]) -> str:
    """What a run printed that computed the reference's columns and trained with them."""
    done = run(
        folder, ray_head, "columns", "reference.source=columns", f"reference.folder={folder}/columns", NO_ANSWERS
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_stored_columns_replace_the_reference(columns: str, undisturbed: Path, folder: Path) -> None:
    assert "computing the reference's log-probabilities once" in columns
    assert "starting policy ..." in columns  # no reference beside it
    for one, other in zip(rows(folder, "columns"), rows(folder, "undisturbed"), strict=True):
        for key in ("loss", "margin", "chosen_reward", "rejected_reward", "validation/margin"):
            assert one.get(key) == pytest.approx(other.get(key), abs=2e-4), key


def test_row23_lora_trains_adapters_on_columns_that_another_run_stored(
    columns: str, folder: Path, ray_head: dict[str, str]
) -> None:
    lora = ("policy.trainable.lora={rank: 4, alpha: 8}", f"reference.folder={folder}/columns")
    done = run(folder, ray_head, "lora", "reference.source=columns", *lora, "policy.optimizer.lr=0.01", NO_ANSWERS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "computing the reference's" not in done.stdout
    metrics = rows(folder, "lora")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[STEPS - 1]["loss"] < metrics[0]["loss"]
    start, trained = load_file(folder / "policy" / "model.safetensors"), weights(folder, "lora")
    moved = {key for key in start if not torch.equal(start[key], trained[key])}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert all(key.split(".")[-2] in layers or key.startswith("multi_modal_projector") for key in moved)
    assert {key.split(".")[-2] for key in moved} >= set(layers)


def test_impossible_resources_are_refused_before_anything_starts(folder: Path, ray_head: dict[str, str]) -> None:
    done = run(folder, ray_head, "impossible", "roles.reference.gpus=4")
    assert done.returncode == 1
    assert "4 GPUs are asked for, the cluster has 0" in done.stderr


def test_a_batch_that_does_not_divide_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = refused(command(folder, "uneven", "batch_pairs=6"), monkeypatch, capsys)
    assert code == 2
    assert "choose a multiple of 4" in error
