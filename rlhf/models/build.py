"""From a model directory to a learner or a frozen model: where loading, partitioning and the optimizer meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rlhf.config import DeepSpeedConfig, ModelConfig, OptimizerConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.learner import Learner, deepspeed_dict, partition_while_loading, partitioned
from rlhf.models.llava import VisionLanguage, load
from rlhf.models.quantised import partition_problem


def build_learner(
    kind: Callable[[VisionLanguage], nn.Module],
    model: ModelConfig,
    trainable: TrainableConfig,
    optimizer: OptimizerConfig,
    deepspeed: DeepSpeedConfig,
    total_steps: int,
    processor: Processor | None = None,
) -> Learner:
    """Load `model` (with ZeRO-3 each rank only its share of it), put `kind` around it, and make its optimizer.

    All ranks call it, inside their process group. Raises ConfigError if there is no such model or it
    cannot be trained as asked.
    """
    if problem := partition_problem(model, deepspeed.zero_stage == 3):
        raise ConfigError([problem])
    partition = partition_while_loading(deepspeed_dict(deepspeed, optimizer, model.dtype))
    learner = Learner(kind(load(model, trainable, processor)), optimizer, deepspeed, model.dtype, total_steps)
    del partition  # it had to live until here
    return learner


def build_frozen(
    kind: Callable[[VisionLanguage], nn.Module], model: ModelConfig, weights: str, processor: Processor | None = None
) -> Any:
    """`model`, which never learns, with `kind` around it; `weights` as in `FrozenRoleConfig`.

    Unless they are whole, all ranks call this inside their process group, and the result together and equally often.
    """
    if weights == "whole":
        module = kind(load(model, None, processor)).eval().requires_grad_(False)
        return module.cuda() if torch.cuda.is_available() else module
    if problem := partition_problem(model, True):
        raise ConfigError([problem])
    settings = deepspeed_dict(DeepSpeedConfig(zero_stage=3, offload=weights == "offloaded"), None, model.dtype)
    partition = partition_while_loading(settings)
    engine = partitioned(kind(load(model, None, processor)), settings)
    del partition
    return engine
