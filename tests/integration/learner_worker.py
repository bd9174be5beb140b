"""One rank of several trainings; `conftest.py` starts these, and tests read what they write."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhf.algorithms.sft import sft_objective
from rlhf.config import DeepSpeedConfig, LoraConfig, OptimizerConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import NonFiniteError
from rlhf.learner import Learner, join_process_group
from rlhf.models.build import build_learner
from rlhf.models.export import export
from rlhf.models.heads import PolicyModel
from tests.fakes import make_prompts

OPTIMIZER = OptimizerConfig(lr=1e-3, schedule="constant", max_grad_norm=0.5)


def build(model_path: str, stage: int, lora: bool) -> tuple[Learner, Processor]:
    from rlhf.config import ModelConfig

    kind = json.loads((Path(model_path) / "config.json").read_text())["model_type"]
    config = ModelConfig(
        path=model_path, dtype="float32", max_length=256, template="llava_hf", pad_to_square=kind == "llava"
    )
    # fewer than the elements of an embedding: a newline embedding is partitioned too
    deepspeed = DeepSpeedConfig(zero_stage=stage, whole_below=20, bucket_elements=5_000)  # type: ignore[arg-type]
    processor = Processor.load(config)
    trainable = TrainableConfig(lora=LoraConfig(rank=4, alpha=8) if lora else None)
    return build_learner(PolicyModel, config, trainable, OPTIMIZER, deepspeed, 10, processor), processor


def logprobs(learner: Learner, processor: Processor, images: list[str]) -> torch.Tensor:
    batches, _ = micro_batches(processor, images, 0, 8)
    return torch.cat(learner.infer(batches, lambda engine, batch: engine(batch)[0].sum(dim=1)))


def micro_batches(processor: Processor, images: list[str], step: int, size: int) -> tuple[list[Any], float]:
    """This rank's share of 8 rows, of unequal lengths, half of them without an image."""
    prompts = make_prompts(images, 4) + make_prompts([], 4)
    rows = [processor.encode(prompt, "yes " * (1 + (3 * i + step) % 5)) for i, prompt in enumerate(prompts)]
    total = float(sum(sum(row.response) for row in rows))
    share = len(rows) // dist.get_world_size()
    mine = rows[dist.get_rank() * share : (dist.get_rank() + 1) * share]
    return [processor.collate(mine[low : low + size]) for low in range(0, share, size)], total


def one_step(learner: Learner, processor: Processor, images: list[str], step: int, size: int) -> dict[str, float]:
    batches, total = micro_batches(processor, images, step, size)
    stats = learner.step(batches, lambda engine, batch: sft_objective(engine(batch)[0], batch, total))
    loss = torch.tensor(stats["loss"])
    dist.all_reduce(loss)
    return {"loss": float(loss), "grad_norm": stats["grad_norm"], "lr": stats["lr"]}


def poisoned(learner: Learner, processor: Processor, images: list[str]) -> str:
    """A NaN on the last rank only."""
    batches, total = micro_batches(processor, images, 0, 8)
    factor = float("nan") if dist.get_rank() == dist.get_world_size() - 1 else 1.0
    try:
        learner.step(batches, lambda engine, batch: (engine(batch)[0].sum() * factor / total, {}))
    except NonFiniteError as error:
        return str(error)
    return "no error"


def one_run(out: Path, images: list[str], variant: dict[str, Any], model: str) -> dict[str, Any]:
    learner, processor = build(model, variant["stage"], variant["lora"])
    result: dict[str, Any] = {"steps": []}
    start = logprobs(learner, processor, images)
    for step in range(2):
        result["steps"].append(one_step(learner, processor, images, step, variant["micro_rows"]))
    trained = logprobs(learner, processor, images)
    result["moved"] = float((trained - start).abs().max())
    result["trained"] = trained.tolist()
    if variant["lora"]:
        with learner.module.backbone.as_loaded():
            result["as_loaded"] = float((logprobs(learner, processor, images) - start).abs().max())
        result["back"] = float((logprobs(learner, processor, images) - trained).abs().max())
    result["trainable"] = sum(getattr(p, "ds_numel", p.numel()) for p in learner.module.parameters() if p.requires_grad)
    learner.save(out / "checkpoint")
    export(learner, out / "exported")
    result["nan"] = poisoned(learner, processor, images)
    export(learner, out / "after_nan")
    result["steps"].append(one_step(learner, processor, images, 2, variant["micro_rows"]))
    learner.load(out / "checkpoint")
    result["repeated"] = one_step(learner, processor, images, 2, variant["micro_rows"])
    result["own_parameters"] = sum(p.numel() for p in learner.module.parameters())  # ZeRO-3 leaves empty tensors
    return result


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    join_process_group("gloo")
    for name, variant in settings["variants"].items():
        torch.manual_seed(0)
        out = Path(settings["out"]) / name
        result = one_run(out, settings["images"], variant, f"{settings['models']}/{variant['model']}")
        (out / f"result_{os.environ['RANK']}.json").write_text(json.dumps(result))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
