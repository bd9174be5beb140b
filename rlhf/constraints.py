"""Bounds on what a policy may cost, held by Lagrange multipliers while it maximises its reward. All pure.

A constraint names a cost of a rollout's score, for example 1 where a harmless question was refused. The
policy maximises the score less lambda times each cost, beside the KL as ever, and each lambda follows how far the mean
cost is from its bound (Altman 1999; Stooke et al. 2020, arXiv 2007.03964).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf.batch import Score
from rlhf.config import Config
from rlhf.errors import ConfigError, NonFiniteError

_LEAST = 1e-4  # of lambda where its logarithm is what moves


class ConstraintConfig(Config):
    """One bound and how its multiplier moves."""

    name: str
    """One of the reward's costs (`reward.costs` of a mixture), which any reward can be."""
    max: float = Field(ge=0)
    """What the cost may be on average, over the rollouts that have it."""
    update: Literal["pid", "log_lambda"] = "pid"
    """pid: lambda from the violation, its sum and its rise. log_lambda: log lambda steps by rate x violation."""
    proportional: float = Field(default=1.0, ge=0)
    """pid: factor on the violation."""
    integral: float = Field(default=1.0, ge=0)
    """pid: factor on the sum of violations, which never falls below 0."""
    derivative: float = Field(default=0.0, ge=0)
    """pid: factor on a rise of the cost."""
    rate: float = Field(default=1.0, gt=0)
    """log_lambda: step per unit of violation."""
    initial: float = Field(default=0.0, ge=0)
    """Lambda at the start; log_lambda needs more than 0. pid: the sum starts at initial / integral."""
    most: float = Field(default=20.0, gt=0)
    """Lambda never exceeds this."""

    @model_validator(mode="after")
    def _can_start(self) -> ConstraintConfig:
        problems = []
        if self.update == "log_lambda" and self.initial <= 0:
            problems.append(f"constraints: {self.name} with update=log_lambda needs initial > 0")
        if self.update == "pid" and self.integral == 0 < self.initial:
            problems.append(f"constraints: {self.name} with integral=0 would forget initial: set integral > 0")
        if self.initial > self.most:
            problems.append(f"constraints: {self.name} has initial={self.initial:g} above most={self.most:g}")
        if problems:
            raise ConfigError(problems)
        return self

    def first(self) -> Multiplier:
        """The multiplier at the start of training; a mean cost on the bound leaves it as it is."""
        sums = self.update == "pid" and self.integral > 0
        return Multiplier(self.initial, self.initial / self.integral if sums else 0.0)


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A constraint's lambda and what it remembers; part of the training state."""

    value: float
    summed: float = 0.0
    last: float | None = None

    def after(self, cost: float | None, config: ConstraintConfig) -> Multiplier:
        """The multiplier after an iteration with this mean cost; unchanged where no rollout had the cost.

        Raises NonFiniteError for a cost that is no number.
        """
        if cost is None:
            return self
        if not math.isfinite(cost):
            raise NonFiniteError(f"the mean cost {config.name} is {cost}: its multiplier cannot follow it")
        violation = cost - config.max
        if config.update == "log_lambda":
            value = math.exp(math.log(max(self.value, _LEAST)) + config.rate * violation)
            return Multiplier(min(max(value, _LEAST), config.most), self.summed, cost)
        # the sum is bounded too, or lambda would stay at its bound for long after the cost has fallen
        bound = config.most / config.integral if config.integral else math.inf
        summed = min(max(0.0, self.summed + violation), bound)
        rise = max(0.0, cost - self.last) if self.last is not None else 0.0
        value = config.proportional * violation + config.integral * summed + config.derivative * rise
        return Multiplier(min(max(0.0, value), config.most), summed, cost)


def first_multipliers(constraints: Sequence[ConstraintConfig]) -> dict[str, Multiplier]:
    """The multipliers at the start of training."""
    return {one.name: one.first() for one in constraints}


def mean_cost(scores: Sequence[Score], name: str) -> float | None:
    """Mean of a cost over the rollouts that have it; None if none has."""
    costs = [score.costs[name] for score in scores if name in score.costs]
    return sum(costs) / len(costs) if costs else None


def constrained_scores(scores: Sequence[Score], multipliers: Mapping[str, Multiplier]) -> Tensor:
    """[B] scores less lambda times each cost."""
    values = [
        score.value - sum(one.value * score.costs.get(name, 0.0) for name, one in multipliers.items())
        for score in scores
    ]
    return torch.tensor(values)
