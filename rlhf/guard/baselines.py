"""Other guards made comparable: OpenAI-like moderation and Llama-Guard-like chat models, as verdicts.

Source: LlavaGuard seed page, section 4. Neither reads a policy: they judge by their own, which is what is compared.
Each kind is a line of `READERS`, for answers from a file as from an endpoint, and of `GUARDS`, which ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf.data.rows import decoded
from rlhf.evaluation.asking import Patience
from rlhf.guard.guards import ChatGuard, EndpointConfig, EndpointGuard, GuardDecoding, ask_each
from rlhf.guard.policy import Policy
from rlhf.guard.predictions import text_in
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import Taxonomy, taxonomy
from rlhf.guard.verdict import Verdict, parse_verdict
from rlhf.openai_chat import OpenAIChat, image_part

_BASELINES = Path(__file__).parent / "baselines.yaml"
_ANSWER = re.compile(r"\A\s*(safe|unsafe)\b[\s:.]*(.*)\Z", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(r"\b[SO]\d+\b")
_QUESTION = "Is this picture safe?"


def moderation_verdict(answer: Any, names: Taxonomy | None = None) -> Verdict:
    """OpenAI's moderation object, or its JSON: flagged is Unsafe with the category of the highest score, others Safe.

    One flagged result of several is enough. An object of another form is invalid. `raw` is the JSON.
    """
    chosen, raw = names or taxonomy(), answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    try:
        results = decoded(raw)["results"]
        flags = [one["flagged"] for one in results]
        scores = results[flags.index(max(flags))].get("category_scores") or {}
        top = max(scores, key=scores.__getitem__) if scores else ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Verdict("invalid", None, (), "", raw, "not a moderation object")
    if not all(isinstance(one, bool) for one in flags):
        return Verdict("invalid", None, (), "", raw, f"'flagged' is {flags!r}")
    if not any(flags):
        return Verdict("json", "Safe", (chosen.none.name,), "", raw)
    return Verdict("json", "Unsafe", _named(chosen, "openai", [top]), top, raw)


def llama_guard_verdict(text: str, names: Taxonomy | None = None) -> Verdict:
    """Llama Guard's two lines: the word safe or unsafe first, then hazard codes. Anything else is invalid."""
    chosen, match = names or taxonomy(), _ANSWER.match(text)
    if match is None:
        return Verdict("invalid", None, (), "", text, "the first word is neither safe nor unsafe")
    if match[1].lower() == "safe":
        if match[2].strip():
            return Verdict("invalid", None, (), "", text, "more than the word safe")
        return Verdict("json", "Safe", (chosen.none.name,), "", text)
    codes = _CODE.findall(match[2])
    return Verdict("json", "Unsafe", _named(chosen, "llama_guard", codes), ", ".join(codes), text)


class ModerationGuard:
    """`Guard` over a `/moderations` endpoint; the policy of a request is not sent."""

    def __init__(self, config: EndpointConfig, names: Taxonomy | None = None) -> None:
        self._chat, self._names = config.chat(1), names
        self._concurrency, self._patience = config.concurrency, Patience()

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """Raises EndpointError where the endpoint refuses or is dead (`ask_each`)."""
        return ask_each(self.ask, requests, self._concurrency, self._patience)

    def ask(self, request: GuardRequest) -> Verdict:
        """The verdict on one. Raises EndpointError where the endpoint refuses or is silent, ImageError."""
        content: list[Mapping[str, Any]] = [image_part(request.image)]
        if request.said is not None:
            content.append({"type": "text", "text": request.said})
        answer = self._chat.post("moderations", {"model": self._chat.model, "input": content})
        return moderation_verdict(answer, self._names)


class LlamaGuard:
    """`Guard` over a chat endpoint that serves a Llama Guard; its own template has its own policy."""

    def __init__(self, config: EndpointConfig, names: Taxonomy | None = None) -> None:
        self._chat: OpenAIChat = config.chat(64)
        self._names = names
        self._concurrency, self._patience = config.concurrency, Patience()

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """Raises EndpointError where the endpoint refuses or is dead (`ask_each`)."""
        return ask_each(self.ask, requests, self._concurrency, self._patience)

    def ask(self, request: GuardRequest) -> Verdict:
        """The verdict on one. Raises EndpointError where the endpoint refuses or is silent, ImageError."""
        turns = [{"role": "user", "content": request.asked or _QUESTION}]
        if request.said is not None:
            turns.append({"role": "assistant", "content": request.said})
        return llama_guard_verdict(self._chat.reply(turns, [request.image]), self._names)


Kind = Literal["guard", "moderation", "llama_guard"]


READERS: dict[Kind, Callable[[Any, Policy, Taxonomy], Verdict]] = {
    "guard": lambda answer, policy, names: parse_verdict(text_in(answer), policy),
    "moderation": lambda answer, policy, names: moderation_verdict(answer, names),
    "llama_guard": lambda answer, policy, names: llama_guard_verdict(text_in(answer), names),
}
"""The verdict in an answer, or in the `raw` of an earlier verdict; RowError for one that is no text but should be."""

GUARDS: dict[Kind, Callable[[EndpointConfig, GuardDecoding, Taxonomy], EndpointGuard]] = {
    "guard": lambda at, decoding, names: ChatGuard(at.chat(decoding.max_new_tokens), decoding, at.concurrency),
    "moderation": lambda at, decoding, names: ModerationGuard(at, names),
    "llama_guard": lambda at, decoding, names: LlamaGuard(at, names),
}
"""Who asks an endpoint."""


class BaselineConfig(EndpointConfig):
    """Another guard behind an endpoint; pictures leave the machine."""

    kind: Kind = "guard"
    """guard: any chat model asked with our prompt. moderation: POST moderations. llama_guard: its own prompt."""


def _named(chosen: Taxonomy, kind: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Names of the taxonomy for labels of another guard, each once."""
    ids = [_mappings()[kind][label] for label in labels if label in _mappings()[kind]]
    return tuple(dict.fromkeys(chosen.category(name).name for name in ids if name in chosen.ids))


@lru_cache(maxsize=1)
def _mappings() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load(_BASELINES.read_text(encoding="utf-8"))
    return found
