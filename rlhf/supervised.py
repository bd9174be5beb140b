"""The loop over a fixed dataset: pretraining, instruction tuning, reward model.

Every rank runs `train` on its share of the same global batches, so the result does not depend on the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from rlhf.batch import TensorRecord
from rlhf.checkpoint import RunFolder
from rlhf.config import BatchConfig, Config, DeepSpeedConfig, ModelConfig, OptimizerConfig, RoleConfig, RunConfig
from rlhf.config import TrainableConfig as Trainable
from rlhf.data.grouping import GroupedOrder
from rlhf.data.processor import Processor
from rlhf.data.stream import rows_at
from rlhf.learner import Learner
from rlhf.metrics import MetricsLog, Progress
from rlhf.models.llava import VisionLanguage

Batch = TypeVar("Batch", bound=TensorRecord)


class SupervisedConfig(Config):
    """Sections that every supervised job shares."""

    run: RunConfig
    model: ModelConfig
    trainable: Trainable = Trainable()
    optimizer: OptimizerConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    batch: BatchConfig
    workers: RoleConfig = RoleConfig()
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data; fractions are allowed."""

    def total_steps(self, rows: int) -> int:
        """Optimizer steps for a dataset of `rows` rows, at least one."""
        return max(1, int(self.epochs * rows // self.batch.global_rows))


class Task(Protocol, Generic[Batch]):
    """What is learned: how rows become batches, what a batch costs, and what is measured at the end."""

    processor: Processor
    model: Callable[[VisionLanguage], nn.Module]
    """What stands around the backbone."""

    def __len__(self) -> int:
        """Rows."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows as one padded batch."""

    def length(self, row: int) -> int:
        """Tokens of a row's longest sequence."""

    def has_image(self, row: int) -> bool:
        """Whether a row shows an image."""

    def count(self, batch: Batch) -> int:
        """What the loss averages over: response tokens, or pairs."""

    def room(self, batch: Batch) -> tuple[int, int]:
        """Tokens of a batch, and places of its rows with their padding."""

    def loss(self, engine: Any, batch: Batch, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the batch divided by the global denominator."""

    validate_every: int
    """Steps between looks at held-out data while training; 0 leaves them out."""

    def validate(self, learner: Learner) -> dict[str, float]:
        """Metrics on held-out data while training; all ranks call it, and it changes nothing that training reads."""

    def evaluate(self, learner: Learner, folder: Path | None) -> dict[str, float]:
        """Metrics on all held-out data after the last step; all ranks call it, rank 0 with the run's folder."""


def train(config: SupervisedConfig, task: Task[Batch], learner: Learner, folder: RunFolder | None) -> dict[str, float]:
    """Train to the last step, going on from the newest checkpoint; returns the final metrics.

    Args:
        config: of the job.
        task: the data and the loss.
        learner: with a freshly loaded model.
        folder: the run folder, on rank 0 only.
    """
    total = config.total_steps(len(task))
    rows_of = row_order(config, task, total)
    start = _resume(learner, folder)
    log = MetricsLog(folder.path, start) if folder else None
    with Progress(config.run.name, total, start) if folder else nullcontext() as progress:
        for step in range(start, total):
            began = time.monotonic()
            stats = _one_step(config, task, learner, rows_of(step))
            stats["seconds/step"] = time.monotonic() - began
            if log and progress:
                progress.advance(step + 1, {key: stats[key] for key in ("loss", "lr", "grad_norm")})
                if (step + 1) % config.run.log_every == 0 or step + 1 == total:
                    log.log(step + 1, stats)
            if step + 1 < total:
                _between_steps(config, task, learner, folder, log, step + 1)
    if total > start:
        _save(learner, folder, total)
    results = task.evaluate(learner, folder.path if folder else None)
    if log:
        if results:
            log.log(total, results)
        log.close()
    return results


def row_order(config: SupervisedConfig, task: Task[Batch], steps: int) -> Callable[[int], Sequence[int]]:
    """From a step to the rows of its global batch: shuffled, or grouped and sorted as `batch` says."""
    size, rows = config.batch.global_rows, range(len(task))
    if not config.batch.group_by_modality and config.batch.length_window == 1:
        return lambda step: rows_at(len(task), config.run.seed, step * size, size)
    groups: list[Sequence[int]] = [rows]
    if config.batch.group_by_modality:
        groups = [[row for row in rows if task.has_image(row) == visual] for visual in (True, False)]
    return GroupedOrder(groups, task.length, config.epochs, steps, config.batch, config.run.seed).rows


def infer_split(
    learner: Learner,
    rows: Sequence[int],
    size: int,
    batch: Callable[[Sequence[int]], Batch],
    forward: Callable[[Any, Batch], Tensor],
) -> Tensor:
    """Every rank runs its share of `rows` without gradient, and all of them get the whole result.

    Args:
        learner: all ranks call this together.
        rows: at least one, the same on every rank.
        size: rows per forward pass.
        batch: makes a batch of some rows.
        forward: [B, K] from the engine and such a batch.

    Returns [rows, K] float64 in the order of `rows`.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    share = math.ceil(len(rows) / world)
    # a rank short of rows repeats the last one: under ZeRO-3 all ranks must run equally many passes
    places = [min(rank * share + index, len(rows) - 1) for index in range(share)]
    own = max(0, min(share, len(rows) - rank * share))
    pieces = [places[low : low + size] for low in range(0, share, size)]
    results = torch.cat(learner.infer([batch([rows[place] for place in piece]) for piece in pieces], forward))
    whole = torch.zeros(len(rows), results.shape[1], dtype=torch.float64)
    whole[places[:own]] = results[:own].double()
    return _all_summed(whole)


def _between_steps(
    config: SupervisedConfig,
    task: Task[Batch],
    learner: Learner,
    folder: RunFolder | None,
    log: MetricsLog | None,
    step: int,
) -> None:
    # looked at before it is saved: a run that goes on from this step does not look again
    if task.validate_every and step % task.validate_every == 0:
        results = task.validate(learner)
        if log:
            log.log(step, results)
    if step % config.run.checkpoint_every == 0:
        _save(learner, folder, step)


def _one_step(config: SupervisedConfig, task: Task[Batch], learner: Learner, rows: Sequence[int]) -> dict[str, float]:
    # Dealt out by length: every rank has as much to do, and little of a micro-batch is padding. The sum is the same.
    ranked = sorted(rows, key=task.length, reverse=True)
    mine = ranked[dist.get_rank() :: dist.get_world_size()]
    size = config.batch.micro_rows
    batches = [task.batch(mine[low : low + size]) for low in range(0, len(mine), size)]
    tokens, places = zip(*(task.room(batch) for batch in batches), strict=True)
    count = sum(task.count(batch) for batch in batches)
    whole = _summed({"count": float(count), "tokens": float(sum(tokens)), "places": float(sum(places))})
    stats = learner.step(batches, lambda engine, batch: task.loss(engine, batch, whole["count"]))
    local = {name: stats.pop(name) for name in ("lr", "grad_norm", "memory_gib")}
    return {**_summed(stats), **local, "batch/fill": whole["tokens"] / whole["places"]}


def _summed(values: Mapping[str, float]) -> dict[str, float]:
    flat = _all_summed(torch.tensor(list(values.values()), dtype=torch.float64))
    return dict(zip(values, flat.tolist(), strict=True))


def _all_summed(tensor: Tensor) -> Tensor:
    if torch.cuda.is_available():
        tensor = tensor.cuda()
    dist.all_reduce(tensor)
    return tensor.cpu()


def _resume(learner: Learner, folder: RunFolder | None) -> int:
    checkpoint = folder.checkpoints.latest() if folder else None
    found = [(str(checkpoint.folder), checkpoint.step) if checkpoint else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return 0
    learner.load(Path(found[0][0]) / "learner")
    return found[0][1]


def _save(learner: Learner, folder: RunFolder | None, step: int) -> None:
    place = [str(folder.checkpoints.begin(step)) if folder else None]
    dist.broadcast_object_list(place)
    learner.save(Path(str(place[0])) / "learner")
    if folder:
        folder.checkpoints.commit(step, {"step": step})
        folder.publish()
    dist.barrier()
