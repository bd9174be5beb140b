"""DeepSpeed learners as real processes: the same training for any number of ranks, ZeRO stage and micro-batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import draw_images
from tests.integration.learner_worker import prepare

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def start_rank(module: str, settings: dict[str, Any], ranks: int) -> Callable[[int], subprocess.CompletedProcess[str]]:
    """A function that runs one of `ranks` processes of a worker module to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, json.dumps(settings)]

    def start(rank: int) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return start


def run(
    out: Path, model: str, images: list[str], ranks: int, stage: int, micro_rows: int, lora: bool = False
) -> list[dict[str, Any]]:
    """Train on `ranks` processes; the result of each."""
    out.mkdir(parents=True)
    settings = {
        "out": str(out), "model": model, "images": images, "stage": stage, "micro_rows": micro_rows, "lora": lora
    }  # fmt: skip
    start = start_rank("tests.integration.learner_worker", settings, ranks)
    with ThreadPoolExecutor(ranks) as pool:
        for done in pool.map(start, range(ranks)):
            assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"result_{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("learner")
    model, images = prepare(folder / "model"), draw_images(folder / "images")
    shapes = {"one rank": (1, 0, 8), "one rank, small micro-batches": (1, 3, 1), "two ranks, ZeRO-3": (2, 3, 2)}
    return {name: (folder / name, run(folder / name, model, images, *shape)) for name, shape in shapes.items()}


def test_loss_and_weights_do_not_depend_on_ranks_stage_or_micro_batches(runs: dict[str, Any]) -> None:
    """Traps T2, T3 and the global denominator, on real engines."""
    base_folder, (base, *_) = runs["one rank"]
    weights = load_file(base_folder / "exported" / "model.safetensors")
    for name, (folder, results) in runs.items():
        for result in results:
            for step, expected in zip(result["steps"], base["steps"], strict=True):
                assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5), name
                assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4) != 0, name
        for key, tensor in load_file(folder / "exported" / "model.safetensors").items():
            assert torch.allclose(tensor, weights[key], atol=2e-5), f"{name}: {key}"


def test_gradients_are_clipped_by_the_same_global_norm(runs: dict[str, Any]) -> None:
    small, two = runs["one rank, small micro-batches"][1][0], runs["two ranks, ZeRO-3"][1][0]
    for left, right in zip(small["steps"], two["steps"], strict=True):
        assert left["grad_norm"] > 0
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-4)


def test_zero3_really_shards(runs: dict[str, Any]) -> None:
    whole = runs["one rank"][1][0]["own_parameters"]
    assert runs["two ranks, ZeRO-3"][1][0]["own_parameters"] < whole / 10


def test_a_step_after_loading_a_checkpoint_is_the_step_itself(runs: dict[str, Any]) -> None:
    for name, (_, results) in runs.items():
        assert results[0]["repeated"]["loss"] == results[0]["steps"][2]["loss"], name


def test_a_nan_on_one_rank_stops_all_and_changes_nothing(runs: dict[str, Any]) -> None:
    for name, (folder, results) in runs.items():
        assert all("not finite" in result["nan"] for result in results), name
        before = load_file(folder / "exported" / "model.safetensors")
        for key, tensor in load_file(folder / "after_nan" / "model.safetensors").items():
            assert torch.equal(tensor, before[key])


def test_a_frozen_vision_tower_is_exported_unchanged(runs: dict[str, Any]) -> None:
    folder, _ = runs["two ranks, ZeRO-3"]
    before = load_file(folder.parent / "model" / "model.safetensors")
    after = load_file(folder / "exported" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"language_model", "multi_modal_projector"}
