"""The configuration of a server: which model, what it is asked for, how it is reached."""

from __future__ import annotations

import hashlib
import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config import Config, ModelConfig, RoleConfig
from rlhf.errors import ConfigError
from rlhf.guard.asking import misheld
from rlhf.guard.guards import GuardDecoding
from rlhf.guard.policy_config import PolicyConfig
from rlhf.inference import Decoding, misfits
from rlhf.rollout.base import RolloutConfig


class ChatServiceConfig(Config):
    """Serve a policy: POST /v1/chat/completions."""

    kind: Literal["chat"] = "chat"
    sampling: Decoding = Decoding()
    """What holds where a request says nothing."""
    refusal: Literal["rules", "keywords"] = "rules"
    """What counts as a refusal: the phrase rules of our evaluations, or VLGuard's published keywords."""


class GuardServiceConfig(Config):
    """Serve a guard: POST /v1/guard."""

    kind: Literal["guard"] = "guard"
    sampling: GuardDecoding = GuardDecoding()
    policies: dict[str, PolicyConfig] = Field(default={"default": PolicyConfig()}, min_length=1)
    """Policies that a request can name; one that names none is judged under "default"."""


class HttpConfig(Config):
    """How a server is reached, and what it bears."""

    host: str = "127.0.0.1"
    """Address to listen at; "0.0.0.0" lets other machines ask, then set a token."""
    port: int = Field(default=8000, ge=1, le=65_535)
    """Ray Serve has one address per cluster; a second server of a cluster needs the same one and another route."""
    route: str = Field(default="/", pattern=r"^/([\w.-]+(/[\w.-]+)*)?$")
    """What stands before every path, "/" for nothing."""
    token_variable: str | None = None
    """Environment variable with the token that clients send as "Authorization: Bearer ..."; unset: anyone may ask."""
    max_pending: int = Field(default=64, ge=1)
    """Requests that a replica works on or keeps waiting; further ones get status 503."""
    max_body_mb: float = Field(default=16, gt=0)
    """Size of a request, in MiB; larger ones get status 413."""
    max_image_side: int = Field(default=4096, ge=1)
    """Longest side of an image, in pixels."""
    body_seconds: float = Field(default=30, gt=0)
    """Patience with a client that sends its request slowly."""
    drain_seconds: float = Field(default=30, gt=0, le=50)
    """Time for what is under way when the server is stopped."""


class ServingConfig(Config):
    """One model behind one address."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """What clients call the model, and Ray Serve the application."""
    model: ModelConfig
    service: Annotated[ChatServiceConfig | GuardServiceConfig, Field(discriminator="kind")]
    rollout: RolloutConfig = RolloutConfig()
    replicas: RoleConfig = RoleConfig()
    """Engines that share the requests."""
    batch_rows: int = Field(default=32, ge=1)
    """Requests that an engine answers together, at most; the first is answered when the last is."""
    gather_seconds: float = Field(default=0.005, ge=0)
    """How long an idle engine waits for company of a request."""
    http: HttpConfig = HttpConfig()

    @model_validator(mode="after")
    def _can_be_served(self) -> ServingConfig:
        sampling = self.service.sampling
        problems = misfits(self.model, sampling, self.rollout, self.replicas, ("service.sampling", "replicas"))
        if isinstance(sampling, GuardDecoding):
            problems += misheld(sampling, self.rollout, "service.sampling")
        elif sampling.json_schema is not None and self.rollout.engine != "vllm":
            problems.append("service.sampling.json_schema: only the vllm engine can hold answers to one")
        if self.model.template == "plain":
            problems.append("model.template=plain shows no question; name the template that the model was tuned with")
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together."""
        return min(self.rollout.max_length, self.model.max_length)


def token_sha256(config: HttpConfig) -> str | None:
    """What replicas know of the token, so that it stays on the machine that has it; None without one.

    Raises ConfigError if the variable is not set.
    """
    if config.token_variable is None:
        return None
    token = os.environ.get(config.token_variable, "")
    if not token:
        raise ConfigError([f"http.token_variable: {config.token_variable} is not set in the environment"])
    return hashlib.sha256(token.encode()).hexdigest()
