"""One rank that meets a gradient which is not finite, and a large tensor, under each setting, for test_learner.py."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.config import DeepSpeedConfig, OptimizerConfig
from rlhf.errors import NonFiniteError
from rlhf.learner import Learner, join_process_group
from rlhf.models.llava import DTYPES

LARGE = 2**26  # elements of 4 bytes
OPTIMIZER = OptimizerConfig(lr=1e-2, schedule="constant")


def good(engine: Any, micro: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return engine(micro).sum(), {}


def poisoned(engine: Any, micro: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """On the last rank a loss of 0 whose gradient is 0 / 0."""
    result = engine(micro).sum()
    last = dist.get_rank() == dist.get_world_size() - 1
    return (result * 0.0).abs().sqrt() if last else result, {}


def weight(learner: Learner) -> list[float]:
    """The whole matrix."""
    ((_, tensor),) = next(iter(learner.gathered(list(learner.module.named_parameters()))))
    return tensor.float().flatten().tolist()


def one(stage: int, dtype: str) -> dict[str, Any]:
    torch.manual_seed(0)
    module = nn.Linear(4, 4, bias=False, dtype=DTYPES[dtype])
    deepspeed = DeepSpeedConfig.model_validate({"zero_stage": stage, "whole_below": 0})
    learner = Learner(module, OPTIMIZER, deepspeed, dtype, 10)
    batch = [torch.ones(1, 4, dtype=DTYPES[dtype])]
    result: dict[str, Any] = {"loaded": weight(learner), "error": ""}
    try:
        learner.step(batch, poisoned)
    except NonFiniteError as error:
        result["error"] = str(error)
    result |= {"steps": learner.steps, "after": weight(learner)}
    small = learner.step(batch, good)["memory_gib"]
    result["next"] = weight(learner)
    held = torch.ones(LARGE)
    result["memory"] = [small, learner.step(batch, good)["memory_gib"]]
    del held
    learner.engine.destroy()
    return result


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    join_process_group("gloo")
    results = {}
    for stage, dtype in settings["cases"]:
        results[f"{stage} {dtype}"] = one(stage, dtype)
        gc.collect()
    (Path(settings["out"]) / f"gradient_{os.environ['RANK']}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
