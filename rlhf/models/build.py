"""From a model directory to a learner: the one place where loading, partitioning and the optimizer meet."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rlhf.config import DeepSpeedConfig, ModelConfig, OptimizerConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.learner import Learner, deepspeed_dict, partition_while_loading
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
    if problem := partition_problem(model, deepspeed):
        raise ConfigError([problem])
    partition = partition_while_loading(deepspeed_dict(deepspeed, optimizer, model.dtype))
    learner = Learner(kind(load(model, trainable, processor)), optimizer, deepspeed, model.dtype, total_steps)
    del partition  # it had to live until here
    return learner
