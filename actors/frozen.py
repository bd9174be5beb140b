"""Roles that never learn: the reference policy and the reward. Ray restarts and asks them again if they die.

With `weights` partitioned or offloaded the ranks of a role are one process group instead, and it dies as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from actors.group import Group, Rank, RunOfRoles, even_shares, shares
from actors.pending import RayPending, wait
from cluster.placement import Placement
from rlhf.batch import Score, TensorRecord, TokenBatch, deal
from rlhf.online_config import OnlineConfig
from rlhf.rewards import guard_engines
from rlhf.roles import Rollout


class FrozenRank(Rank):
    """Ranks share the rows; whole weights are there when the constructor ends, so that Ray can replace one rank."""

    role: ClassVar[str]

    def __init__(self, rank: int, world: int, threads: int, config: Any) -> None:
        super().__init__(rank, world, threads)
        self.config, self.weights = config, getattr(config.roles, self.role).weights
        if self.weights == "whole":
            self.build()

    def build(self) -> None:
        """Load the model, or this rank's share of it when all ranks have joined."""
        raise NotImplementedError


class ReferenceRank(FrozenRank):
    """The first policy."""

    role = "reference"

    def build(self) -> None:
        """Load it."""
        from rlhf.models.build import build_frozen
        from rlhf.models.heads import PolicyModel

        self.model = build_frozen(PolicyModel, self.config.model, self.weights)

    def logprobs(self, tokens: TokenBatch) -> Tensor:
        """[B, T] of these rows."""
        width, temperature = tokens.input_ids.shape[1], self.config.sampling.temperature
        parts = []
        with torch.no_grad():
            for micro in tokens.split(self.config.policy.micro_rows):
                logprobs = self.model(micro.trimmed(), temperature, entropy=False)[0].cpu()
                parts.append(torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[1])))
        return torch.cat(parts)


class RewardRank(FrozenRank):
    """The reward."""

    role = "reward"

    def build(self) -> None:
        """Load whatever it is made of."""
        from rlhf.rewards import build_reward

        self.reward = build_reward(self.config.reward, self.weights)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout."""
        return self.reward.score(rollouts)


class FrozenGroup(Group):
    """Actors that never learn, each replaced by Ray alone, or all by the driver where they share the weights.

    `environment` are variables that have to be set before an actor's process imports anything.
    """

    def __init__(
        self,
        role: str,
        actor: type,
        config: RunOfRoles,
        placement: Placement,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        placed = getattr(config.roles, role)
        self._alone = placed.weights == "whole"
        restarts = config.run.max_restarts if self._alone else 0
        super().__init__(
            role,
            actor,
            placed,
            placement,
            arguments=(config,),
            options={
                "max_restarts": restarts,
                "max_task_retries": restarts,
                **({"runtime_env": {"env_vars": dict(environment)}} if environment else {}),
            },
        )
        if not self._alone:
            self.join(config.roles.backend)
        self.building = self.call("ping" if self._alone else "build")

    def wait_built(self) -> None:
        """Wait until every actor has its model."""
        wait(self.role, self.building)

    def spread(self, verb: str, pieces: Sequence[Sequence[int]], select: Any, merge: Any) -> RayPending[Any]:
        """`verb` on each actor's piece of the rows."""
        shared = zip(self.actors, [piece for piece in pieces if piece], strict=False)
        return RayPending(self.role, [getattr(actor, verb).remote(select(piece)) for actor, piece in shared], merge)

    def logprobs_of(self, rows: TensorRecord) -> RayPending[Tensor]:
        """[B, ...] log-probabilities of `rows`, dealt out by length."""
        dealt = deal(rows.sizes, self.config.ranks)
        return self.spread("logprobs", dealt.hands, rows.select, dealt.gather)


class ReferenceGroup(FrozenGroup):
    """The reference as the loop sees it."""

    def __init__(self, config: OnlineConfig, placement: Placement) -> None:
        super().__init__("reference", ReferenceRank, config, placement)

    def logprobs(self, tokens: TokenBatch) -> RayPending[Tensor]:
        """[B, T]."""
        return self.logprobs_of(tokens)


class RewardGroup(FrozenGroup):
    """The reward as the loop sees it."""

    def __init__(self, config: OnlineConfig, placement: Placement) -> None:
        super().__init__("reward", RewardRank, config, placement, _environment(config))

    def score(self, rollouts: Sequence[Rollout]) -> RayPending[list[Score]]:
        """One score per rollout, in order."""
        rows, ranks = len(rollouts), self.config.ranks
        return self.spread(
            "score",
            shares(rows, ranks) if self._alone else even_shares(rows, ranks),
            lambda piece: [rollouts[row] for row in piece],
            lambda parts: list(chain.from_iterable(parts))[:rows],
        )


def _environment(config: OnlineConfig) -> dict[str, str]:
    """What vLLM needs on a CPU, if a guard answers in the reward's process."""
    engines = {rollout.engine for _, rollout in guard_engines(config.reward)}
    if config.roles.reward.gpus or "vllm" not in engines:
        return {}
    from rlhf.rollout.vllm_engine import cpu_environment

    return cpu_environment()
