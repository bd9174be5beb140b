"""Trained weights as transformers directories; after LoRA with the adapter merged, and apart in `adapter/` for PEFT."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from rlhf.config import resolve
from rlhf.learner import Learner
from rlhf.models.heads import HEAD_FILE, ScalarModel
from rlhf.models.keys import is_projector
from rlhf.models.llava import VisionLanguage, load, save_pretrained
from rlhf.models.lora import is_adapter, merged, save_adapter

ADAPTER_FOLDER = "adapter"


def export(learner: Learner, folder: Path) -> None:
    """Gather and write a policy, or a scalar model with its head beside it. All ranks call it; rank 0 writes."""
    _write(learner, learner.module.backbone, folder)
    if isinstance(learner.module, ScalarModel):
        _write_head(learner, learner.module, folder)


def _write_head(learner: Learner, model: ScalarModel, folder: Path) -> None:
    for bucket in learner.gathered([("head.weight", model.head.weight)]):
        if dist.get_rank() == 0:
            from safetensors.torch import save_file

            save_file({name: tensor.cpu().contiguous() for name, tensor in bucket}, folder / HEAD_FILE)


def _write(learner: Learner, backbone: VisionLanguage, folder: Path) -> None:
    state: dict[str, Tensor] = {}
    for bucket in learner.gathered(list(backbone.named_state().items())):
        if dist.get_rank() == 0:
            state.update({name: tensor.cpu().clone() for name, tensor in bucket})
    if dist.get_rank() == 0:
        if backbone.lora is not None:
            projector = any(parameter.requires_grad for parameter in backbone.projector.parameters())
            base = resolve(backbone.processor.config.path)
            state = _unquantised(backbone, state)
            save_adapter(state, backbone.lora, base, projector, folder / ADAPTER_FOLDER)
            state = merged(state, backbone.lora.scale)
        save_pretrained(backbone.vlm.config, backbone.vlm.generation_config, state, folder)
        backbone.processor.save(folder)
    dist.barrier()


def _unquantised(backbone: VisionLanguage, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained parts on the base as it is on disk: an adapter merged into 4-bit weights would lose its precision."""
    config = backbone.processor.config
    if config.quantise == "none":
        return state
    base = load(config.model_copy(update={"quantise": "none", "feature_store": None}), None, backbone.processor)
    trained = {name: tensor for name, tensor in state.items() if is_adapter(name) or is_projector(name)}
    return base.named_state() | trained
