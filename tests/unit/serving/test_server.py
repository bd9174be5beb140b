"""What every server does: batches, patience, limits, tokens, and an engine that fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.errors import ConfigError
from rlhf.rollout.base import Sampling
from rlhf.serving.batcher import Batcher
from rlhf.serving.config import HttpConfig, ServingConfig, token_sha256
from rlhf.serving.service import Call
from rlhf.serving.uploads import UploadProcessor
from tests.fakes import ScriptedEngine
from tests.unit.serving.asking import NAME, Server, data_uri, refusal_of, send, settings, texts

CHAT = {"kind": "chat", "sampling": {"max_new_tokens": 12}}


def body(question: str, image: str | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    parts += [{"type": "image_url", "image_url": {"url": image}}] if image else []
    return {"model": NAME, "messages": [{"role": "user", "content": parts}]}


def content(response: Any) -> str:
    assert response.status_code == 200, response.text
    said: str = response.json()["choices"][0]["message"]["content"]
    return said


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_guard13_requests_that_come_together_are_one_batch_and_answers_find_their_own(
    tiny: ModelConfig, pictures: list[str]
) -> None:
    server = Server.of(settings(tiny, CHAT, batch_rows=6, gather_seconds=1.0), lambda prompt: f"To {prompt.question}")
    questions = [f"number {number}" for number in range(8)]
    answers = server.post(*[body(one, data_uri(pictures[place % 4])) for place, one in enumerate(questions)])
    assert [content(answer) for answer in answers] == [f"To {one}" for one in questions]
    asked = texts(server.engine)
    assert len(asked[0]) == 6  # as many as fit; the last two may come together or one after the other
    assert sum(map(len, asked)) == 8
    assert sorted(sum(map(list, asked), [])) == questions


def test_guard13_a_busy_engine_leaves_the_server_awake_and_takes_what_gathered(tiny: ModelConfig) -> None:
    server = Server.of(settings(tiny, CHAT), lambda prompt: prompt.question)

    async def story() -> None:
        async with server.client() as client:
            server.engine.gate.clear()
            first = asyncio.create_task(send(client, server.path, body("first")))
            await asyncio.sleep(0.2)  # the engine is at it
            later = [asyncio.create_task(send(client, server.path, body(f"later {n}"))) for n in range(3)]
            health = (await client.get("/health")).json()
            await until(lambda: health["pending"] >= 1)
            await asyncio.sleep(0.2)
            assert (await client.get("/health")).json()["pending"] == 4
            server.engine.gate.set()
            assert [content(await one) for one in (first, *later)] == ["first", "later 0", "later 1", "later 2"]
            assert (await client.get("/health")).json()["pending"] == 0

    asyncio.run(story())
    assert [len(batch) for batch in texts(server.engine)] == [1, 3]


def test_guard13_a_request_that_breaks_the_engine_hurts_no_neighbour(tiny: ModelConfig) -> None:
    def says(prompt: Prompt) -> str:
        if prompt.question == "boom":
            raise ValueError("secret details")
        return prompt.question

    server = Server.of(settings(tiny, CHAT), says)
    answers = server.post(*[body(one) for one in ("a", "boom", "b")])
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert [content(answers[0]), content(answers[2])] == ["a", "b"]
    error = refusal_of(answers[1])
    assert error["code"] == "server_error"
    assert "secret" not in error["message"]
    assert server.get("/health").status_code == 200  # the engine still speaks


def test_an_engine_that_is_broken_makes_the_replica_unhealthy_until_it_speaks_again(tiny: ModelConfig) -> None:
    broken: list[bool] = []

    def says(prompt: Prompt) -> str:
        if broken:
            raise RuntimeError("out of memory")
        return "Yes."

    server = Server.of(settings(tiny, CHAT), says)
    broken.append(True)
    assert server.get("/health").status_code == 200  # nobody noticed yet
    assert server.post(body("a"))[0].status_code == 500
    unhealthy = server.get("/health")
    assert unhealthy.status_code == 503
    assert refusal_of(unhealthy)["code"] == "unhealthy"
    broken.clear()
    assert server.get("/health").status_code == 200
    assert content(server.post(body("a"))[0]) == "Yes."


def test_an_engine_that_cannot_say_a_first_word_is_refused_at_the_start(tiny: ModelConfig) -> None:
    processor = UploadProcessor.load(tiny)

    def says(prompt: Prompt) -> str:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        Batcher(lambda: ScriptedEngine(says, processor), 4, 0.0)  # type: ignore[arg-type, return-value]


def test_guard13_too_many_requests_get_503_at_once_and_the_others_their_answers(tiny: ModelConfig) -> None:
    server = Server.of(settings(tiny, CHAT, http={"max_pending": 2}), lambda prompt: prompt.question)

    async def story() -> None:
        async with server.client() as client:
            server.engine.gate.clear()
            waiting = [asyncio.create_task(send(client, server.path, body(f"{n}"))) for n in range(2)]
            await asyncio.sleep(0.1)
            third = await send(client, server.path, body("third"))
            assert third.status_code == 503
            assert third.headers["retry-after"]
            assert refusal_of(third)["code"] == "overloaded"
            assert not any(one.done() for one in waiting)
            server.engine.gate.set()
            assert [content(await one) for one in waiting] == ["0", "1"]
            assert content(await send(client, server.path, body("again"))) == "again"

    asyncio.run(story())


def test_a_client_that_went_away_is_not_asked_for(tiny: ModelConfig) -> None:
    engine = ScriptedEngine(lambda prompt: prompt.question, UploadProcessor.load(tiny))
    batcher = Batcher(lambda: engine, 4, 0.0)  # type: ignore[arg-type, return-value]

    def call(question: str) -> Call:
        return Call(Prompt(question, question), Sampling(temperature=0), None, lambda said, seconds: {})

    async def story() -> None:
        engine.gate.clear()
        first, gone, last = (asyncio.create_task(batcher.ask(call(one))) for one in ("first", "gone", "last"))
        await asyncio.sleep(0.1)  # all three are one batch by now
        later = [asyncio.create_task(batcher.ask(call(one))) for one in ("x", "y")]
        await asyncio.sleep(0.05)
        gone.cancel()
        later[0].cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        assert [(await one).text for one in (first, last, later[1])] == ["first", "last", "y"]

    asyncio.run(story())
    asked = texts(engine)
    assert ["y"] in asked
    assert "x" not in sum(map(list, asked), [])


def test_guard13_the_size_and_the_time_of_a_request_are_bounded(tiny: ModelConfig) -> None:
    limits = {"max_body_mb": 0.01, "body_seconds": 0.2}
    server = Server.of(settings(tiny, CHAT, http=limits), lambda prompt: "Yes.")

    async def stream(pieces: int, pause: float) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b" " * 1024
            await asyncio.sleep(pause)

    declared, streamed, slow, fine = server.post(b" " * 20_000, stream(20, 0), stream(5, 1.0), body("?"))
    assert [one.status_code for one in (declared, streamed, slow, fine)] == [413, 413, 408, 200]
    assert "larger than 10485 bytes" in refusal_of(declared)["message"]
    assert refusal_of(streamed)["code"] == "request_too_large"
    assert refusal_of(slow)["code"] == "request_timeout"
    assert server.get("/health").json()["pending"] == 0


def test_a_token_is_asked_for_and_only_its_hash_is_known(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "correct horse")
    digest = token_sha256(HttpConfig(token_variable="SERVER_TOKEN"))
    assert digest == hashlib.sha256(b"correct horse").hexdigest()
    server = Server.of(settings(tiny, CHAT), lambda prompt: "Yes.", digest)
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": "correct horse"},
        {"Authorization": "Basic correct horse"},
        {"Authorization": "Bearer correct hors"},
        {"Authorization": f"Bearer {digest}"},
        {"Authorization": "Bearer"},
    ]
    for headers in wrong:
        (answer,) = server.post(body("?"), headers=headers)
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert refusal_of(answer)["code"] == "invalid_api_key"
        assert server.get("/v1/models", headers).status_code == 401
    right = {"Authorization": "Bearer correct horse"}
    assert content(server.post(body("?"), headers=right)[0]) == "Yes."
    assert server.get("/v1/models", right).status_code == 200
    assert server.get("/health").status_code == 200
    monkeypatch.delenv("SERVER_TOKEN")
    with pytest.raises(ConfigError, match=r"http.token_variable: SERVER_TOKEN is not set"):
        token_sha256(HttpConfig(token_variable="SERVER_TOKEN"))
    assert token_sha256(HttpConfig()) is None


def test_other_paths_and_methods_are_errors_in_the_same_shape(tiny: ModelConfig) -> None:
    server = Server.of(settings(tiny, CHAT), lambda prompt: "Yes.")
    assert server.get("/v1/guard").status_code == 404
    assert "/v1/guard" in refusal_of(server.get("/v1/guard"))["message"]
    wrong = server.get(server.path)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert refusal_of(wrong)["message"]


def test_uploads_live_as_long_as_their_requests_and_equal_ones_share_a_picture(
    tiny: ModelConfig, pictures: list[str]
) -> None:
    processor = UploadProcessor.load(tiny)
    data = [Path(path).read_bytes() for path in pictures[:2]]
    one, same, other = processor.hold(data[0], 4096), processor.hold(data[0], 4096), processor.hold(data[1], 4096)
    assert one.name == same.name == f"sha256:{hashlib.sha256(data[0]).hexdigest()}"
    assert one.picture is same.picture
    assert other.name != one.name
    name = one.name
    del same
    assert processor.open(name) is one.picture
    del one
    with pytest.raises(KeyError):
        processor.open(name)
    assert processor.open(other.name) is other.picture


def test_configurations_that_cannot_be_served_are_refused_with_every_reason(tiny: ModelConfig) -> None:
    def problems(**changes: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            ServingConfig.model_validate(settings(tiny, CHAT).model_dump() | changes)
        return str(caught.value)

    model = settings(tiny, CHAT).model.model_dump()
    several = problems(
        model=model | {"template": "plain", "adapter": "./x"},
        service={"kind": "guard"},
        replicas={"colocate_with": "policy"},
    )
    assert "service.sampling.constrained: the transformers engine cannot hold answers" in several
    assert "service.sampling.max_new_tokens=512 leaves no room" in several
    assert "replicas.colocate_with" in several
    assert "model.template=plain shows no question" in several
    assert "model.adapter: engines load whole models" in several
    assert "json_schema: only the vllm engine" in problems(service=CHAT | {"sampling": {"json_schema": "{}"}})
    tensor = {"engine": "vllm", "tensor_parallel": 2}
    assert "needs as many replicas.gpus" in problems(rollout=tensor, replicas={"gpus": 1})
    with pytest.raises(ValueError, match="route"):
        HttpConfig(route="guard")
