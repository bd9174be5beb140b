"""What a rollout engine is: prompts in, tokens with the engine's own log-probabilities out, weights replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import Field, field_validator

from rlhf.batch import Completion, Prompt
from rlhf.config import Config, ModelConfig, RoleConfig
from rlhf.rollout.weights import WeightBucket


class Sampling(Config):
    """How answers are drawn. Temperature 0 is greedy."""

    max_new_tokens: int = Field(default=32, ge=1)
    """Budget of one answer; an answer that fills it without EOS is flagged as truncated."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus."""
    top_k: int = Field(default=0, ge=0)
    """0 keeps all tokens."""
    seed: int = 0
    """Base seed; every prompt draws with its own seed derived from it and the prompt's id."""
    json_schema: str | None = None
    """JSON schema that answers are held to while they are drawn; only the vllm engine can. Unset: any text."""

    @field_validator("json_schema")
    @classmethod
    def _schema_is_an_object(cls, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"a JSON schema is an object, found {type(content).__name__}")
        return text

    def seed_for(self, prompt_id: str) -> int:
        """A 31-bit seed, the same on every machine, so that a repeated request repeats its answer."""
        digest = hashlib.blake2b(f"{self.seed}:{prompt_id}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") & 0x7FFFFFFF


class RolloutConfig(Config):
    """The engine and its limits."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """vllm for speed; transformers is the slow reference that tests compare with."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the engine's weights."""
    max_length: int = Field(default=2048, ge=16)
    """Context of the engine, image tokens included."""
    max_sequences: int = Field(default=256, ge=1)
    """Sequences decoded together."""
    kv_cache_mb: int | None = Field(default=None, ge=1)
    """KV cache in MiB; unset lets the engine take its share of the device (GPU)."""
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the device that the engine may fill when kv_cache_mb is unset."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs per engine."""


def ignored_by_engines(model: ModelConfig, key: str = "model") -> list[str]:
    """What an engine would pass over in `model`, called `key` in the configuration, with what to do instead.

    Engines load a directory as it is: an adapter would not answer, and weights would not be quantised.
    """
    problems = []
    if model.adapter is not None:
        problems.append(
            f"{key}.adapter: engines load whole models; merge it first (python jobs/convert_llava.py direction=merge "
            f"source={model.path} adapter={model.adapter} target=<new folder>), and set {key}.path to the new folder"
        )
    if model.quantise != "none":
        problems.append(f"{key}.quantise: engines load whole models, not quantised ones; set it to none")
    return problems


def devices_missing(key: str, engine: RolloutConfig, role_key: str, role: RoleConfig) -> list[str]:
    """What is wrong if the actor that holds an engine has fewer GPUs than it is spread over; on CPUs nothing is."""
    if not role.gpus or role.gpus >= engine.tensor_parallel or engine.tensor_parallel == 1:
        return []
    return [f"{key}.tensor_parallel={engine.tensor_parallel} needs as many {role_key}.gpus, not {role.gpus:g}"]


class RolloutEngine(Protocol):
    """Implemented by vllm_engine and hf_engine; `actors.rollout` forwards to it."""

    @property
    def version(self) -> int:
        """The policy version whose weights answer; -1 while an update is unfinished."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """One completion per prompt, in order. Raises WeightSyncError while an update is unfinished."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of given response tokens (the canary), without sampling."""

    def begin_update(self, version: int) -> None:
        """Open an update to `version`; until `finish_update` the engine refuses to answer."""

    def load_bucket(self, bucket: WeightBucket) -> None:
        """Load one bucket of an open update; raises WeightSyncError if its bytes do not match its digest."""

    def finish_update(self) -> str:
        """Close the update, drop every cache that holds old weights' results, return the fingerprint received."""
