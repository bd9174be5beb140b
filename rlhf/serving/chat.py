"""A policy behind OpenAI's chat protocol: the prompt of our evaluations, an answer, and whether it refuses.

What a template cannot say is refused: a system prompt, a second image, an image that is not in the first question.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf.batch import Completion, Prompt
from rlhf.errors import RequestError
from rlhf.evaluation.judges import RulesJudge
from rlhf.evaluation.safety import is_refusal
from rlhf.evaluation.vlguard_refusal import RefusalMatcher
from rlhf.rollout.base import Sampling
from rlhf.serving.config import ChatServiceConfig, ServingConfig
from rlhf.serving.service import Body, Call, parse
from rlhf.serving.uploads import UploadProcessor, image_bytes


class _Text(Body):
    type: Literal["text"]
    text: str


class _ImageUrl(Body):
    url: str
    detail: Literal["auto"] = "auto"


class _Image(Body):
    type: Literal["image_url"]
    image_url: _ImageUrl


_Part = Annotated[_Text | _Image, Field(discriminator="type")]


class _Message(Body):
    role: str
    content: str | tuple[_Part, ...]

    def text(self) -> str:
        """Its words, parts on lines of their own."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, _Text))

    def images(self) -> list[str]:
        """Its pictures as they were sent."""
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content if isinstance(part, _Image)]


class ChatBody(Body):
    """The part of OpenAI's request that is understood."""

    model: str
    messages: tuple[_Message, ...] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False
    user: str | None = None


class ChatService:
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"

    def __init__(self, config: ServingConfig, settings: ChatServiceConfig, processor: UploadProcessor) -> None:
        self._config, self._settings, self._processor = config, settings, processor
        self._rule, self._refuses = refusal_rule(settings.refusal)

    def about(self) -> dict[str, Any]:
        """What a refusal is, and how answers are drawn."""
        return {"decoding": self._settings.sampling.words, "refusal_rule": self._rule}

    def read(self, content: bytes) -> Call:
        """Raises RequestError, ImageError, PromptTooLongError, or RowError for a text with a reserved token."""
        body = parse(ChatBody, content)
        if body.model != self._config.name:
            raise RequestError(
                f"there is no model {body.model[:80]!r} here; this is {self._config.name!r}",
                404,
                "model_not_found",
                "model",
            )
        history, question, image = conversation(body.messages, self._config.model.template)
        upload = None
        if image is not None:
            upload = self._processor.hold(image_bytes(image, "messages"), self._config.http.max_image_side)
        sampling = _sampling(body, self._settings.sampling)
        # an engine draws by the seed of a prompt's id; without a seed, no two requests draw alike
        name = f"seed:{body.seed}" if body.seed is not None else secrets.token_hex(8)
        prompt = Prompt(name, question, upload.name if upload else None, history=history)
        tokens = len(self._processor.prompt_ids(prompt, sampling.max_new_tokens, self._config.context))
        return Call(prompt, sampling, upload, lambda said, seconds: self._respond(said, tokens, seconds))

    def _respond(self, said: Completion, prompt_tokens: int, seconds: float) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.text, "refusal": None}
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._config.name,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish_reason}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(said.token_ids),
                "total_tokens": prompt_tokens + len(said.token_ids),
            },
            # `message.refusal` is for models that say of themselves that they refuse; this is a rule's reading
            "safevl": {"refused": self._refuses(said.text), "rule": self._rule, "seconds": round(seconds, 4)},
        }


def conversation(messages: Sequence[_Message], template: str) -> tuple[tuple[tuple[str, str], ...], str, str | None]:
    """Earlier turns, the question and the image as it was sent. Raises RequestError for what no template can show."""
    for place, one in enumerate(messages):
        if one.role in ("system", "developer"):
            raise _wrong(place, f"the template {template!r} has its own system prompt and shows no other", "role")
        if one.role != ("user", "assistant")[place % 2]:
            raise _wrong(place, "messages are user, assistant, user, ... in turn", "role")
        if not one.text().strip():
            raise _wrong(place, "there is no text", "content")
        if (images := one.images()) and place > 0:
            raise _wrong(place, "an image belongs to the first message, where the model learned to look", "content")
        if len(images) > 1:
            raise _wrong(place, f"{len(images)} images; the model sees one", "content")
    if len(messages) % 2 == 0:
        raise _wrong(len(messages) - 1, "the last message must be the user's", "role")
    texts = [one.text() for one in messages]
    image = next(iter(messages[0].images()), None)
    return tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1], image


def refusal_rule(kind: Literal["rules", "keywords"]) -> tuple[str, Callable[[str], bool]]:
    """The name of a rule and the rule: the one that evaluations of that judge use."""
    if kind == "rules":
        return RulesJudge.name, is_refusal
    matcher = RefusalMatcher()
    return matcher.name, matcher.refuses


def _sampling(body: ChatBody, default: Sampling) -> Sampling:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError("max_tokens and max_completion_tokens are the same; send one of them", param="max_tokens")
    asked = {
        "max_new_tokens": body.max_tokens if body.max_tokens is not None else body.max_completion_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
    }
    return default.model_copy(update={key: value for key, value in asked.items() if value is not None})


def _wrong(place: int, problem: str, key: str) -> RequestError:
    return RequestError(f"messages.{place}: {problem}", param=f"messages.{place}.{key}")
