"""Whole PPO runs on Ray, DeepSpeed and vLLM with random tiny models, and what they survive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_prompts
from rlhf.data.synthetic import WorldSizes, write_world
from rlhf.evaluation.safety import exact_match
from rlhf.metrics import read_json_lines
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.hf_engine import HfEngine
from tests.fakes import tiny_model, tiny_reward_model
from tests.integration.here import refused

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ITERATIONS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, a random policy and a random reward model."""
    folder = tmp_path_factory.mktemp("ppo")
    sizes = WorldSizes(
        train_images=12,
        val_images=4,
        test_images=8,
        sft=4,
        pairs_train=8,
        pairs_val=3,
        test_prompts=4,
        validation_prompts=4,
    )
    write_world(folder / "world", 0, sizes)
    tiny_model(folder / "policy")
    tiny_reward_model(folder / "reward")
    return folder


def command(folder: Path, name: str, *overrides: str) -> list[str]:
    settings = [
        f"run.name={name}",
        f"run.root={folder}/runs",
        "run.checkpoint_every=2",
        f"model.path={folder}/policy",
        "model.max_length=256",
        f"critic.model.path={folder}/reward",
        "critic.model.max_length=256",
        f"reward.model.path={folder}/reward",
        "reward.model.max_length=256",
        f"data.train={folder}/world/pairs_train.json",
        f"data.evaluation={folder}/world/test.json",
        f"data.image_root={folder}/world/images",
        f"loop.iterations={ITERATIONS}",
        "loop.prompts_per_iteration=16",
        "algorithm.mini_batch_size=8",
        "policy.micro_rows=2",
        "critic.micro_rows=4",
        "policy.optimizer.lr=0.001",
        "sampling.max_new_tokens=8",
        "policy.deepspeed.whole_below=100",
        *overrides,
    ]
    config = ROOT / "jobs" / "configs" / "tiny" / "ppo.yaml"
    return [sys.executable, str(ROOT / "jobs" / "ppo_spa_vl.py"), "--config", str(config), *settings]


def run(folder: Path, environment: dict[str, str], name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, name, *overrides), env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def start(folder: Path, environment: dict[str, str], name: str) -> tuple[subprocess.Popen[str], Path]:
    """A run under way, and the file of what it prints."""
    printed = folder / f"{name}.txt"
    with printed.open("w") as output:
        process = subprocess.Popen(
            command(folder, name), env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    return process, printed


def wait_for(process: subprocess.Popen[str], folder: Path, name: str, iterations: int) -> None:
    """Until the run has finished so many iterations."""
    deadline = time.monotonic() + 240
    while len(steps(folder, name)) < iterations:
        assert process.poll() is None, "the driver ended too early"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def steps(folder: Path, name: str) -> list[int]:
    path = folder / "runs" / name / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def processes_of(actor: str) -> list[int]:
    processes = psutil.process_iter(["cmdline"])
    return [one.pid for one in processes if (one.info["cmdline"] or [""])[0].startswith(f"ray::{actor}")]


def assert_same_weights(left: Path, right: Path) -> None:
    one, other = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_head: dict[str, str]) -> Path:
    done = run(folder, ray_head, "undisturbed")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder / "runs" / "undisturbed"


def test_a_run_leaves_everything_that_it_promises(undisturbed: Path, folder: Path) -> None:
    assert steps(folder, "undisturbed") == list(range(1, ITERATIONS + 1))
    summary = json.loads((undisturbed / "evaluation" / "summary.json").read_text())
    for moment in ("before", "after"):
        assert {
            "harmful_refusal_rate", "biometric_refusal_rate", "benign_accuracy", "over_refusal_rate", "mean_score"
        } <= set(summary[moment])  # fmt: skip
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert all(row["sync/canary_gap"] < 1e-3 and row["rollout/logprob_gap"] < 1e-3 for row in rows)
    for name in (
        "report.html",
        "config.yaml",
        "samples.jsonl",
        "rejected.jsonl",
        "model/model.safetensors",
        "COMPLETE",
    ):
        assert (undisturbed / name).exists(), name
    start = load_file(folder / "policy" / "model.safetensors")
    trained = load_file(undisturbed / "model" / "model.safetensors")
    moved = {key.split(".")[0] for key in start if not torch.equal(start[key], trained[key])}
    assert moved == {"language_model", "multi_modal_projector"}  # the vision tower is frozen, the rest learns


def test_the_same_command_on_a_complete_run_changes_nothing(
    undisturbed: Path, folder: Path, ray_head: dict[str, str]
) -> None:
    before = (undisturbed / "metrics.jsonl").read_text()
    done = run(folder, ray_head, "undisturbed")
    assert done.returncode == 0
    assert "is complete" in done.stdout
    assert (undisturbed / "metrics.jsonl").read_text() == before


