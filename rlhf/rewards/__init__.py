"""Rewards: one file each, one line each in `build_reward`.

A reward is a class with `score(rollouts) -> list[Score]`; its config sits in the same file. To add one, write the file
and add its config to `RewardConfig`'s union and its line to `build_reward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from rlhf.batch import Score
from rlhf.config import ModelConfig
from rlhf.rewards.guard import GuardReward, GuardRewardConfig
from rlhf.rewards.learned import LearnedReward, LearnedRewardConfig
from rlhf.rewards.mixture import CostConfig, MixtureReward, MixtureRewardConfig, PartConfig, WeightedConfig
from rlhf.rewards.refusal import RefusalReward, RefusalRewardConfig
from rlhf.roles import Rollout
from rlhf.rollout.base import RolloutConfig

RewardConfig = LearnedRewardConfig | GuardRewardConfig | RefusalRewardConfig | MixtureRewardConfig


class RewardFunction(Protocol):
    """What a reward actor holds."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order; parts sum to the value."""


def build_reward(config: RewardConfig, weights: str = "whole") -> RewardFunction:
    """The reward that a configuration describes; `weights` of its reward models as in `FrozenRoleConfig`."""
    if isinstance(config, MixtureRewardConfig):
        return MixtureReward(config, partial(build_reward, weights=weights))
    if isinstance(config, RefusalRewardConfig):
        return RefusalReward(config)
    return GuardReward(config) if isinstance(config, GuardRewardConfig) else LearnedReward(config, weights)


def single_rewards(config: RewardConfig) -> list[tuple[str, PartConfig]]:
    """Everything that scores in a configuration, a mixture taken apart and costs included, with where it stands."""
    if not isinstance(config, MixtureRewardConfig):
        return [("reward", config)]
    parts: dict[str, Sequence[WeightedConfig | CostConfig]] = {"rewards": config.rewards, "costs": config.costs}
    return [
        (f"reward.{key}.{place}.reward", one.reward)
        for key, found in parts.items()
        for place, one in enumerate(found)
        if one.reward is not None
    ]


def learned_rewards(config: RewardConfig) -> list[tuple[str, LearnedRewardConfig]]:
    """The reward models in a configuration, which read the policy's own tokens, with where they stand in it."""
    return [(key, one) for key, one in single_rewards(config) if isinstance(one, LearnedRewardConfig)]


def guard_rewards(config: RewardConfig) -> list[GuardRewardConfig]:
    """The guards in a configuration, wherever they answer."""
    return [one for _, one in single_rewards(config) if isinstance(one, GuardRewardConfig)]


def guard_engines(config: RewardConfig) -> list[tuple[ModelConfig, RolloutConfig]]:
    """The guards in a configuration that answer in the reward's own process: what they are and their engines."""
    return [(one.model, one.rollout) for one in guard_rewards(config) if one.model is not None]
