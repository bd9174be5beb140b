"""Supervised training on Ray Train: workers join, build the same task and learner, and run `rlhf.supervised.train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from rlhf.checkpoint import RunFolder, local_path
from rlhf.data.rejected import RejectedRows
from rlhf.errors import SafeVLError
from rlhf.supervised import SupervisedConfig

JobConfig = TypeVar("JobConfig", bound=SupervisedConfig)
Build = Callable[[JobConfig, RejectedRows], Any]  # -> the task


def fit(config: JobConfig, build: Build[JobConfig]) -> dict[str, float]:
    """Train on `config.workers.ranks` workers, validate and export to the run folder; returns the final metrics.

    A worker that dies restarts the group, which goes on from the newest checkpoint. An error that SafeVL raised on
    purpose is not retried: it would happen again.
    """
    role = config.workers
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config, "build": build},
        torch_config=TorchConfig(backend="nccl" if role.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=role.ranks,
            use_gpu=role.gpus > 0,
            resources_per_worker={"CPU": role.cpus, **({"GPU": role.gpus} if role.gpus else {})},
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=_scratch(config),
            failure_config=FailureConfig(max_failures=config.run.max_restarts),
        ),
    )
    outcome = trainer.fit().return_value
    if isinstance(outcome, SafeVLError):
        raise outcome
    return outcome


def _scratch(config: SupervisedConfig) -> str:
    # Ray Train wants a folder for its own bookkeeping; checkpoints are ours
    return f"/tmp/safevl-ray-train/{config.run.name.replace('/', '-')}"


def _worker(setup: dict[str, Any]) -> dict[str, float] | SafeVLError:
    try:
        return _train(setup["config"], setup["build"])
    except SafeVLError as error:
        return error


def _train(config: SupervisedConfig, build: Build[Any]) -> dict[str, float]:
    import torch

    from rlhf.learner import join_process_group
    from rlhf.models.build import build_learner
    from rlhf.models.export import export
    from rlhf.supervised import train

    torch.set_num_threads(config.workers.threads)
    torch.manual_seed(config.run.seed)
    join_process_group("nccl" if config.workers.gpus else "gloo")
    writer = ray.train.get_context().get_world_rank() == 0
    folder = RunFolder(config.run, config) if writer else None
    try:
        task = build(config, RejectedRows(folder.path / "rejected.jsonl" if folder else None))
        steps = config.total_steps(len(task))
        learner = build_learner(
            task.model, config.model, config.trainable, config.optimizer, config.deepspeed, steps, task.processor
        )
        results = train(config, task, learner, folder)
        export(learner, local_path(config.run) / "model")
        if folder:
            folder.mark_complete()
        return results
    finally:
        if folder:
            folder.close()
