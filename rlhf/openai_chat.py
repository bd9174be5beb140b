"""A chat model behind any OpenAI-compatible endpoint: one question, one reply, with retries where they help."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rlhf.data.images import load_image
from rlhf.data.rows import whole_characters
from rlhf.errors import EndpointError

_TRY_AGAIN = (408, 429, *range(500, 600))
_THIS_ONE = (400, 413, 422)  # too long, or not to be read: another request may be
_REFUSED_TEXT = ("content_filter", "content_policy", "content management policy")
_LONGEST_PAUSE = 30.0  # seconds


class OpenAIChat:
    """A model's `chat/completions`. May be called from several threads; holds one pool of connections.

    `api_key_variable` names the environment variable that holds the key; without one, none is sent. `retries` counts
    further tries after a timeout, a refused connection, a body that is not what was asked for, or status 408, 429 or
    5xx; `first_pause` seconds before the first of them, doubled each time up to 30. If none helps, the EndpointError is
    `silent`, and at once for a request that the endpoint cannot take (400, 413, 422); any other status is a refusal.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_variable: str = "OPENAI_API_KEY",
        timeout_seconds: float = 60.0,
        retries: int = 5,
        max_tokens: int = 512,
        first_pause: float = 0.5,
    ) -> None:
        import httpx

        self.model = model
        self._base = base_url.rstrip("/")
        self._url = f"{self._base}/chat/completions"
        self._retries, self._max_tokens, self._pause = retries, max_tokens, first_pause
        key = os.environ.get(api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout_seconds, headers=headers)

    @property
    def host(self) -> str:
        """The endpoint's host name, for names of judges and engines."""
        return str(urlsplit(self._url).hostname)

    def reply(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        image_paths: Sequence[str] = (),
        temperature: float | None = 0.0,
        extra: Mapping[str, Any] | None = None,
        images_first: bool = False,
    ) -> str:
        """The reply's text; "" where the model said nothing or the endpoint's own filter refused.

        A plain string is one user message. Images go with the user's last message, decoded and encoded anew: metadata
        of the files does not leave the machine. They follow its text unless `images_first`. `temperature` None leaves
        it to the endpoint, for models that allow no other. `extra` is added to the request's body. A last message from
        "assistant" is one to be continued, if the endpoint is told so in `extra`.
        Raises EndpointError where the endpoint refuses, stays away or speaks something else, ImageError for an image.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        said: list[dict[str, Any]] = [dict(one) for one in turns]
        if image_paths:
            images = [image_part(path) for path in image_paths]
            last = max(place for place, one in enumerate(said) if one["role"] == "user")
            text = [{"type": "text", "text": said[last]["content"]}]
            said[last]["content"] = [*images, *text] if images_first else [*text, *images]
        body: dict[str, Any] = {"model": self.model, "messages": said, "max_tokens": self._max_tokens, **(extra or {})}
        if temperature is not None:
            body["temperature"] = temperature
        spoken = self._post(self._url, body, lambda answer: answer["choices"][0]["message"]["content"])
        # halves of characters, which JSON can carry and no file can
        return whole_characters(spoken) if isinstance(spoken, str) else ""

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """What `read` makes of the answer of another path ("moderations"); None where a content filter refused.

        An answer of which it makes KeyError, IndexError, TypeError or ValueError is as bad as none.
        Raises EndpointError where the endpoint refuses or stays away.
        """
        return self._post(f"{self._base}/{path}", body, read)

    def _post(self, url: str, body: Mapping[str, Any], read: Callable[[Any], Any]) -> Any:
        """As `post`, of a whole address."""
        import httpx

        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(min(self._pause * 2 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                answer = self._client.post(url, json=body)
                if answer.status_code == 200:
                    return read(answer.json())
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            except (json.JSONDecodeError, RecursionError):
                problem = "status 200 with a body that is not JSON"
                continue
            except (KeyError, IndexError, TypeError, ValueError):
                problem = f"status 200 that does not speak the OpenAI protocol: {answer.text[:200]}"
                continue
            problem = f"status {answer.status_code}: {answer.text[:200]}"
            if answer.status_code not in _TRY_AGAIN:
                if any(word in answer.text for word in _REFUSED_TEXT):
                    return None
                silent = answer.status_code in _THIS_ONE
                raise EndpointError(f"the model at {url} refuses: {problem}", silent=silent)
        tries = self._retries + 1
        raise EndpointError(f"the model at {url} does not answer after {tries} tries: {problem}", silent=True)


def image_part(path: str) -> dict[str, Any]:
    """The image as a part of a message. Raises ImageError."""
    return {"type": "image_url", "image_url": {"url": _data_url(path)}}


def _data_url(path: str) -> str:
    """The image as a model of ours sees it, as PNG."""
    buffer = io.BytesIO()
    load_image(path).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
