"""Rollout engines: asked for answers, given weights, replaced when they die.

An engine answers only for the version it holds. A replacement starts from the model directory, so it is synchronised
before it is asked again; since an answer depends on weights, prompt and seed alone, the repeated request gives what
the lost one would have given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch

from actors.group import shares
from actors.pending import wait
from actors.policy import PolicyGroup
from cluster.placement import Placement
from rlhf.batch import Completion, Prompt
from rlhf.data.processor import Processor
from rlhf.errors import StaleRolloutError, WeightSyncError, WorkerLostError
from rlhf.online_config import OnlineConfig
from rlhf.roles import SyncReport
from rlhf.rollout.base import Sampling
from rlhf.rollout.canary import Canary
from rlhf.rollout.weights import WeightBucket, fingerprint


class RolloutActor:
    """Holds one engine."""

    def __init__(self, config: OnlineConfig) -> None:
        from rlhf.rollout import build_engine

        if not torch.cuda.is_available():
            torch.set_num_threads(config.roles.rollout.threads)
        self._engine = build_engine(
            config.model,
            config.rollout,
            Processor.load(config.model),
            config.run.seed,
            config.policy.trainable.lora,
        )

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> list[Completion]:
        """Answers of exactly this policy version."""
        if self._engine.version != version:
            raise StaleRolloutError(f"the engine holds version {self._engine.version}, not {version}")
        return self._engine.generate(prompts, sampling)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of given answers."""
        return self._engine.score(prompts, responses)

    def begin_update(self, version: int) -> None:
        """Stop answering until `finish_update`."""
        self._engine.begin_update(version)

    def load_bucket(self, bucket: WeightBucket) -> None:
        """Load some weights."""
        self._engine.load_bucket(bucket)

    def finish_update(self) -> str:
        """Answer for the new version; returns the fingerprint of what arrived."""
        return self._engine.finish_update()

    def ping(self) -> int:
        """The process id."""
        return os.getpid()


class RolloutGroup:
    """The engines as the loop sees them."""

    def __init__(
        self,
        config: OnlineConfig,
        placement: Placement,
        policy: PolicyGroup,
        canary: Canary,
    ) -> None:
        self._config, self._placement, self._policy, self._canary = config, placement, policy, canary
        self._restarts = 0
        self.version = -1
        self.actors = [self._start(rank) for rank in range(config.roles.rollout.ranks)]

    def wait_built(self) -> None:
        """Wait until every engine is up."""
        wait("rollout", [actor.ping.remote() for actor in self.actors])

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> PendingAnswers:
        """One completion per prompt, in order."""
        return PendingAnswers(self, prompts, sampling)

    def ask(self, engine: int, prompts: Sequence[Prompt], sampling: Sampling) -> Any:
        """A reference to one engine's answers."""
        return self.actors[engine].generate.remote(prompts, sampling, self.version)

    def sync(self, version: int) -> SyncReport:
        """Bring every engine to the policy's present weights; an engine that dies meanwhile is replaced."""
        while True:
            try:
                report = self._sync(version)
            except WorkerLostError as error:
                if error.role != "rollout":
                    raise
                self._replace_dead()
            else:
                self.version = version
                return report

    def recover(self) -> None:
        """Replace dead engines and give all of them the current weights (the policy has not moved since)."""
        self._replace_dead()
        self.sync(self.version)

    def kill(self) -> None:
        """End every engine."""
        for actor in self.actors:
            ray.kill(actor)

    def _start(self, rank: int) -> Any:
        role = self._config.roles.rollout
        environment = {}
        if not role.gpus:
            from rlhf.rollout.vllm_engine import cpu_environment

            environment = cpu_environment()
        return (
            ray.remote(RolloutActor)
            .options(
                num_cpus=role.cpus,
                num_gpus=role.gpus,
                scheduling_strategy=self._placement.strategy("rollout", rank),
                runtime_env={"env_vars": environment},
            )
            .remote(self._config)
        )

    def _replace_dead(self) -> None:
        for rank, actor in enumerate(self.actors):
            try:
                wait("rollout", [actor.ping.remote()])
            except WorkerLostError:
                self._restarts += 1
                if self._restarts > self._config.run.max_restarts:
                    raise
                ray.kill(actor)
                self.actors[rank] = self._start(rank)

    def _sync(self, version: int) -> SyncReport:
        began = time.monotonic()
        wait("rollout", [actor.begin_update.remote(version) for actor in self.actors])
        sizes: list[int] = []
        digests: list[str] = []
        loading: list[Any] = []
        lost: WorkerLostError | None = None
        for bucket in self._policy.buckets():
            if lost:
                continue  # the policy's ranks gather together and must all come to the end
            described = ray.get(bucket)  # a view into this node's object store, no copy of the weights
            sizes.append(described.data.nbytes)
            digests.append(described.digest)
            loading.extend(actor.load_bucket.remote(bucket) for actor in self.actors)
            try:
                wait("rollout", loading[: -2 * len(self.actors)])
            except WorkerLostError as error:
                lost = error
        if lost:
            raise lost
        wait("rollout", loading)
        expected = fingerprint(digests)
        for received in wait("rollout", [actor.finish_update.remote() for actor in self.actors]):
            if received != expected:
                raise WeightSyncError(f"the policy sent weights {expected}, an engine holds {received}")
        seconds = time.monotonic() - began
        return SyncReport(version, seconds, sum(sizes) / 1e6, expected, self._canary_gap())

    def _canary_gap(self) -> float:
        asked = [actor.score.remote(self._canary.prompts, self._canary.answers) for actor in self.actors]
        learner = self._policy.unscaled_logprobs(self._canary.tokens).result()
        gaps = [self._canary.gap(scored, learner) for scored in wait("rollout", asked)]
        bound = self._config.loop.canary_bound
        if not all(gap <= bound for gap in gaps):  # NaN fails too
            raise WeightSyncError(
                f"after the sync engine and policy differ by {max(gaps):.3g} nats on the canary prompts "
                f"(loop.canary_bound={bound})"
            )
        return max(gaps)


class PendingAnswers:
    """Completions under way. An engine that dies is replaced, synchronised and asked again for its share."""

    def __init__(self, group: RolloutGroup, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self._group, self._sampling = group, sampling
        pieces = shares(len(prompts), len(group.actors))
        self._shares = [[prompts[row] for row in piece] for piece in pieces]
        self._refs = [group.ask(engine, share, sampling) for engine, share in enumerate(self._shares)]

    def result(self) -> list[Completion]:
        """Wait for all engines; every prompt is answered exactly once, in order."""
        answers: list[Completion] = []
        for engine, share in enumerate(self._shares):
            while True:
                try:
                    answers.extend(wait("rollout", [self._refs[engine]])[0])
                    break
                except WorkerLostError:
                    self._group.recover()
                    self._refs[engine] = self._group.ask(engine, share, self._sampling)
        return answers
