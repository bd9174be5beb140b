"""What ranks really hold under DeepSpeed, and what a model of 0.1 billion parameters really needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf.config import DeepSpeedConfig, TrainableConfig
from rlhf.memory import activations, model_states, split
from rlhf.models.architecture import read_architecture
from rlhf.models.tiny import TinyConfig
from tests.fakes import draw_images, tiny_model
from tests.integration.ranks import run_ranks
from tests.memory_meter import Subject, storage_bytes

pytestmark = pytest.mark.slow
CASES = [(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("bfloat16", "float32")]
WHOLE_BELOW = 100
MINI = TinyConfig(
    vocabulary=700, hidden=768, layers=12, vision_layers=3, heads=12, image_size=48, patch_size=8, context=512
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, dict[str, int]]]]:
    """The model's folder and, for each of two ranks, bytes by case."""
    folder = tmp_path_factory.mktemp("memory")
    tiny_model(folder / "model")
    settings = {
        "out": str(folder),
        "model": str(folder / "model"),
        "images": draw_images(folder / "images"),
        "cases": CASES,
        "whole_below": WHOLE_BELOW,
    }
    run_ranks("tests.integration.memory_worker", settings, 2)
    return folder / "model", [json.loads((folder / f"memory_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_row21_a_rank_holds_what_the_doctor_says(
    measured: tuple[Path, list[dict[str, dict[str, int]]]], stage: int, dtype: str
) -> None:
    """Two real ranks, each ZeRO stage. Tolerance 1 %, because DeepSpeed pads its flat buffers.

    Under ZeRO-2 a tensor that straddles the two shares may count on both ranks.
    """
    folder, ranks = measured
    sizes = split(read_architecture(str(folder)), TrainableConfig(), "scalar")
    config = DeepSpeedConfig.model_validate({"zero_stage": stage, "whole_below": WHOLE_BELOW})
    predicted = model_states(sizes, config, 2, dtype, on_gpu=False)
    largest = max(sizes.trainable) * (2 if dtype == "bfloat16" else 4)
    for result in ranks:
        found = result[f"{stage} {dtype}"]
        assert predicted.weights == pytest.approx(found["weights"], rel=0.01)
        assert predicted.optimizer == pytest.approx(found["optimizer"], rel=0.01)
        straddling = largest if stage == 2 else 0
        assert predicted.gradients * 0.99 <= found["gradients"] <= predicted.gradients * 1.01 + straddling


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mini")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["policy", "scalar"])
def test_a_step_of_a_tenth_of_a_billion_parameters(mini: Path, kind: str, checkpointing: bool) -> None:
    """States exactly, the activations' peak never below the measured one and at most a quarter above it."""
    torch.set_num_threads(2)
    subject = Subject(mini, MINI, kind, rows=2, checkpointing=checkpointing)  # type: ignore[arg-type]
    architecture = read_architecture(str(mini))
    assert 0.09e9 < architecture.count() < 0.12e9
    predicted = activations(architecture, subject.load, subject.trainable, kind, "float32")  # type: ignore[arg-type]
    assert 1.0 <= predicted / subject.peak() <= 1.25
    learning = [parameter for parameter in subject.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    optimizer.step()
    state = storage_bytes(t for values in optimizer.state.values() for name, t in values.items() if name != "step")
    sizes = split(architecture, TrainableConfig(), kind)  # type: ignore[arg-type]
    states = model_states(sizes, DeepSpeedConfig(zero_stage=0), 1, "float32")
    assert states.weights == storage_bytes(subject.module.parameters())
    assert states.gradients == storage_bytes(p.grad for p in learning if p.grad is not None)
    assert states.optimizer == state
