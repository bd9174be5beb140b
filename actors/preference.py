"""The roles of a preference run: a policy that learns, a reference that does not, engines that answer before and after.

The engines load a model directory, so their phases need no weight sync and hold no resources while the policy trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from actors.frozen import FrozenGroup, FrozenRank
from actors.group import Group, Rank, shares
from actors.learning import LearnerGroup, LearnerRank
from actors.pending import RayPending, wait
from cluster.placement import Placement
from rlhf.algorithms.dpo import preference_objective
from rlhf.batch import Completion, PairBatch, PreferenceBatch, Prompt
from rlhf.config import ModelConfig
from rlhf.preference_config import PreferenceConfig
from rlhf.rollout.base import Sampling


class PreferenceRank(LearnerRank):
    """One rank of the policy."""

    def build(self, config: PreferenceConfig, total_steps: int) -> None:
        """Load the model, partitioned over the ranks, and its optimizer."""
        from rlhf.models.pairs import PairModel

        self.config = config
        kind = partial(PairModel, share_prefix=config.share_prefix)
        self.make_learner(config.run.seed, total_steps, config.policy, config.model, kind)

    def logprobs(self, pairs: PairBatch) -> Tensor:
        """[B, 2] of this rank's pairs."""
        micro_batches = pairs.split(self.config.policy.micro_rows)
        return torch.cat(self.learner.infer(micro_batches, lambda engine, micro: engine(micro)))

    def step(self, batch: PreferenceBatch, denominator: float) -> dict[str, float]:
        """One optimizer step on this rank's pairs; statistics are this rank's part of the global means."""
        algorithm = self.config.algorithm

        def objective(engine: Any, micro: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs = engine(micro.pairs)
            reference, lengths = (one.to(logprobs.device) for one in (micro.reference, micro.pairs.answer_lengths))
            return preference_objective(logprobs, reference, lengths, algorithm, denominator)

        return self.learner.step(batch.split(self.config.policy.micro_rows), objective)


class PreferenceGroup(LearnerGroup):
    """The policy as the loop sees it."""

    def __init__(self, config: PreferenceConfig, placement: Placement, total_steps: int) -> None:
        super().__init__("policy", PreferenceRank, config, placement, config.policy.micro_rows, total_steps)

    def logprobs(self, pairs: PairBatch) -> RayPending[Tensor]:
        """[B, 2]."""
        return self.infer("logprobs", pairs)


class PairReferenceRank(FrozenRank):
    """The first policy; ranks share the pairs."""

    role = "reference"

    def build(self) -> None:
        """Load it."""
        from rlhf.models.build import build_frozen
        from rlhf.models.pairs import PairModel

        kind = partial(PairModel, share_prefix=self.config.share_prefix)
        self.model = build_frozen(kind, self.config.model, self.weights)

    def logprobs(self, pairs: PairBatch) -> Tensor:
        """[B, 2] of these pairs."""
        with torch.no_grad():
            return torch.cat([self.model(micro).cpu() for micro in pairs.split(self.config.reference.micro_rows)])


class PairReferenceGroup(FrozenGroup):
    """The reference as the loop sees it."""

    def __init__(self, config: PreferenceConfig, placement: Placement) -> None:
        super().__init__("reference", PairReferenceRank, config, placement)

    def logprobs(self, pairs: PairBatch) -> RayPending[Tensor]:
        """[B, 2]."""
        return self.logprobs_of(pairs)


class AnswerRank(Rank):
    """One engine with the weights of a model directory."""

    def __init__(self, rank: int, world: int, threads: int, config: PreferenceConfig, model: ModelConfig) -> None:
        super().__init__(rank, world, threads)
        from rlhf.data.processor import Processor
        from rlhf.rollout import build_engine

        self.engine = build_engine(model, config.answers.engine, Processor.load(model), config.run.seed)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """One completion per prompt, in order."""
        return self.engine.generate(prompts, sampling)


class AnswerGroup(Group):
    """Engines whose constructor is their whole state: Ray restarts one that dies and asks it again."""

    def __init__(self, config: PreferenceConfig, placement: Placement, model: ModelConfig) -> None:
        environment: dict[str, str] = {}
        if not config.roles.rollout.gpus:
            from rlhf.rollout.vllm_engine import cpu_environment

            environment = cpu_environment()
        restarts = config.run.max_restarts
        options = {
            "max_restarts": restarts,
            "max_task_retries": restarts,
            "runtime_env": {"env_vars": environment},
        }
        super().__init__(
            "rollout", AnswerRank, config.roles.rollout, placement, arguments=(config, model), options=options
        )
        self.building = self.call("ping")

    def wait_built(self) -> None:
        """Wait until every engine is up."""
        wait(self.role, self.building)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> RayPending[list[Completion]]:
        """One completion per prompt, in order."""
        pieces = [piece for piece in shares(len(prompts), self.config.ranks) if len(piece)]
        refs = [
            actor.generate.remote([prompts[row] for row in piece], sampling)
            for actor, piece in zip(self.actors, pieces, strict=False)
        ]
        return RayPending(self.role, refs, lambda parts: list(chain.from_iterable(parts)))


class Groups:
    """A context manager: inside it the given groups are up; leaving it ends their processes."""

    def __init__(self, *groups: LearnerGroup | FrozenGroup | AnswerGroup) -> None:
        self._groups = groups

    def __enter__(self) -> Self:
        try:
            for group in self._groups:
                group.wait_built()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        for group in self._groups:
            with contextlib.suppress(Exception):  # an actor that is dead already must not keep the others alive
                group.kill()
