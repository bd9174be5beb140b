"""A server in the test's own process: the whole application over HTTP's own messages, without a socket."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutEngine
from rlhf.serving import build_service
from rlhf.serving.app import Endpoint
from rlhf.serving.batcher import Batcher
from rlhf.serving.config import ServingConfig
from rlhf.serving.uploads import UploadProcessor
from tests.fakes import ScriptedEngine

NAME = "tiny-model"


def settings(model: ModelConfig, service: dict[str, Any], **others: Any) -> ServingConfig:
    """A configuration of the transformers engine in float32; the fakes stand in for either engine."""
    return ServingConfig.model_validate(
        {
            "name": NAME,
            "model": model.model_copy(update={"max_length": 512}).model_dump(),
            "service": service,
            "rollout": {"engine": "transformers", "dtype": "float32", "max_length": 512},
            "gather_seconds": 0.05,
            **others,
        }
    )


def data_uri(path: str | Path) -> str:
    """A file as a client would send it."""
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


@dataclass
class Server:
    """The application with the engine and the processor that it uses."""

    config: ServingConfig
    engine: Any
    processor: UploadProcessor
    application: Any
    path: str

    @classmethod
    def of(cls, config: ServingConfig, says: Callable[[Prompt], str] | None = None, token: str | None = None) -> Server:
        """With a scripted engine, or the real one if there is no script."""
        processor = UploadProcessor.load(config.model)
        service = build_service(config, processor)
        engines: list[Any] = []

        def build() -> RolloutEngine:
            script = ScriptedEngine(says, processor) if says else None
            engines.append(script or build_engine(config.model, config.rollout, processor))
            return engines[0]

        batcher = Batcher(build, config.batch_rows, config.gather_seconds)
        if says:
            engines[0].batches.clear()  # the first word, which the server asks of itself
        endpoint = Endpoint(config, service, batcher, token)
        return cls(config, engines[0], processor, endpoint.application(), service.path)

    def client(self) -> httpx.AsyncClient:
        """Talks to the application in the running event loop."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.application), base_url="http://test")

    def post(self, *bodies: Any, headers: dict[str, str] | None = None) -> list[httpx.Response]:
        """Answers to bodies (JSON, or bytes as they are) that are posted at the same time, in order."""

        async def all_at_once() -> list[httpx.Response]:
            async with self.client() as client:
                return await asyncio.gather(*[send(client, self.path, body, headers) for body in bodies])

        return asyncio.run(all_at_once())

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer to one GET."""

        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.get(path, headers=headers)

        return asyncio.run(once())


async def send(
    client: httpx.AsyncClient, path: str, body: Any, headers: dict[str, str] | None = None
) -> httpx.Response:
    """One POST."""
    raw = isinstance(body, bytes) or hasattr(body, "__aiter__")
    content: bytes | AsyncIterator[bytes] = body if raw else json.dumps(body).encode()
    return await client.post(path, content=content, headers=headers)


def refusal_of(response: httpx.Response) -> dict[str, Any]:
    """The error in OpenAI's shape, and nothing beside it."""
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    kind = "server_error" if response.status_code >= 500 else "invalid_request_error"
    assert content["error"]["type"] == kind
    assert content["error"]["message"]
    return content["error"]


def texts(engine: ScriptedEngine) -> Sequence[Sequence[str]]:
    """The questions of every batch, without the server's own."""
    asked = [[prompt.question for prompt in prompts if prompt.id != "probe"] for prompts, _ in engine.batches]
    return [batch for batch in asked if batch]
