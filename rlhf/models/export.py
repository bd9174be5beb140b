"""Trained weights as transformers directories."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from rlhf.learner import Learner
from rlhf.models.heads import HEAD_FILE, PolicyModel, ScalarModel
from rlhf.models.llava import VisionLanguage, save_pretrained


def export_policy(learner: Learner, model: PolicyModel, folder: Path) -> None:
    """Gather and write a policy. All ranks call it; rank 0 writes."""
    _write(learner, model.backbone, folder)


def export_scalar(learner: Learner, model: ScalarModel, folder: Path) -> None:
    """Gather and write a reward model or critic: backbone directory plus head. All ranks call it; rank 0 writes."""
    _write(learner, model.backbone, folder)
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
        save_pretrained(backbone.vlm.config, backbone.vlm.generation_config, state, folder)
        backbone.processor.save(folder)
    dist.barrier()