def test_sigkill_of_engine_ranks_and_driver_loses_and_doubles_nothing(
    undisturbed: Path, folder: Path, ray_head: dict[str, str]
) -> None:
    """One run loses, in turn, its engine, a policy rank with both frozen roles, and its driver.

    Equal weights at the end mean that every prompt was used once, with the answer that the lost engine would have
    given, and that each checkpoint held all there was.
    """
    process, printed = start(folder, ray_head, "faults")
    wait_for(process, folder, "faults", 2)
    (engine,) = processes_of("RolloutActor")
    os.kill(engine, signal.SIGKILL)
    wait_for(process, folder, "faults", 3)
    assert "rebuilding" not in printed.read_text()  # the engine was replaced; the other roles went on

    os.kill(processes_of("PolicyRank")[1], signal.SIGKILL)
    for frozen in processes_of("Re"):  # reference and reward: Ray starts them again by itself
        os.kill(frozen, signal.SIGKILL)
    wait_for(process, folder, "faults", 4)
    assert printed.read_text().count("rebuilding all roles") == 1
    assert "going on from" in printed.read_text()

    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = run(folder, ray_head, "faults")
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert "going on from" in again.stdout
    assert steps(folder, "faults") == list(range(1, ITERATIONS + 1))
    assert_same_weights(folder / "runs" / "faults" / "model", undisturbed / "model")
    assert_same_weights(folder / "runs" / "faults" / "critic", undisturbed / "critic")


def test_impossible_resources_are_refused_before_anything_starts(folder: Path, ray_head: dict[str, str]) -> None:
    done = run(folder, ray_head, "impossible", "roles.policy.gpus=4")
    assert done.returncode == 1
    assert "8 GPUs are asked for, the cluster has 0" in done.stderr
    assert "starting policy" not in done.stdout


def test_bad_rows_are_named_and_stop_the_run_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder / "broken"
    broken.mkdir()
    rows = json.loads((folder / "world" / "pairs_train" / "easy.json").read_text())
    rows[0]["id"], rows[1]["question"], rows[2]["image"] = "seven", "", "train/none.png"
    rows[4]["chosen"] = ""  # nobody looks at it
    rows[3]["question"] = "word " * 400
    (broken / "easy.json").write_text(json.dumps(rows))
    (broken / "config.json").write_text(json.dumps({"easy": "easy.json"}))
    data = (f"data.train={broken}/config.json", "data.keywords=[easy]")
    code, error = refused(command(folder, "bad_rows", *data), monkeypatch, capsys)
    assert code == 1
    assert "4 of" in error
    rejected = (folder / "runs" / "bad_rows" / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 4
    assert all({"source", "row", "reason"} <= set(json.loads(line)) for line in rejected)
    unknown = command(folder, "unknown_keyword", f"data.train={broken}/config.json", "data.keywords=[esay]")
    code, error = refused(unknown, monkeypatch, capsys)
    assert code == 2
    assert "esay" in error


def test_a_run_ends_with_its_best_checkpoint_also_when_it_is_killed_before_the_export(
    undisturbed: Path, folder: Path, ray_head: dict[str, str]
) -> None:
    """What the untrained policy says counts as right, so that training makes it worse and the last is not the best."""
    said = {row["id"]: row["response"] for row in read_json_lines(undisturbed / "evaluation" / "before.jsonl")}
    kinds = ("harmful", "biometric", "benign")
    for kind in kinds:
        rows = json.loads((folder / "world" / "test" / f"{kind}.json").read_text())
        answers = [{"answer": said[f"{kind}:{row['id']}"] or "nothing"} if kind == "benign" else {} for row in rows]
        rows = [row | answer for row, answer in zip(rows, answers, strict=True)]
        (folder / f"{kind}.json").write_text(json.dumps(rows))
    (folder / "validation.json").write_text(json.dumps({kind: f"{kind}.json" for kind in kinds}))
    data = (f"data.validation={folder}/validation.json", "data.evaluation=null", "selection.every=1")
    slow_start = ("policy.optimizer.warmup_steps=1000", "policy.optimizer.lr=0.004")
    done = run(folder, ray_head, "chosen", *data, *slow_start)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    chosen = folder / "runs" / "chosen"
    text = (chosen / "evaluation" / "selection.json").read_text()
    selection = json.loads(text)
    points = {point["iteration"]: point for point in selection["points"]}
    assert list(points) == list(range(1, ITERATIONS + 1))
    best, last = points[selection["best"]], points[ITERATIONS]
    assert best["helpfulness"] > last["helpfulness"]
    assert f"iteration {best['iteration']} (" in done.stdout

    # what was exported answers as the checkpoint did that was chosen
    model = ModelConfig(path=str(chosen / "model"), dtype="float32", max_length=256, template="llava_hf")
    engine = HfEngine(model, RolloutConfig(dtype="float32", max_length=256), Processor.load(model))
    prompts = load_prompts(str(folder / "validation.json"), ["benign"], folder / "world" / "images", RejectedRows())
    answers = engine.generate(prompts, Sampling(max_new_tokens=8, temperature=0.0))
    right = [exact_match(answer.text, prompt.answer) for answer, prompt in zip(answers, prompts, strict=True)]
    assert sum(right) / len(right) == best["helpfulness"]

    (chosen / "COMPLETE").unlink()
    for name in ("model", "critic"):
        (chosen / name).rename(chosen / f"{name}_first")
    again = run(folder, ray_head, "chosen", *data, *slow_start)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert f"going on from {chosen}/checkpoints/step-{ITERATIONS:08d}" in again.stdout
    assert (chosen / "evaluation" / "selection.json").read_text() == text
    for name in ("model", "critic"):
        assert_same_weights(chosen / f"{name}_first", chosen / name)
