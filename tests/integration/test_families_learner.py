"""Other architectures on real DeepSpeed ranks: tied embeddings and newline embeddings, whole and partitioned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from rlhf.models.tiny import TinyKind
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.integration.test_learner import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["llava_interleave", "llava_onevision"])
def test_zero3_trains_and_exports_other_architectures(tmp_path: Path, kind: TinyKind) -> None:
    """Rank 1 of 2 sees no image at all."""
    model, images = tiny_model(tmp_path / "model", kind=kind), draw_images(tmp_path / "images")
    shapes = {"one": (1, 0, 8), "two": (2, 3, 2)}
    results = {name: run(tmp_path / name, model.path, images, *shape) for name, shape in shapes.items()}
    weights = {name: load_file(tmp_path / name / "exported" / "model.safetensors") for name in shapes}
    for step, expected in zip(results["two"][0]["steps"], results["one"][0]["steps"], strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    before = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == weights["one"].keys() == weights["two"].keys()
    assert not any("lm_head" in name for name in before)  # tied
    moved = {name for name in before if not torch.equal(before[name], weights["two"][name])}
    assert {name for name in before if not name.startswith("vision_tower.")} == moved
    for name in before:
        torch.testing.assert_close(weights["two"][name], weights["one"][name], atol=2e-5, rtol=0)
    trained = torch.tensor([value for result in results["two"] for value in result["trained"]])
    exported = model.model_copy(update={"path": str(tmp_path / "two" / "exported")})
    torch.testing.assert_close(answers(exported, images), trained, atol=2e-4, rtol=0)


def test_lora_leaves_the_newline_embedding_alone(tmp_path: Path) -> None:
    """PEFT's format could not carry it."""
    model, images = tiny_model(tmp_path / "model", kind="llava_onevision"), draw_images(tmp_path / "images")
    results: list[dict[str, Any]] = run(tmp_path / "two", model.path, images, 2, 3, 2, lora=True)
    assert all(result["moved"] > 0.01 and result["as_loaded"] < 1e-6 for result in results)
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "two" / "exported" / "model.safetensors")
    assert torch.equal(before["image_newline"], after["image_newline"])
    trained = torch.tensor([value for result in results for value in result["trained"]])
    adapter = {"adapter": str(tmp_path / "two" / "exported" / "adapter")}
    torch.testing.assert_close(answers(model.model_copy(update=adapter), images), trained, atol=2e-4, rtol=0)


@torch.no_grad()
def answers(model: ModelConfig, images: list[str]) -> torch.Tensor:
    """[8] summed log-probabilities of the answers that the worker trains on (step 0), without DeepSpeed."""
    processor = Processor.load(model)
    prompts = make_prompts(images, 4) + make_prompts([], 4)
    rows = [processor.encode(prompt, "yes " * (1 + (3 * i) % 5)) for i, prompt in enumerate(prompts)]
    return PolicyModel(load(model, None, processor)).eval()(processor.collate(rows))[0].sum(dim=1)
