"""One rank that trains one step per setting and counts the bytes it holds: a process of test_memory.py."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhf.config import DeepSpeedConfig, ModelConfig, OptimizerConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.learner import Learner, join_process_group
from rlhf.models.build import build_learner
from rlhf.models.heads import ScalarModel
from tests.fakes import make_prompts
from tests.memory_meter import storage_bytes

OPTIMIZER = OptimizerConfig(lr=1e-3, schedule="constant")


def held(learner: Learner, batch: Any) -> dict[str, int]:
    """Bytes of weights, of gradients when a backward pass is done, and of the optimizer's state after a step."""
    engine, optimizer = learner.engine, learner.engine.optimizer
    parameters = list(learner.module.parameters())
    before_reduction: list[int] = []
    if engine.zero_optimization_stage() == 1:  # it reduces and drops gradients only when all of them are there
        reduce = optimizer.reduce_gradients

        def noting(*arguments: Any, **named: Any) -> None:
            before_reduction.append(storage_bytes(p.grad for p in parameters if p.grad is not None))
            reduce(*arguments, **named)

        optimizer.reduce_gradients = noting
    engine.train()
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(engine(batch).sum())
    gradients = max(before_reduction, default=0) or storage_bytes(_gradients(learner))
    engine.step()
    weights = [getattr(p, "ds_tensor", p.data) for p in parameters]
    weights += [p.data for p in parameters if hasattr(p, "ds_tensor") and p.ds_persist]
    return {"weights": storage_bytes(weights), "gradients": gradients, "optimizer": _optimizer(optimizer, weights)}


def _gradients(learner: Learner) -> list[torch.Tensor]:
    optimizer = learner.engine.optimizer
    if learner.engine.zero_optimization_stage() == 3:
        return [optimizer.grad_partitions_flat_buffer]
    if learner.engine.zero_optimization_stage() == 2:
        return [tensor for tensors in optimizer.averaged_gradients.values() for tensor in tensors]
    return [p.grad for p in learner.module.parameters() if p.grad is not None]


def _optimizer(optimizer: Any, weights: list[torch.Tensor]) -> int:
    """Adam's moments, and the master copy where it is not the weights themselves."""
    inner = getattr(optimizer, "optimizer", optimizer)
    state = [t for values in inner.state.values() for t in values.values() if isinstance(t, torch.Tensor) and t.dim()]
    flat = getattr(optimizer, "fp32_partitioned_groups_flat", [])  # stage 3 empties the groups between steps
    masters = [*flat, *(p for group in inner.param_groups for p in group["params"])]
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    return storage_bytes([*state, *(t for t in masters if t.untyped_storage().data_ptr() not in own)])


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    join_process_group("gloo")
    results = {}
    for stage, dtype in settings["cases"]:
        config = ModelConfig(path=settings["model"], dtype=dtype, max_length=256, template="llava_hf")
        processor = Processor.load(config)
        deepspeed = DeepSpeedConfig(zero_stage=stage, whole_below=settings["whole_below"])
        learner = build_learner(ScalarModel, config, TrainableConfig(), OPTIMIZER, deepspeed, 10, processor)
        prompts = make_prompts(settings["images"], 2)
        batch = processor.collate([processor.encode(prompt, "The ball is red.") for prompt in prompts])
        results[f"{stage} {dtype}"] = held(learner, batch)
        learner.engine.destroy()
        del learner
        gc.collect()
    (Path(settings["out"]) / f"memory_{os.environ['RANK']}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
