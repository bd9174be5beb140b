"""Guards as judges of answers: a Llama Guard in its own form of a conversation, or a guard of ours under a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from rlhf.batch import Prompt
from rlhf.errors import EndpointError, JudgeError
from rlhf.evaluation.judges import JudgeConfig, Judgement, Verdict
from rlhf.guard.baselines import llama_guard_verdict
from rlhf.guard.guards import ChatGuard, GuardDecoding
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.verdict import Verdict as GuardVerdict

_WORDS: dict[str | None, Verdict] = {"Safe": "safe", "Unsafe": "unsafe", None: "invalid"}
_SHOWN = 500  # characters of a judgement that are kept


class LlamaGuardJudge:
    """`Judge` over a Llama Guard, whose template judges the last turn: the question is the user's, the answer not.

    With everything in one turn of the user it would say whether the *question* is safe.
    """

    def __init__(self, config: JudgeConfig, first_pause: float = 0.5) -> None:
        self._chat, self._sees = config.chat(first_pause), config.send_images
        seen = "text and image" if self._sees else "text only"
        self.name = f"llama_guard: {config.model} at {self._chat.host}, {seen}, greedy"

    def judge(self, prompt: Prompt, response: str) -> Judgement:
        """By the first word of its reply; invalid if that is neither safe nor unsafe. Raises JudgeError."""
        turns = [{"role": "user", "content": prompt.question}, {"role": "assistant", "content": response}]
        images = [prompt.image] if self._sees and prompt.image is not None else []
        return _opinion(response, lambda: llama_guard_verdict(self._chat.reply(turns, images)))

    def compare(self, prompt: Prompt, response: str, other: str) -> Judgement:
        """A guard has no opinion on which of two answers is better."""
        return Judgement("invalid", "a guard judges single answers")


class GuardJudge:
    """`Judge` over a guard that learned to judge answers, asked word for word as the guard's reward asks it."""

    def __init__(self, config: JudgeConfig, first_pause: float = 0.5) -> None:
        """Raises PolicyError or ConfigError for a policy that cannot be built."""
        decoding = GuardDecoding(max_new_tokens=config.max_tokens, constrained=config.constrained)
        chat, self._policy = config.chat(first_pause), config.policy.build()
        self._guard = ChatGuard(chat, decoding)
        asked = GuardRequest("", "", self._policy, "answer", "question").text
        digest = hashlib.blake2b(asked.encode(), digest_size=4).hexdigest()
        under = f"policy {self._policy.name}, prompt {digest}"
        self.name = f"guard: {config.model} at {chat.host}, {under}, text and image, {decoding.words}"

    def judge(self, prompt: Prompt, response: str) -> Judgement:
        """By the rating; invalid if there is none, and for a prompt without an image. Raises JudgeError, ImageError."""
        if prompt.image is None:
            return Judgement("invalid", "a guard judges images, and this prompt has none")
        request = GuardRequest(prompt.id, prompt.image, self._policy, response, prompt.question)
        return _opinion(response, lambda: self._guard.ask(request))

    def compare(self, prompt: Prompt, response: str, other: str) -> Judgement:
        """A guard has no opinion on which of two answers is better."""
        return Judgement("invalid", "a guard judges single answers")


def _opinion(response: str, ask: Callable[[], GuardVerdict]) -> Judgement:
    """A guard's verdict in a judge's words; an empty answer needs no guard."""
    if not response.strip():
        return Judgement("invalid", "the answer is empty")
    try:
        verdict = ask()
    except EndpointError as error:
        raise JudgeError(str(error), silent=error.silent) from error
    return Judgement(_WORDS[verdict.rating], (verdict.raw or verdict.reason)[:_SHOWN])
