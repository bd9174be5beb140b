"""DeepSpeed learners as real processes: the same training for any number of ranks, ZeRO stage and micro-batch."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import Trained
from tests.integration.ranks import run_ranks

pytestmark = pytest.mark.slow
Learners = dict[str, Trained]
NAMES = ("llava one", "llava small", "llava two")
MODES = [(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def runs(learners: Learners) -> Learners:
    return {name: learners[name] for name in NAMES}


def test_loss_and_weights_do_not_depend_on_ranks_stage_or_micro_batches(runs: Learners) -> None:
    """Traps T2, T3 and the global denominator, on real engines."""
    base = runs["llava one"]
    weights = load_file(base.folder / "exported" / "model.safetensors")
    for name, run in runs.items():
        for result in run.results:
            for step, expected in zip(result["steps"], base.results[0]["steps"], strict=True):
                assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5), name
                assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4) != 0, name
        for key, tensor in load_file(run.folder / "exported" / "model.safetensors").items():
            assert torch.allclose(tensor, weights[key], atol=2e-5), f"{name}: {key}"


def test_zero3_really_shards(runs: Learners) -> None:
    whole = runs["llava one"].results[0]["own_parameters"]
    assert runs["llava two"].results[0]["own_parameters"] < whole / 10


def test_a_step_after_loading_a_checkpoint_is_the_step_itself(runs: Learners) -> None:
    for name, run in runs.items():
        assert run.results[0]["repeated"]["loss"] == run.results[0]["steps"][2]["loss"], name


def test_a_nan_on_one_rank_stops_all_and_changes_nothing(runs: Learners) -> None:
    for name, run in runs.items():
        assert all("not finite" in result["nan"] for result in run.results), name
        before = load_file(run.folder / "exported" / "model.safetensors")
        for key, tensor in load_file(run.folder / "after_nan" / "model.safetensors").items():
            assert torch.equal(tensor, before[key])


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks reports, by mode."""
    folder = tmp_path_factory.mktemp("gradients")
    run_ranks("tests.integration.gradient_worker", {"out": str(folder), "cases": MODES}, 2)
    return [json.loads((folder / f"gradient_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("stage", "dtype"), MODES)
def test_a_nan_gradient_of_a_finite_loss_stops_all_and_changes_nothing(
    gradients: list[dict[str, Any]], stage: int, dtype: str
) -> None:
    """On the last of two ranks only. A step that is not poisoned then works: nothing of the NaN was kept."""
    for result in (rank[f"{stage} {dtype}"] for rank in gradients):
        assert "gradient of step 0 is not finite" in result["error"]
        assert result["steps"] == 0
        assert result["after"] == result["loaded"]
        moved = [after - before for before, after in zip(result["after"], result["next"], strict=True)]
        assert all(math.isclose(one, -1e-2, rel_tol=0.3) for one in moved)  # Adam's first step is the learning rate


def test_row21_a_step_says_what_its_rank_took_at_most(gradients: list[dict[str, Any]]) -> None:
    """GiB of the whole process on CPUs: 256 MiB more are a quarter more, and stay in the peak."""
    for rank in gradients:
        before, with_large = rank["0 float32"]["memory"]
        assert 0.1 < before < 4
        assert with_large - before == pytest.approx(0.25, abs=0.03)
        assert rank["3 bfloat16"]["memory"][0] >= with_large


def test_a_frozen_vision_tower_is_exported_unchanged(runs: Learners) -> None:
    run = runs["llava two"]
    before = load_file(f"{run.model.path}/model.safetensors")
    after = load_file(run.folder / "exported" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"language_model", "multi_modal_projector"}
