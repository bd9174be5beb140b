"""What policy and critic have in common: DeepSpeed ranks with trained state, and the group that drives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.group import Group, Rank, RunOfRoles
from actors.pending import RayPending, nothing, wait
from cluster.placement import Placement
from rlhf.batch import TensorRecord, deal
from rlhf.config import ModelConfig
from rlhf.models.llava import VisionLanguage
from rlhf.online_config import LearnerConfig, OnlineConfig


class LearnerRank(Rank):
    """One rank of a learning role."""

    config: Any

    def load_model(
        self,
        config: OnlineConfig,
        part: LearnerConfig,
        model: ModelConfig,
        kind: Callable[[VisionLanguage], nn.Module],
    ) -> None:
        """Load `model` for an online run."""
        self.config = config
        self.make_learner(config.run.seed, config.total_optimizer_steps, part, model, kind)

    def make_learner(
        self,
        seed: int,
        total_steps: int,
        part: LearnerConfig,
        model: ModelConfig,
        kind: Callable[[VisionLanguage], nn.Module],
    ) -> None:
        """Load `model`, partitioned over the ranks, with `kind` around it and an optimizer of its own."""
        from rlhf.models.build import build_learner

        torch.manual_seed(seed + self.rank)
        self.learner = build_learner(kind, model, part.trainable, part.optimizer, part.deepspeed, total_steps)

    def save(self, folder: Path) -> None:
        """Weights, optimizer and random state."""
        self.learner.save(folder)

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        self.learner.load(folder)

    def export(self, folder: Path) -> None:
        """A transformers directory, with the head beside it if there is one."""
        from rlhf.models.export import export

        export(self.learner, folder)


class LearnerGroup(Group):
    """What the driver does with a learning role, policy or critic."""

    def __init__(
        self, role: str, actor: type, config: RunOfRoles, placement: Placement, micro_rows: int, *more: Any
    ) -> None:
        super().__init__(role, actor, getattr(config.roles, role), placement)
        self._micro_rows = micro_rows
        self.join(config.roles.backend)
        self.building = self.call("build", config, *more)

    def wait_built(self) -> None:
        """Wait until every rank has its model."""
        wait(self.role, self.building)

    def infer(self, verb: str, rows: TensorRecord) -> RayPending[Tensor]:
        """[B, ...] from rows shared out over the ranks; every rank makes the same number of passes (ZeRO-3 gathers)."""
        dealt = deal(rows.sizes, self.config.ranks, self._micro_rows)
        refs = self.call_each(verb, [(rows.select(hand),) for hand in dealt.hands])
        return RayPending(self.role, refs, dealt.gather)

    def step(self, rows: TensorRecord, denominator: float) -> RayPending[dict[str, float]]:
        """One optimizer step over all ranks; the rows must be a multiple of ranks times micro-batch."""
        dealt = deal(rows.sizes, self.config.ranks)
        refs = self.call_each("step", [(rows.select(hand), denominator) for hand in dealt.hands])
        return RayPending(self.role, refs, _add_statistics)

    def save(self, folder: Path) -> RayPending[None]:
        """Write resumable state."""
        return RayPending(self.role, self.call("save", folder), nothing)

    def load(self, folder: Path) -> RayPending[None]:
        """Read resumable state."""
        return RayPending(self.role, self.call("load", folder), nothing)

    def export(self, folder: Path) -> RayPending[None]:
        """Write a transformers directory."""
        return RayPending(self.role, self.call("export", folder), nothing)


def _add_statistics(parts: list[dict[str, float]]) -> dict[str, float]:
    alike = ("lr", "grad_norm", "memory_gib")  # on all ranks; of memory the fullest one's counts
    total = {name: sum(part[name] for part in parts) for name in parts[0] if name not in alike}
    return {**total, **{name: max(part[name] for part in parts) for name in alike}}
