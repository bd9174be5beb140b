"""LoRA on real DeepSpeed ranks, and what its exports are worth to transformers, PEFT and SafeVL itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import CheckpointError
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.integration.test_learner import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    tiny_model(folder / "model")
    draw_images(folder / "images")
    return folder


@pytest.fixture(scope="module")
def images(folder: Path) -> list[str]:
    return [str(path) for path in sorted((folder / "images").iterdir())]


@pytest.fixture(scope="module")
def runs(folder: Path, images: list[str]) -> dict[str, list[dict[str, Any]]]:
    shapes = {"one": (1, 0, 8), "two": (2, 3, 2)}
    return {
        name: run(folder / name, str(folder / "model"), images, *shape, lora=True) for name, shape in shapes.items()
    }


def config(path: Path, adapter: Path | None = None) -> ModelConfig:
    return ModelConfig(
        path=str(path), adapter=str(adapter) if adapter else None, dtype="float32", max_length=256, template="llava_hf"
    )


@torch.no_grad()
def answers(model: ModelConfig, images: list[str]) -> torch.Tensor:
    """[8] summed log-probabilities of the answers that the worker trains on (step 0)."""
    processor = Processor.load(model)
    prompts = make_prompts(images, 4) + make_prompts([], 4)
    rows = [processor.encode(prompt, "yes " * (1 + (3 * i) % 5)) for i, prompt in enumerate(prompts)]
    return PolicyModel(load(model, None, processor)).eval()(processor.collate(rows))[0].sum(dim=1)


def test_ranks_and_stages_train_the_same_adapter(runs: dict[str, Any], folder: Path) -> None:
    for step, expected in zip(runs["two"][0]["steps"][:1], runs["one"][0]["steps"][:1], strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for name, results in runs.items():
        adapter = load_file(folder / name / "exported" / "adapter" / "adapter_model.safetensors")
        assert all(tensor.abs().sum() > 0 for key, tensor in adapter.items() if ".lora_B." in key)
        assert results[0]["moved"] > 0.01


def test_row10_only_adapters_and_projector_train(runs: dict[str, Any], folder: Path) -> None:
    """2 layers x 7 linear layers of rank 4, and the projector; nothing of the language model's own."""
    base = load_file(folder / "model" / "model.safetensors")
    linears = [tensor.shape for key, tensor in base.items()
               if key.startswith("language_model.model.layers.") and key.endswith("_proj.weight")]  # fmt: skip
    projector = sum(tensor.numel() for key, tensor in base.items() if key.startswith("multi_modal_projector."))
    assert len(linears) == 14
    expected = sum(4 * (rows + columns) for rows, columns in linears) + projector
    assert {result["trainable"] for results in runs.values() for result in results} == {expected}


def test_adapters_off_is_the_reference(runs: dict[str, Any]) -> None:
    for results in runs.values():
        for result in results:
            assert result["as_loaded"] < 1e-6
            assert result["back"] == 0


def test_row26_merged_export_adapter_and_peft_agree(runs: dict[str, Any], folder: Path, images: list[str]) -> None:
    """Trap T6: the tuned projector is in both exports; without it the numbers would differ."""
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    export = folder / "two" / "exported"
    merged = answers(config(export), images)
    trained = torch.tensor([value for result in runs["two"] for value in result["trained"]])
    torch.testing.assert_close(merged, trained, atol=2e-4, rtol=0)
    onto_base = answers(config(folder / "model", export / "adapter"), images)
    torch.testing.assert_close(onto_base, merged, atol=1e-4, rtol=0)

    base = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, export / "adapter").merge_and_unload()
    merged_state = load_file(export / "model.safetensors")
    peft.save_pretrained(folder / "by_peft")
    for key, tensor in load_file(folder / "by_peft" / "model.safetensors").items():
        torch.testing.assert_close(tensor, merged_state[key], atol=1e-5, rtol=0)
    before = load_file(folder / "model" / "model.safetensors")
    assert any(not torch.equal(merged_state[key], before[key]) for key in before if key.startswith("multi_modal_pro"))


def test_a_step_after_loading_a_checkpoint_is_the_step_itself(runs: dict[str, Any]) -> None:
    for name, results in runs.items():
        assert results[0]["repeated"]["loss"] == results[0]["steps"][2]["loss"], name


def test_an_adapter_of_another_base_is_refused(runs: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    adapter = folder / "one" / "exported" / "adapter"
    state = load_file(adapter / "adapter_model.safetensors")
    wide = {key: torch.zeros(4, 48) if ".lora_A." in key else tensor for key, tensor in state.items()}
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file(wide, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="another base model"):
        load(config(folder / "model", tmp_path), None)
