"""Names of the hub layout, on the names of a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import ModelConfig
from rlhf.models.keys import LLAVA, QWEN, from_hub, part_of, to_hub
from rlhf.models.llava import load, save_pretrained


def test_the_two_maps_are_inverse_and_one_to_one(tiny: ModelConfig) -> None:
    names = list(load(tiny, None).named_state())
    hub = [to_hub(name, LLAVA) for name in names]
    assert len(set(hub)) == len(names) > 50
    assert [from_hub(name, LLAVA) for name in hub] == names
    assert {name.split(".")[0] for name in hub} == {"vision_tower", "multi_modal_projector", "language_model"}


def test_names_of_llava_1_5_on_the_hub() -> None:
    pairs = {
        "lm_head.weight": "language_model.lm_head.weight",
        "model.language_model.layers.0.mlp.up_proj.weight": "language_model.model.layers.0.mlp.up_proj.weight",
        "model.multi_modal_projector.linear_1.bias": "multi_modal_projector.linear_1.bias",
        "model.vision_tower.embeddings.class_embedding": "vision_tower.vision_model.embeddings.class_embedding",
        "model.vision_tower.vision_model.post_layernorm.bias": "vision_tower.vision_model.post_layernorm.bias",
    }
    assert {name: to_hub(name, LLAVA) for name in pairs} == pairs


def test_names_of_qwen_vl_on_the_hub() -> None:
    pairs = {
        "lm_head.weight": "lm_head.weight",
        "model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "model.language_model.norm.weight": "model.norm.weight",
        "model.visual.merger.mlp.0.bias": "visual.merger.mlp.0.bias",
        "model.visual.blocks.0.attn.qkv.weight": "visual.blocks.0.attn.qkv.weight",
    }
    assert {name: to_hub(name, QWEN) for name in pairs} == pairs
    assert [from_hub(name, QWEN) for name in pairs.values()] == list(pairs)
    parts = {name: part_of(name) for name in pairs}
    assert list(parts.values()) == ["lm_head", "language", "language", "projector", "tower"]


@pytest.mark.parametrize("name", ["encoder.weight", "head.weight", ""])
def test_names_of_another_model_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        to_hub(name, LLAVA)
    with pytest.raises(KeyError):
        from_hub(name, LLAVA)


def test_an_export_loads_in_transformers_without_a_difference(tiny: ModelConfig, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = load(tiny, None)
    state = {name: tensor + 0.25 for name, tensor in model.named_state().items()}
    save_pretrained(model.vlm.config, model.vlm.generation_config, state, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {to_hub(name, LLAVA) for name in state}
    back, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    loaded = dict(back.named_parameters())
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
