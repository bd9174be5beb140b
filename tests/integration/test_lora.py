"""LoRA on real DeepSpeed ranks, and what its exports are worth to transformers, PEFT and SafeVL itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.errors import ConfigError
from rlhf.models.llava import load
from tests.integration.conftest import Trained

pytestmark = pytest.mark.slow
Learners = dict[str, Trained]


@pytest.fixture(scope="module")
def runs(learners: Learners) -> Learners:
    return {name: learners[f"lora {name}"] for name in ("one", "two")}


def test_ranks_and_stages_train_the_same_adapter(runs: Learners) -> None:
    one, two = runs["one"], runs["two"]
    for step, expected in zip(two.results[0]["steps"], one.results[0]["steps"], strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    adapters = [load_file(run.folder / "exported" / "adapter" / "adapter_model.safetensors") for run in (one, two)]
    assert adapters[0].keys() == adapters[1].keys()
    for key, tensor in adapters[0].items():
        torch.testing.assert_close(tensor, adapters[1][key], atol=2e-5, rtol=0)
    assert all(tensor.abs().sum() > 0 for key, tensor in adapters[0].items() if ".lora_B." in key)
    assert one.results[0]["moved"] > 0.01


def test_row10_only_adapters_and_projector_train(runs: Learners) -> None:
    """2 layers x 7 linear layers of rank 4, and the projector; nothing of the language model's own."""
    base = load_file(f"{runs['one'].model.path}/model.safetensors")
    linears = [tensor.shape for key, tensor in base.items()
               if key.startswith("language_model.model.layers.") and key.endswith("_proj.weight")]  # fmt: skip
    projector = sum(tensor.numel() for key, tensor in base.items() if key.startswith("multi_modal_projector."))
    assert len(linears) == 14
    expected = sum(4 * (rows + columns) for rows, columns in linears) + projector
    assert {result["trainable"] for run in runs.values() for result in run.results} == {expected}


def test_adapters_off_is_the_reference(runs: Learners) -> None:
    for run in runs.values():
        for result in run.results:
            assert result["as_loaded"] < 1e-6
            assert result["back"] == 0


def test_row26_merged_export_adapter_and_peft_agree(runs: Learners, tmp_path: Path) -> None:
    """Trap T6: the tuned projector is in both exports; without it the numbers would differ."""
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    run = runs["two"]
    base_folder, export = Path(run.model.path), run.folder / "exported"
    merged = run.answers(export)
    torch.testing.assert_close(merged, run.trained, atol=2e-4, rtol=0)
    onto_base = run.answers(adapter=export / "adapter")
    torch.testing.assert_close(onto_base, merged, atol=1e-4, rtol=0)

    base = LlavaForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, export / "adapter").merge_and_unload()
    merged_state = load_file(export / "model.safetensors")
    peft.save_pretrained(tmp_path / "by_peft")
    for key, tensor in load_file(tmp_path / "by_peft" / "model.safetensors").items():
        torch.testing.assert_close(tensor, merged_state[key], atol=1e-5, rtol=0)
    before = load_file(base_folder / "model.safetensors")
    assert any(not torch.equal(merged_state[key], before[key]) for key in before if key.startswith("multi_modal_pro"))


def test_a_step_after_loading_a_checkpoint_is_the_step_itself(runs: Learners) -> None:
    for name, run in runs.items():
        assert run.results[0]["repeated"]["loss"] == run.results[0]["steps"][2]["loss"], name


def test_an_adapter_of_another_base_is_refused(runs: Learners, tmp_path: Path) -> None:
    adapter = runs["one"].folder / "exported" / "adapter"
    state = load_file(adapter / "adapter_model.safetensors")
    wide = {key: torch.zeros(4, 48) if ".lora_A." in key else tensor for key, tensor in state.items()}
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file(wide, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.adapter: .*was trained on another base.*set the model's path"):
        load(runs["one"].model.model_copy(update={"adapter": str(tmp_path)}), None)
