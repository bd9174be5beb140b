"""Algorithms: one file each, configuration and objective together. `ON_POLICY` is the table of those that roll out."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from rlhf.algorithms import grpo, ppo, rloo
from rlhf.algorithms.grpo import GRPOConfig
from rlhf.algorithms.ppo import PPOConfig
from rlhf.algorithms.rloo import RLOOConfig
from rlhf.batch import Experience
from rlhf.losses import Stats

AlgorithmConfig = PPOConfig | GRPOConfig | RLOOConfig


class OnPolicy(Protocol):
    """What the online loop asks of an algorithm's module; `config` is that algorithm's own."""

    def estimate(
        self, experience: Experience, config: Any, kl_coefficient: float
    ) -> tuple[Experience, dict[str, float]]:
        """Fill rewards, advantages and returns of an iteration."""

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, experience: Experience, config: Any, denominator: float
    ) -> tuple[Tensor, Stats]:
        """The policy's loss on some rows of a mini-batch."""


ON_POLICY: dict[str, OnPolicy] = {"ppo": ppo, "grpo": grpo, "rloo": rloo}
