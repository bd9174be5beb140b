"""The policy: DeepSpeed ranks that give log-probabilities, learn, and hand out their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from actors.learning import LearnerGroup, LearnerRank
from actors.pending import RayPending, wait
from cluster.placement import Placement
from rlhf.algorithms import ON_POLICY
from rlhf.batch import Experience, TokenBatch
from rlhf.online_config import OnlineConfig


class PolicyRank(LearnerRank):
    """One rank of the policy."""

    def build(self, config: OnlineConfig) -> None:
        """Load the model, partitioned over the ranks, and its optimizer."""
        from rlhf.models.heads import PolicyModel

        self.load_model(config, config.policy, config.model, PolicyModel)

    def logprobs(self, tokens: TokenBatch) -> Tensor:
        """[B, T] of this rank's rows, under the distribution that answers are drawn from."""
        return self._logprobs(tokens, self.config.sampling.temperature)

    def unscaled_logprobs(self, tokens: TokenBatch) -> Tensor:
        """The same at temperature 1, as an engine's `score` gives them."""
        return self._logprobs(tokens, 1.0)

    def reference_logprobs(self, tokens: TokenBatch) -> Tensor:
        """The same by the policy as it was loaded (LoRA only)."""
        with self.learner.module.backbone.as_loaded():
            return self.logprobs(tokens)

    def step(self, experience: Experience, denominator: float) -> dict[str, float]:
        """One optimizer step on this rank's rows; statistics are this rank's part of the global means."""
        temperature, algorithm = self.config.sampling.temperature, self.config.algorithm

        def objective(engine: Any, micro: Experience) -> tuple[Tensor, dict[str, Tensor]]:
            micro = micro.trimmed()
            logprobs, entropy = engine(micro.tokens, temperature)
            micro = micro.to(logprobs.device)
            return ON_POLICY[algorithm.kind].policy_loss(logprobs, entropy, micro, algorithm, denominator)

        return self.learner.step(experience.split(self.config.policy.micro_rows), objective)

    def stream_weights(self) -> Iterator[Any]:
        """Every trained weight (of LoRA the adapter alone), as packed buckets; rank 0 yields, the others help."""
        from rlhf.models.lora import wire_name
        from rlhf.rollout.weights import pack

        backbone = self.learner.module.backbone
        named = [
            (wire_name(n, backbone.family.names), p) for n, p in backbone.vlm.named_parameters() if p.requires_grad
        ]
        for bucket in self.learner.gathered(named):
            if self.rank == 0:
                yield pack(bucket)

    def help_stream(self) -> None:
        """The other ranks' side of `stream_weights`."""
        for _ in self.stream_weights():
            pass

    def _logprobs(self, tokens: TokenBatch, temperature: float) -> Tensor:
        width = tokens.input_ids.shape[1]

        def forward(engine: Any, micro: TokenBatch) -> Tensor:
            return _widen(engine(micro.trimmed(), temperature, entropy=False)[0], width)

        return torch.cat(self.learner.infer(tokens.split(self.config.policy.micro_rows), forward))


class PolicyGroup(LearnerGroup):
    """The policy as the loop sees it."""

    def __init__(self, config: OnlineConfig, placement: Placement) -> None:
        super().__init__("policy", PolicyRank, config, placement, config.policy.micro_rows)

    def logprobs(self, tokens: TokenBatch) -> RayPending[Tensor]:
        """[B, T]."""
        return self.infer("logprobs", tokens)

    def unscaled_logprobs(self, tokens: TokenBatch) -> RayPending[Tensor]:
        """[B, T] at temperature 1."""
        return self.infer("unscaled_logprobs", tokens)

    def reference(self) -> SharedReference:
        """The reference that this group computes itself."""
        return SharedReference(self)

    def buckets(self) -> Iterator[Any]:
        """References to weight buckets, made as they are taken (at most two wait in the object store)."""
        helpers = [actor.help_stream.remote() for actor in self.actors[1:]]
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        yield from self.actors[0].stream_weights.options(**options).remote()
        wait(self.role, helpers)


class SharedReference:
    """The reference of a LoRA run: the policy's own ranks with their adapters off, so it costs no memory."""

    def __init__(self, policy: PolicyGroup) -> None:
        self._policy = policy

    def logprobs(self, tokens: TokenBatch) -> RayPending[Tensor]:
        """[B, T]."""
        return self._policy.infer("reference_logprobs", tokens)


def _widen(tensor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))
