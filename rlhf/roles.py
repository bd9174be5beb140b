"""What the online loop asks of each role. Ray actors implement these (`actors/`), and so do in-process fakes in tests.

Answers arrive as `Pending`: the loop sees the futures and decides when to wait; it never sees a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from rlhf.batch import Completion, Experience, Prompt, Score, TokenBatch
from rlhf.rollout.base import Sampling

T = TypeVar("T", covariant=True)


class Pending(Protocol[T]):
    """A result that is being computed."""

    def result(self) -> T:
        """Wait for it. Raises WorkerLostError if who computes it died, or the SafeVLError that it raised."""


class Saves(Protocol):
    """A role with trained state."""

    def save(self, folder: Path) -> Pending[None]:
        """Write everything that resuming needs."""

    def load(self, folder: Path) -> Pending[None]:
        """The inverse of `save`."""

    def export(self, folder: Path) -> Pending[None]:
        """Write the model as a transformers directory."""


class Policy(Saves, Protocol):
    """The model that learns to answer."""

    def logprobs(self, tokens: TokenBatch) -> Pending[Tensor]:
        """[B, T] of the response tokens, zero elsewhere."""

    def step(self, experience: Experience, denominator: float) -> Pending[dict[str, float]]:
        """One optimizer step on a mini-batch; statistics are means over its response tokens."""


class Critic(Saves, Protocol):
    """The model that predicts returns."""

    def values(self, tokens: TokenBatch) -> Pending[Tensor]:
        """[B, T] value of the state before each response token, zero elsewhere."""

    def step(self, experience: Experience, denominator: float) -> Pending[dict[str, float]]:
        """One optimizer step on a mini-batch."""


class Reference(Protocol):
    """The frozen policy that the KL is measured against."""

    def logprobs(self, tokens: TokenBatch) -> Pending[Tensor]:
        """[B, T] of the response tokens, zero elsewhere."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a reward judges: a prompt and the answer to it."""

    prompt: Prompt
    completion: Completion


class Reward(Protocol):
    """Judges whole answers."""

    def score(self, rollouts: Sequence[Rollout]) -> Pending[list[Score]]:
        """One score per rollout, in order."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a weight sync did."""

    version: int
    seconds: float
    megabytes: float
    fingerprint: str
    canary_gap: float  # largest |engine - learner| log-probability on the fixed prompts


class Generator(Protocol):
    """The rollout engines, kept at the policy's version."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Pending[list[Completion]]:
        """One completion per prompt, in order; an engine that dies meanwhile is replaced and asked again."""

    def sync(self, version: int) -> SyncReport:
        """Give the engines the policy's present weights as `version`. Raises WeightSyncError if they disagree."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Everybody who takes part in one run."""

    policy: Policy
    critic: Critic | None
    reference: Reference
    reward: Reward
    rollout: Generator
