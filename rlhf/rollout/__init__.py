"""Rollout engines by the name that a configuration uses."""

from __future__ import annotations

from collections.abc import Callable

from rlhf.config import LoraConfig, ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.rollout.base import RolloutConfig, RolloutEngine, ignored_by_engines

__all__ = ["ENGINES", "build_engine"]


def _vllm() -> type:
    from rlhf.rollout.vllm_engine import VllmEngine

    return VllmEngine


def _transformers() -> type:
    from rlhf.rollout.hf_engine import HfEngine

    return HfEngine


ENGINES: dict[str, Callable[[], type]] = {"vllm": _vllm, "transformers": _transformers}


def build_engine(
    model: ModelConfig, config: RolloutConfig, processor: Processor, seed: int = 0, lora: LoraConfig | None = None
) -> RolloutEngine:
    """Start the engine that `config.engine` names; with `lora` it expects updates of adapters.

    Raises ConfigError for a model that it could not load as configured.
    """
    if problems := ignored_by_engines(model):
        raise ConfigError(problems)
    engine: RolloutEngine = ENGINES[config.engine]()(model, config, processor, seed, lora)
    return engine
