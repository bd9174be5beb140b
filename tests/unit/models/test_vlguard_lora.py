"""What VLGuard's presets train, in full and with adapters, and that a merged adapter is the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.sft_safe_llava import ImitationConfig
from rlhf.config import ModelConfig, TrainableConfig, load
from rlhf.data.processor import Processor
from rlhf.models import llava
from rlhf.models.heads import PolicyModel
from rlhf.models.lora import is_adapter, save_adapter
from tests.fakes import make_prompts

FOLDER = Path(__file__).parents[3] / "jobs" / "configs" / "7b"


def trainable_of(name: str) -> TrainableConfig:
    """A preset's own section, but for checkpointing, which recomputes and trains nothing."""
    section = load(ImitationConfig, FOLDER / f"{name}.yaml").trainable
    return section.model_copy(update={"gradient_checkpointing": False})


@pytest.mark.parametrize("name", ["vlguard_posthoc", "vlguard_mixed"])
def test_vlguard07_full_tuning_trains_all_but_the_tower(tiny: ModelConfig, name: str) -> None:
    vlm = PolicyModel(llava.load(tiny, trainable_of(name), Processor.load(tiny))).backbone.vlm
    learns = {key for key, parameter in vlm.named_parameters() if parameter.requires_grad}
    assert learns == {key for key, _ in vlm.named_parameters() if "vision_tower" not in key}


def test_vlguard07_adapters_train_and_merge_into_the_same_model(
    tiny: ModelConfig, pictures: list[str], tmp_path: Path
) -> None:
    section, processor = trainable_of("vlguard_posthoc_lora"), Processor.load(tiny)
    assert section.lora is not None
    policy = PolicyModel(llava.load(tiny, section, processor)).eval()
    named = dict(policy.backbone.vlm.named_parameters())
    learns = {key: one for key, one in named.items() if one.requires_grad}
    frozen = [one for key, one in named.items() if key.endswith(".base_layer.weight")]
    assert len(frozen) == 2 * 7  # seven linear layers of two blocks
    projector = sum(one.numel() for key, one in learns.items() if not is_adapter(key))
    assert projector > 0
    assert sum(one.numel() for one in learns.values()) == projector + sum(128 * sum(one.shape) for one in frozen)
    tokens = processor.join(make_prompts(pictures, 4), [[7, 8, 9, 10]] * 4)
    with torch.no_grad():
        before = policy(tokens)[0]
        torch.manual_seed(0)
        for parameter in learns.values():  # what training would do
            parameter.add_(0.02 * torch.randn_like(parameter))
        trained = policy(tokens)[0]
    save_adapter(named, section.lora, tiny.path, True, tmp_path / "adapter")
    merged = PolicyModel(llava.load(tiny.model_copy(update={"adapter": str(tmp_path / "adapter")}), None, processor))
    with torch.no_grad():
        again = merged.eval()(tokens)[0]
    assert (trained - before).abs().max() > 0.01
    torch.testing.assert_close(again, trained, atol=1e-4, rtol=0)
