"""The roles of an online run in this process, on plain torch: the same models and maths, no Ray, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rlhf.algorithms import ppo
from rlhf.batch import Completion, Experience, Prompt, Score, TokenBatch, deal
from rlhf.config import ModelConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel, ScalarModel, values_of
from rlhf.models.keys import to_hub
from rlhf.models.llava import load
from rlhf.online_config import OnlineConfig
from rlhf.roles import Rollout, SyncReport
from rlhf.rollout.base import Sampling
from rlhf.rollout.hf_engine import HfEngine
from rlhf.rollout.weights import pack

T = TypeVar("T")


@dataclass
class Done(Generic[T]):
    """A Pending that has its result."""

    value: T

    def result(self) -> T:
        return self.value


def by_length(tokens: TokenBatch, micro_rows: int, forward: Callable[[TokenBatch], Tensor]) -> Tensor:
    """[B, T] without gradient, in micro-batches of rows of like length."""
    width, dealt = tokens.input_ids.shape[1], deal(tokens.sizes, 1)
    with torch.no_grad():
        parts = [forward(micro.trimmed()) for micro in tokens.select(dealt.hands[0]).split(micro_rows)]
    return dealt.gather([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


class _Learning:
    def __init__(self, module: torch.nn.Module, lr: float, micro_rows: int) -> None:
        self.module, self._micro_rows = module, micro_rows
        self.optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        self.steps: list[dict[str, float]] = []

    def _step(self, experience: Experience, loss: Callable[[Experience], tuple[Tensor, dict[str, Tensor]]]) -> Any:
        self.module.train()
        self.optimizer.zero_grad()
        totals: dict[str, float] = {"lr": self.optimizer.param_groups[0]["lr"]}
        ordered = experience.select(deal(experience.sizes, 1).hands[0])
        for micro in ordered.split(self._micro_rows):
            value, stats = loss(micro.trimmed())
            value.backward()
            for name, stat in {"loss": value, **stats}.items():
                totals[name] = totals.get(name, 0.0) + float(stat.detach() if isinstance(stat, Tensor) else stat)
        totals["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
        self.optimizer.step()
        self.steps.append(totals)
        return Done(totals)

    def save(self, folder: Path) -> Done[None]:
        folder.mkdir(parents=True)
        torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "state.pt")
        return Done(None)

    def load(self, folder: Path) -> Done[None]:
        state = torch.load(folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        return Done(None)

    def export(self, folder: Path) -> Done[None]:
        raise NotImplementedError


class LocalPolicy(_Learning):
    def __init__(self, config: OnlineConfig) -> None:
        model = PolicyModel(load(config.model, TrainableConfig()))
        super().__init__(model, config.policy.optimizer.lr, config.policy.micro_rows)
        self._config = config

    def logprobs(self, tokens: TokenBatch) -> Done[Tensor]:
        return Done(by_length(tokens, self._micro_rows, lambda micro: self.module.eval()(micro, entropy=False)[0]))

    def step(self, experience: Experience, denominator: float) -> Done[dict[str, float]]:
        return self._step(
            experience,
            lambda micro: ppo.policy_loss(*self.module(micro.tokens), micro, self._config.algorithm, denominator),
        )


class LocalCritic(_Learning):
    def __init__(self, config: OnlineConfig) -> None:
        torch.manual_seed(0)
        model = ScalarModel(load(config.critic.model, TrainableConfig()))
        super().__init__(model, config.critic.optimizer.lr, config.critic.micro_rows)
        self._config = config

    def values(self, tokens: TokenBatch) -> Done[Tensor]:
        return Done(by_length(tokens, self._micro_rows, lambda micro: values_of(self.module.eval()(micro), micro)))

    def step(self, experience: Experience, denominator: float) -> Done[dict[str, float]]:
        def loss(micro: Experience) -> tuple[Tensor, dict[str, Tensor]]:
            values = values_of(self.module(micro.tokens), micro.tokens)
            return ppo.value_loss(values, micro, self._config.algorithm, denominator)

        return self._step(experience, loss)


class LocalReference:
    def __init__(self, model: ModelConfig) -> None:
        self._model = PolicyModel(load(model, None)).eval()

    def logprobs(self, tokens: TokenBatch) -> Done[Tensor]:
        return Done(by_length(tokens, len(tokens), lambda micro: self._model(micro, entropy=False)[0]))


@dataclass
class TableReward:
    """A reward given as a function of a rollout."""

    function: Callable[[Rollout], float]

    def score(self, rollouts: Sequence[Rollout]) -> Done[list[Score]]:
        values = [self.function(rollout) for rollout in rollouts]
        return Done([Score(value, {"table": value}) for value in values])


@dataclass
class LocalGenerator:
    """The transformers engine, synchronised from a local policy by the same buckets."""

    policy: LocalPolicy
    engine: HfEngine
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Done[list[Completion]]:
        self.asked.append(tuple(prompt.id for prompt in prompts))
        return Done(self.engine.generate(prompts, sampling))

    def sync(self, version: int) -> SyncReport:
        backbone: Any = self.policy.module.backbone
        named, names = backbone.vlm.named_parameters(), backbone.family.names
        bucket = pack([(to_hub(name, names), tensor) for name, tensor in named if tensor.requires_grad])
        self.engine.begin_update(version)
        self.engine.load_bucket(bucket)
        return SyncReport(version, 0.01, bucket.data.nbytes / 1e6, self.engine.finish_update(), 0.0)


def local_generator(config: OnlineConfig, policy: LocalPolicy) -> LocalGenerator:
    """An engine at version 0 with the policy's weights."""
    generator = LocalGenerator(policy, HfEngine(config.model, config.rollout, Processor.load(config.model)))
    generator.sync(0)
    return generator
