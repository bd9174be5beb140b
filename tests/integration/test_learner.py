"""DeepSpeed learners as real processes: the same training for any number of ranks, ZeRO stage and micro-batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import Trained

pytestmark = pytest.mark.slow
Learners = dict[str, Trained]
NAMES = ("llava one", "llava small", "llava two")


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


def test_a_frozen_vision_tower_is_exported_unchanged(runs: Learners) -> None:
    run = runs["llava two"]
    before = load_file(f"{run.model.path}/model.safetensors")
    after = load_file(run.folder / "exported" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"language_model", "multi_modal_projector"}
