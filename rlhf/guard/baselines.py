"""Other guards made comparable: OpenAI-like moderation and Llama-Guard-like chat models, as verdicts.

Source: LlavaGuard seed page, section 4. Neither reads a policy: they judge by their own, which is what is compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rlhf.guard.guards import EndpointConfig
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import Taxonomy, taxonomy
from rlhf.guard.verdict import Verdict
from rlhf.openai_chat import OpenAIChat, image_part

_BASELINES = Path(__file__).parent / "baselines.yaml"
_ANSWER = re.compile(r"\A\s*(safe|unsafe)\b[\s:.]*(.*)\Z", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(r"\b[SO]\d+\b")
_QUESTION = "Is this picture safe?"


def moderation_verdict(answer: Any, names: Taxonomy | None = None) -> Verdict:
    """OpenAI's moderation object: flagged is Unsafe, with the category of the highest score; others Safe, none.

    An object of another form is invalid.
    """
    chosen, raw = names or taxonomy(), str(answer)
    try:
        result = answer["results"][0]
        flagged, scores = result["flagged"], result.get("category_scores") or {}
        top = max(scores, key=scores.__getitem__) if scores else ""
    except (KeyError, IndexError, TypeError):
        return Verdict("invalid", None, (), "", raw, "not a moderation object")
    if not isinstance(flagged, bool):
        return Verdict("invalid", None, (), "", raw, f"'flagged' is {flagged!r}")
    if not flagged:
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

    def __init__(self, config: EndpointConfig) -> None:
        self._chat, self._concurrency = config.chat(1), config.concurrency

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """Raises EndpointError where the endpoint refuses or stays away."""
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: GuardRequest) -> Verdict:
        content: list[Mapping[str, Any]] = [image_part(request.image)]
        if request.said is not None:
            content.append({"type": "text", "text": request.said})
        return moderation_verdict(self._chat.post("moderations", {"model": self._chat.model, "input": content}))


class LlamaGuard:
    """`Guard` over a chat endpoint that serves a Llama Guard; its own template has its own policy."""

    def __init__(self, config: EndpointConfig) -> None:
        self._chat: OpenAIChat = config.chat(64)
        self._concurrency = config.concurrency

    def judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """Raises EndpointError where the endpoint refuses or stays away."""
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: GuardRequest) -> Verdict:
        turns = [{"role": "user", "content": request.asked or _QUESTION}]
        if request.said is not None:
            turns.append({"role": "assistant", "content": request.said})
        return llama_guard_verdict(self._chat.reply(turns, [request.image]))


def _named(chosen: Taxonomy, kind: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Names of the taxonomy for labels of another guard, each once."""
    ids = [_mappings()[kind][label] for label in labels if label in _mappings()[kind]]
    return tuple(dict.fromkeys(chosen.category(name).name for name in ids if name in chosen.ids))


@lru_cache(maxsize=1)
def _mappings() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load(_BASELINES.read_text(encoding="utf-8"))
    return found
