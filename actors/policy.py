"""The policy: DeepSpeed ranks that give log-probabilities, learn, and hand out their weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.group import Group, Rank, shares
from actors.pending import RayPending, nothing, wait
from cluster.placement import Placement
from rlhf.algorithms import ppo
from rlhf.batch import Experience, TokenBatch
from rlhf.online_config import OnlineConfig


class PolicyRank(Rank):
    """One rank of the policy."""

    def build(self, config: OnlineConfig) -> None:
        """Load the model, partitioned over the ranks, and its optimizer."""
        from rlhf.learner import Learner, deepspeed_dict, partition_while_loading
        from rlhf.models.heads import PolicyModel
        from rlhf.models.llava import load

        torch.manual_seed(config.run.seed + self.rank)
        self.config = config
        part = config.policy
        self._partition = partition_while_loading(deepspeed_dict(part.deepspeed, part.optimizer, config.model.dtype))
        self.model = PolicyModel(load(config.model, part.trainable))
        self.learner = Learner(
            self.model, part.optimizer, part.deepspeed, config.model.dtype, config.total_optimizer_steps
        )

    def logprobs(self, tokens: TokenBatch) -> Tensor:
        """[B, T] of this rank's rows."""
        temperature, width = self.config.sampling.temperature, tokens.input_ids.shape[1]

        def forward(engine: Any, micro: TokenBatch) -> Tensor:
            return _widen(engine(micro.trimmed(), temperature)[0], width)

        return torch.cat(self.learner.infer(tokens.split(self.config.policy.micro_rows), forward))

    def step(self, experience: Experience, denominator: float) -> dict[str, float]:
        """One optimizer step on this rank's rows; statistics are this rank's part of the global means."""
        temperature, algorithm = self.config.sampling.temperature, self.config.algorithm

        def objective(engine: Any, micro: Experience) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs, entropy = engine(micro.tokens, temperature)
            return ppo.policy_loss(logprobs, entropy, micro.to(logprobs.device), algorithm, denominator)

        return self.learner.step(experience.split(self.config.policy.micro_rows), objective)

    def stream_weights(self) -> Iterator[Any]:
        """Every trainable weight under its hub name, as packed buckets; rank 0 yields, the others help to gather."""
        from rlhf.models.keys import to_hub
        from rlhf.rollout.weights import pack

        named = [(n, p) for n, p in self.model.backbone.vlm.named_parameters() if p.requires_grad]
        for bucket in self.learner.gathered([(to_hub(name), tensor) for name, tensor in named]):
            if self.rank == 0:
                yield pack(bucket)

    def help_stream(self) -> None:
        """The other ranks' side of `stream_weights`."""
        for _ in self.stream_weights():
            pass

    def save(self, folder: Path) -> None:
        """Weights, optimizer and random state."""
        self.learner.save(folder)

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        self.learner.load(folder)

    def export(self, folder: Path) -> None:
        """A transformers directory."""
        from rlhf.models.export import export_policy

        export_policy(self.learner, self.model, folder)


class LearnerGroup(Group):
    """What the driver does with a learning role, policy or critic."""

    def __init__(self, role: str, actor: type, config: OnlineConfig, placement: Placement, micro_rows: int) -> None:
        super().__init__(role, actor, getattr(config.roles, role), placement)
        self._micro_rows = micro_rows
        self.join(config.roles.backend)
        self.building = self.call("build", config)

    def wait_built(self) -> None:
        """Wait until every rank has its model."""
        wait(self.role, self.building)

    def infer(self, verb: str, tokens: TokenBatch) -> RayPending[Tensor]:
        """[B, T] from rows shared out over the ranks; every rank makes the same number of passes (ZeRO-3 gathers)."""
        padded = _pad_rows(len(tokens), self.config.ranks * self._micro_rows)
        pieces = shares(len(padded), self.config.ranks)
        refs = self.call_each(verb, [(tokens.select(padded[piece.start : piece.stop]),) for piece in pieces])
        return RayPending(self.role, refs, lambda parts: torch.cat(parts)[: len(tokens)])

    def step(self, experience: Experience, denominator: float) -> RayPending[dict[str, float]]:
        """One optimizer step over all ranks."""
        pieces = shares(len(experience), self.config.ranks)
        refs = self.call_each("step", [(experience.select(piece), denominator) for piece in pieces])
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


class PolicyGroup(LearnerGroup):
    """The policy as the loop sees it."""

    def __init__(self, config: OnlineConfig, placement: Placement) -> None:
        super().__init__("policy", PolicyRank, config, placement, config.policy.micro_rows)

    def logprobs(self, tokens: TokenBatch) -> RayPending[Tensor]:
        """[B, T]."""
        return self.infer("logprobs", tokens)

    def buckets(self) -> Iterator[Any]:
        """References to weight buckets, made as they are taken (at most two wait in the object store)."""
        helpers = [actor.help_stream.remote() for actor in self.actors[1:]]
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        yield from self.actors[0].stream_weights.options(**options).remote()
        wait(self.role, helpers)


def _pad_rows(rows: int, unit: int) -> list[int]:
    # the last rows again, so that shares are equal; their results are cut off
    return [min(row, rows - 1) for row in range(-(-rows // unit) * unit)]


def _add_statistics(parts: list[dict[str, float]]) -> dict[str, float]:
    same = ("lr", "grad_norm")
    total = {name: sum(part[name] for part in parts) for name in parts[0] if name not in same}
    return {**total, **{name: parts[0][name] for name in same}}


def _widen(tensor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))
