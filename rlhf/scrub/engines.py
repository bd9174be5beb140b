"""Who says a turn neutrally: the rules, or a language model whose text the rules audit.

To add an engine, write its file, add its kind to `EngineConfig` and its line to `build_engine`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, model_validator

from rlhf.config import Config, resolve
from rlhf.errors import ConfigError
from rlhf.scrub.rewrite import rewrite
from rlhf.scrub.taxonomy import Taxonomy, words_digest
from rlhf.scrub.text import Context

if TYPE_CHECKING:
    from rlhf.scrub.model_engine import Chat

VERSION = f"3, words {words_digest()}"  # of the rules, which also audit what a model wrote


@dataclass(frozen=True, slots=True)
class Rejected:
    """A try that the verifier refused, and what it found."""

    text: str
    problem: str


class Rewriter(Protocol):
    """Says turns neutrally; may be called from `concurrency` threads at a time."""

    tries: int
    """How often a turn may be tried before its row is refused."""
    every_turn: bool
    """Whether it also gets turns in which the rules find nothing."""
    concurrency: int
    """Rows under way at the same time in one worker."""

    def rewrite(self, text: str, speaker: str, context: Context, rejected: Sequence[Rejected] = ()) -> str:
        """The turn said neutrally; may be empty. `speaker` is human or gpt, `rejected` has the tries before this."""

    def unit(self, name: str) -> AbstractContextManager[object]:
        """Within it, what costs something is remembered under the unit's name and not done again after a crash."""


class EngineConfig(Config):
    """Who rewrites."""

    kind: Literal["rules", "openai", "vllm"] = "rules"
    """rules: no model. openai: a model behind any OpenAI-compatible endpoint. vllm: one inside each worker."""
    base_url: str | None = None
    """openai: the endpoint, for example "http://localhost:8000/v1". The texts are sent there."""
    model: str | None = None
    """openai: the model's name at the endpoint. vllm: its directory or hub id; it needs a chat template."""
    api_key_variable: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key; the key itself is never written anywhere."""
    turns: Literal["found", "all"] = "found"
    """Models: found asks about turns in which the rules find something; all about every turn, at its price."""
    tries: int = Field(default=3, ge=1)
    """Models: tries per turn; each but the first is told what the verifier found. Then the row is refused."""
    max_tokens: int = Field(default=1024, ge=1)
    """Models: budget of one rewritten turn."""
    concurrency: int = Field(default=8, ge=1)
    """Models: rows under way at the same time in one worker; vllm wants many more."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """openai: patience with one request."""
    retries: int = Field(default=5, ge=0)
    """openai: further tries after a timeout, a refused connection, or status 408, 429 or 5xx."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """vllm: precision of the weights."""
    max_length: int = Field(default=4096, ge=16)
    """vllm: context, in tokens, of what is asked and the reply; a row with a longer turn is refused."""
    kv_cache_mb: int | None = Field(default=None, ge=1)
    """vllm: KV cache in MiB; unset lets the engine take its share of the GPU."""
    gpus: int = Field(default=0, ge=0)
    """vllm: GPUs of each worker; over more than one the model is split. 0 runs on CPUs."""

    @model_validator(mode="after")
    def _model_is_named(self) -> EngineConfig:
        needed = {"rules": (), "openai": ("base_url", "model"), "vllm": ("model",)}[self.kind]
        problems = [f"engine.{key}: kind {self.kind} needs it" for key in needed if not getattr(self, key)]
        if self.gpus and self.kind != "vllm":
            problems.append(f"engine.gpus: kind {self.kind} has no model in the worker; leave the key out")
        if self.kind == "vllm" and self.max_tokens >= self.max_length:
            problems.append(f"engine.max_tokens={self.max_tokens} leaves no room in max_length={self.max_length}")
        if (
            self.kind == "vllm"
            and str(self.model).startswith(("./", "/"))
            and not Path(resolve(str(self.model))).is_dir()
        ):
            problems.append(f"engine.model: no such directory {resolve(str(self.model))}; mend the path")
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def label(self) -> str:
        """The ledger's column `engine`."""
        return self.kind if self.kind == "rules" else f"{self.kind}: {self.model}"

    @property
    def version(self) -> str:
        """The ledger's column `version`: of the rules, and of what a model is asked."""
        return VERSION if self.kind == "rules" else f"{VERSION}, prompts {self.identity['prompts']}"

    @property
    def identity(self) -> dict[str, str]:
        """What the rewritten text depends on, for the manifest; not where the model is served."""
        if self.kind == "rules":
            return {"kind": "rules", "version": VERSION}
        from rlhf.scrub.model_engine import PROMPTS

        chosen = {key: str(getattr(self, key)) for key in ("kind", "model", "turns", "tries", "max_tokens")}
        if self.kind == "vllm":
            chosen |= {"weights": _weights(str(self.model)), "dtype": self.dtype}
        prompts = hashlib.sha256("\0".join(PROMPTS).encode()).hexdigest()[:16]
        return {**chosen, "version": VERSION, "prompts": prompts}


class RulesRewriter:
    """The default: word lists and grammar, no model."""

    tries, every_turn, concurrency = 1, False, 1

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy

    def rewrite(self, text: str, speaker: str, context: Context, rejected: Sequence[Rejected] = ()) -> str:
        """The same for questions and answers; a second try would say the same."""
        return rewrite(text, self._taxonomy, context)

    def unit(self, name: str) -> AbstractContextManager[object]:
        """Nothing costs enough to be remembered."""
        return nullcontext()


def build_engine(config: EngineConfig, taxonomy: Taxonomy, answers: Path) -> Rewriter:
    """The engine that a configuration describes; `answers` is where a model's replies are kept."""
    if config.kind == "rules":
        return RulesRewriter(taxonomy)
    from rlhf.scrub.model_engine import ModelRewriter

    return ModelRewriter(_chat(config), config, taxonomy, answers)


def _chat(config: EngineConfig) -> Chat:
    if config.kind == "vllm":
        from rlhf.rollout.base import RolloutConfig
        from rlhf.rollout.vllm_chat import VllmChat

        engine = RolloutConfig(
            dtype=config.dtype,
            max_length=config.max_length,
            max_sequences=config.concurrency,
            kv_cache_mb=config.kv_cache_mb,
            tensor_parallel=max(config.gpus, 1),
        )
        return VllmChat(str(config.model), engine, config.max_tokens)
    from rlhf.openai_chat import OpenAIChat

    return OpenAIChat(
        str(config.base_url),
        str(config.model),
        config.api_key_variable,
        config.timeout_seconds,
        config.retries,
        config.max_tokens,
    )


@lru_cache(maxsize=1)
def _weights(model: str) -> str:
    """A hash of a local model's files; "" for a hub id."""
    from rlhf.inference import fingerprint

    return fingerprint(resolve(model))
