"""Rewards: one file each, one line each in `build_reward`.

A reward is a class with `score(rollouts) -> list[Score]`; its config sits in the same file. To add one, write the file
and add its config to `RewardConfig`'s union and its line to `build_reward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlhf.batch import Score
from rlhf.rewards.learned import LearnedReward, LearnedRewardConfig
from rlhf.roles import Rollout

RewardConfig = LearnedRewardConfig


class RewardFunction(Protocol):
    """What a reward actor holds."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order; parts sum to the value."""


def build_reward(config: RewardConfig) -> RewardFunction:
    """The reward that a configuration describes."""
    return LearnedReward(config)
