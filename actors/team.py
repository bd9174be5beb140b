"""All roles of one online run: started together, ended together."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from actors.critic import CriticGroup
from actors.frozen import ReferenceGroup, RewardGroup
from actors.policy import PolicyGroup
from actors.rollout import RolloutGroup
from cluster.placement import Placement
from rlhf.online_config import OnlineConfig
from rlhf.roles import Roles
from rlhf.rollout.canary import Canary


class Team:
    """A context manager: inside it every role is up; leaving it ends their processes."""

    def __init__(
        self,
        config: OnlineConfig,
        placement: Placement,
        canary: Canary,
    ) -> None:
        self.policy = PolicyGroup(config, placement)
        self.critic = CriticGroup(config, config.critic, placement) if config.critic else None
        self.reference = ReferenceGroup(config, placement) if config.roles.reference else None
        self.reward = RewardGroup(config, placement)
        self.rollout = RolloutGroup(config, placement, self.policy, canary)

    def __enter__(self) -> Self:
        try:
            for group in (self.policy, self.critic, self.reference, self.reward, self.rollout):
                if group is not None:
                    group.wait_built()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def roles(self) -> Roles:
        """What the loop needs."""
        reference = self.reference or self.policy.reference()
        return Roles(self.policy, self.critic, reference, self.reward, self.rollout)

    def kill(self) -> None:
        """End every process of every role."""
        for group in (self.rollout, self.reward, self.reference, self.critic, self.policy):
            with contextlib.suppress(Exception):  # an actor that is dead already must not keep the others alive
                if group is not None:
                    group.kill()
