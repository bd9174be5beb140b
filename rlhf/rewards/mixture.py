"""Several rewards as one: a weighted sum whose parts stay visible in every score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from rlhf.batch import Score
from rlhf.config import Config
from rlhf.errors import ConfigError
from rlhf.rewards.guard import GuardRewardConfig
from rlhf.rewards.learned import LearnedRewardConfig
from rlhf.rewards.refusal import RefusalRewardConfig
from rlhf.roles import Rollout

PartConfig = LearnedRewardConfig | GuardRewardConfig | RefusalRewardConfig


class WeightedConfig(Config):
    """One reward of a mixture."""

    name: str = Field(min_length=1)
    """What its parts are called in scores, metrics and samples."""
    weight: float
    """What its value is multiplied by."""
    reward: Annotated[PartConfig, Field(discriminator="kind")]


class CostConfig(Config):
    """Something that is measured and not wanted; the section `constraints` says how much of it is borne.

    A cost is scale x value + offset of any reward: of a guard worth 1 and -1, scale -0.5 and offset 0.5 make the share
    that is not Safe; of a reward model whose mean shall be at least x, scale -1 and offset x a cost of at most 0.
    """

    name: str = Field(min_length=1)
    """What it is called in `constraints`, metrics and samples."""
    reward: Annotated[PartConfig, Field(discriminator="kind")] | None = None
    """Whose value it is made of; or leave it out and set `of`."""
    of: str | None = None
    """One of the mixture's `rewards` by name, whose value without its weight it is made of; nothing is asked twice."""
    scale: float = 1.0
    """Factor on the value; below 0 where a high value is good."""
    offset: float = 0.0
    """Added to it then."""

    @model_validator(mode="after")
    def _has_a_source(self) -> CostConfig:
        if (self.reward is None) == (self.of is None):
            raise ConfigError([f"reward.costs: {self.name} needs either a reward or of"])
        if self.scale == 0:
            raise ConfigError([f"reward.costs: {self.name} with scale 0 would cost the same whatever is answered"])
        return self


class MixtureRewardConfig(Config):
    """Rewards that are added up."""

    kind: Literal["mixture"] = "mixture"
    """Which reward this is."""
    rewards: tuple[WeightedConfig, ...] = Field(min_length=1)
    """Those that are mixed, each with a name of its own."""

    costs: tuple[CostConfig, ...] = ()
    """Measured beside them, in no sum."""

    @model_validator(mode="after")
    def _names_fit(self) -> MixtureRewardConfig:
        problems = []
        counts = Counter([*(one.name for one in self.rewards), *(one.name for one in self.costs)])
        if twice := sorted(name for name, count in counts.items() if count > 1):
            problems.append(f"reward.rewards: {', '.join(twice)} occurs twice; give each a name of its own")
        known = [one.name for one in self.rewards]
        problems += [
            f"reward.costs: {one.name} is of {one.of}, which is none of the rewards {', '.join(known)}"
            for one in self.costs
            if one.of is not None and one.of not in known
        ]
        if problems:
            raise ConfigError(problems)
        return self


class Scores(Protocol):
    """What is mixed."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order; parts sum to the value."""


class MixtureReward:
    """The weighted sum; parts are called `name/part` and sum to the value."""

    def __init__(self, config: MixtureRewardConfig, build: Callable[[PartConfig], Scores]) -> None:
        self._config = config
        self._rewards = {one.name: build(one.reward) for one in config.rewards}
        self._rewards |= {one.name: build(one.reward) for one in config.costs if one.reward is not None}

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order."""
        found = {name: reward.score(rollouts) for name, reward in self._rewards.items()}
        return [self._one({name: scores[row] for name, scores in found.items()}) for row in range(len(rollouts))]

    def _one(self, scores: Mapping[str, Score]) -> Score:
        """The score of one rollout from those of all rewards by name; one without parts says nothing."""
        parts = {
            f"{one.name}/{key}": one.weight * value
            for one in self._config.rewards
            for key, value in scores[one.name].parts.items()
        }
        costs = {
            one.name: one.scale * source.value + one.offset
            for one in self._config.costs
            if (source := scores[one.of or one.name]).parts
        }
        invalid = {f"{name}/{key}": bad for name, score in scores.items() for key, bad in score.invalid.items()}
        return Score(sum(parts.values()), parts, costs, invalid)
