"""Who judges: a guard model in an engine of ours, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from pydantic import Field

from rlhf.config import Config
from rlhf.evaluation.asking import Patience, ask_all
from rlhf.guard.prompt import ANSWER_TOKENS, GuardRequest, guard_prompt
from rlhf.guard.verdict import Verdict, parse_verdict, silent_verdict, verdict_schema
from rlhf.inference import Decoding
from rlhf.openai_chat import OpenAIChat
from rlhf.rollout.base import RolloutEngine, Sampling


class Guard(Protocol):
    """Judges images under policies."""

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """One verdict per request, in order; what cannot be read is `invalid`."""


class EndpointGuard(Guard, Protocol):
    """A guard elsewhere, which can be asked one by one."""

    def ask(self, request: GuardRequest) -> Verdict:
        """The verdict on one. Raises EndpointError where the endpoint refuses or is silent, ImageError."""


class GuardDecoding(Decoding):
    """How verdicts are drawn: greedy and constrained to the policy's JSON unless set otherwise."""

    max_new_tokens: int = Field(default=ANSWER_TOKENS, ge=1)
    """Budget of one verdict; 200 tokens cut rationales (seed trap 6)."""
    constrained: bool = True
    """Hold answers to the JSON that the policy asks for; only the vllm engine and endpoints can."""
    longest_rationale: int | None = Field(default=None, ge=1)
    """constrained: characters of a rationale, at most, and then no quotes in it; unset leaves it to max_new_tokens."""

    @property
    def words(self) -> str:
        """What stands beside every number that depends on it."""
        return f"{super().words}, {'held to the JSON of its policy' if self.constrained else 'unconstrained'}"

    def for_request(self, request: GuardRequest) -> Sampling:
        """Sampling with the schema of the request's policy."""
        schema = verdict_schema(request.policy, self.longest_rationale) if self.constrained else None
        return self.model_copy(update={"json_schema": schema})


class EndpointConfig(Config):
    """A model behind any OpenAI-compatible endpoint."""

    base_url: str
    """For example "http://localhost:8000/v1"."""
    model: str
    """The model's name at the endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Patience with one request."""
    retries: int = Field(default=5, ge=0)
    """Further tries of one request."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at the same time."""

    def chat(self, max_tokens: int, first_pause: float = 0.5) -> OpenAIChat:
        """A client of the endpoint."""
        return OpenAIChat(
            self.base_url,
            self.model,
            self.api_key_variable,
            self.timeout_seconds,
            self.retries,
            max_tokens,
            first_pause,
        )


class EngineGuard:
    """A guard model in a rollout engine. Requests whose policies allow other answers are asked in other batches."""

    def __init__(self, engine: RolloutEngine, decoding: GuardDecoding) -> None:
        self._engine, self._decoding = engine, decoding

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """Raises PromptTooLongError or ImageError for a request that cannot be asked, ConfigError for the engine."""
        groups: dict[str | None, list[int]] = {}
        samplings = [self._decoding.for_request(request) for request in requests]
        for place, sampling in enumerate(samplings):
            groups.setdefault(sampling.json_schema, []).append(place)
        verdicts: dict[int, Verdict] = {}
        for places in groups.values():
            prompts = [guard_prompt(requests[place]) for place in places]
            for place, completion in zip(places, self._engine.generate(prompts, samplings[places[0]]), strict=True):
                verdicts[place] = parse_verdict(completion.text, requests[place].policy)
        return [verdicts[place] for place in range(len(requests))]


class ChatGuard:
    """Any chat model asked with the guard's own prompt; with `decoding.constrained` by `response_format`."""

    def __init__(self, chat: OpenAIChat, decoding: GuardDecoding, concurrency: int = 1) -> None:
        self._chat, self._decoding, self._concurrency = chat, decoding, concurrency
        self._patience = Patience()

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """Raises EndpointError where the endpoint refuses or is dead (`ask_each`), ImageError for a broken image."""
        return ask_each(self.ask, requests, self._concurrency, self._patience)

    def ask(self, request: GuardRequest) -> Verdict:
        """The verdict on one. Raises EndpointError where the endpoint refuses or is silent, ImageError."""
        form: dict[str, Any] = {}
        schema = self._decoding.for_request(request).json_schema
        if schema is not None:
            form = {"response_format": response_format(schema)}
        # the image goes first, as in training
        reply = self._chat.reply(request.text, [request.image], self._decoding.temperature, form, images_first=True)
        return parse_verdict(reply, request.policy)


def ask_each(
    ask: Callable[[GuardRequest], Verdict], requests: Sequence[GuardRequest], concurrency: int, patience: Patience
) -> list[Verdict]:
    """Verdicts of an endpoint, in order; one that never comes is `silent`, and stops no other.

    Raises EndpointError where the endpoint refuses, or is silent as often as `ask_all` bears, over all calls that share
    `patience`.
    """
    said: dict[int, Verdict] = {}
    questions = {place: partial(ask, request) for place, request in enumerate(requests)}
    lost = ask_all(questions, said.__setitem__, concurrency, patience)
    return [silent_verdict(lost[place]) if place in lost else said[place] for place in questions]


def response_format(schema: str) -> dict[str, Any]:
    """OpenAI's parameter of that name for a JSON schema; vLLM's server reads it too."""
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": json.loads(schema)}}
