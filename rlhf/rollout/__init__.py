"""Rollout engines by the name that a configuration uses."""

from __future__ import annotations

from collections.abc import Callable

from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.rollout.base import RolloutConfig, RolloutEngine

__all__ = ["ENGINES", "build_engine"]


def _vllm(model: ModelConfig, config: RolloutConfig, processor: Processor, seed: int) -> RolloutEngine:
    from rlhf.rollout.vllm_engine import VllmEngine

    return VllmEngine(model, config, processor, seed)


def _transformers(model: ModelConfig, config: RolloutConfig, processor: Processor, seed: int) -> RolloutEngine:
    from rlhf.rollout.hf_engine import HfEngine

    return HfEngine(model, config, processor, seed)


ENGINES: dict[str, Callable[[ModelConfig, RolloutConfig, Processor, int], RolloutEngine]] = {
    "vllm": _vllm,
    "transformers": _transformers,
}


def build_engine(model: ModelConfig, config: RolloutConfig, processor: Processor, seed: int = 0) -> RolloutEngine:
    """Start the engine that `config.engine` names."""
    return ENGINES[config.engine](model, config, processor, seed)
