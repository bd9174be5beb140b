"""One rank of several reward-model trainings; `test_reward_model.py` starts these and reads what they write."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.train_reward_model import RewardJobConfig
from rlhf.algorithms.reward_model import RewardModelConfig
from rlhf.batch import PreferencePair
from rlhf.checkpoint import RunFolder, local_path
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.learner import join_process_group
from rlhf.models.build import build_learner
from rlhf.models.export import export
from rlhf.supervised import train
from rlhf.tasks import PreferenceTask
from tests.fakes import make_prompts


def pairs(images: list[str], count: int) -> list[PreferencePair]:
    """Pairs of unequal lengths, every third without an image; the kinds alternate."""
    prompts = make_prompts(images, count)
    return [
        PreferencePair(
            replace(
                prompt,
                image=None if index % 3 == 2 else prompt.image,
                question_type=("easy", "hardq")[index % 2],
                category="Privacy" if index % 4 else "",
            ),
            "I cannot infer that. " + "No. " * (index % 5),
            "She is old. " + "Yes. " * (index % 3),
        )
        for index, prompt in enumerate(prompts)
    ]


def configuration(out: Path, model: str, name: str, ranks: int, variant: dict[str, Any]) -> RewardJobConfig:
    tree = {
        "run": {"name": name, "root": str(out), "log_every": 1, "checkpoint_every": 2},
        "model": {"path": model, "dtype": "float32", "max_length": 256, "template": "llava_hf"},
        "trainable": {"projector": variant["projector"], "lora": {"rank": 4, "alpha": 8} if variant["lora"] else None},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "deepspeed": {"zero_stage": variant["stage"], "whole_below": 100, "bucket_elements": 5_000},
        "batch": {"global_rows": 4, "micro_rows": 2},
        "workers": {"ranks": ranks},
        "epochs": 1.25,
        "data": {"train": "", "validation": "", "keywords": [], "image_root": ""},
        "validate_every": variant["validate_every"],
        "validation_rows": variant["validation_rows"],
    }
    return RewardJobConfig.model_validate(tree)


def one_run(config: RewardJobConfig, images: list[str]) -> dict[str, Any]:
    torch.manual_seed(config.run.seed)
    folder = RunFolder(config.run, config) if dist.get_rank() == 0 else None
    processor = Processor.load(config.model)
    task: Any = PreferenceTask(
        processor,
        pairs(images, 16),
        pairs(images, 7),  # not a multiple of the ranks
        RewardModelConfig(margin=0.1),
        RejectedRows(),
        config.batch.micro_rows,
        config.validate_every,
        config.validation_rows,
    )
    steps = config.total_steps(len(task))
    parts = (task.model, config.model, config.trainable, config.optimizer, config.deepspeed, steps, processor)
    learner = build_learner(*parts)
    results = train(config, task, learner, folder)
    export(learner, local_path(config.run) / "model")
    trained = {name for name, parameter in learner.module.named_parameters() if parameter.requires_grad}
    if folder:
        folder.close()
    return {"results": results, "steps": steps, "trained": sorted(trained)}


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    join_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    done = {}
    for name, variant in settings["variants"].items():
        config = configuration(Path(settings["out"]), settings["model"], name, ranks, variant)
        done[name] = one_run(config, settings["images"])
        dist.barrier()
    (Path(settings["out"]) / f"ranks_{ranks}_{rank}.json").write_text(json.dumps(done))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
