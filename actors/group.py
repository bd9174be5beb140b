"""A role as a group of actors: created in its placement-group bundles, joined by collectives, addressed as one."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Protocol

import ray
import torch

from actors.pending import wait
from cluster.placement import Placement
from rlhf.config import RoleConfig, RunConfig


class RunOfRoles(Protocol):
    """The configuration of a run, online or from preferences, as far as groups look at it."""

    @property
    def run(self) -> RunConfig:
        """Seed and restarts."""

    @property
    def roles(self) -> Any:
        """A RoleConfig under the name of each role, and `backend` for the collectives."""


class Rank:
    """Base of actors that form a process group. One instance is one rank."""

    def __init__(self, rank: int, world: int, threads: int) -> None:
        self.rank, self.world = rank, world
        torch.set_num_threads(threads)

    def address(self) -> tuple[str, int]:
        """An address and a free port of this node, where rank 0 will listen."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, address: tuple[str, int], backend: str) -> None:
        """Enter the process group of this role."""
        from rlhf.learner import join_process_group

        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world),
            LOCAL_RANK="0",  # Ray shows an actor only its own devices
            LOCAL_SIZE=str(self.world),
            MASTER_ADDR=address[0],
            MASTER_PORT=str(address[1]),
        )
        if torch.cuda.is_available():
            torch.cuda.set_device(0)
        join_process_group(backend)

    def ping(self) -> int:
        """The process id: answers when the actor lives."""
        return os.getpid()


class Group:
    """Actors of one role."""

    def __init__(
        self,
        role: str,
        actor: type,
        config: RoleConfig,
        placement: Placement,
        *,
        arguments: Sequence[Any] = (),
        options: dict[str, Any] | None = None,
    ) -> None:
        self.role, self.config = role, config
        remote = ray.remote(actor)
        self.actors = [
            remote.options(
                num_cpus=config.cpus,
                num_gpus=config.gpus,
                scheduling_strategy=placement.strategy(role, rank),
                **(options or {}),
            ).remote(rank, config.ranks, config.threads, *arguments)
            for rank in range(config.ranks)
        ]

    def call(self, verb: str, *arguments: Any) -> list[Any]:
        """References to `verb(*arguments)` on every actor."""
        return [getattr(actor, verb).remote(*arguments) for actor in self.actors]

    def call_each(self, verb: str, shares: Sequence[Sequence[Any]]) -> list[Any]:
        """References to `verb(*shares[rank])` on each actor."""
        return [getattr(actor, verb).remote(*share) for actor, share in zip(self.actors, shares, strict=True)]

    def join(self, backend: str) -> None:
        """Form the process group."""
        address = wait(self.role, [self.actors[0].address.remote()])[0]
        wait(self.role, self.call("join", address, backend))

    def kill(self) -> None:
        """End every actor at once."""
        for actor in self.actors:
            ray.kill(actor)


def shares(rows: int, ranks: int) -> list[range]:
    """Consecutive row ranges, one per rank, as equal as possible."""
    bounds = [rank * rows // ranks for rank in range(ranks + 1)]
    return [range(low, high) for low, high in zip(bounds, bounds[1:], strict=False)]


def even_shares(rows: int, ranks: int) -> list[list[int]]:
    """Equally many rows for every rank, which ZeRO-3 needs: in order, and the last one again until all have as many."""
    share = -(-rows // ranks)
    return [[min(rank * share + place, rows - 1) for place in range(share)] for rank in range(ranks)]
