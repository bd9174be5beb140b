"""What a chat model is sent, and how often, against a real server on this machine."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlhf.errors import EndpointError
from rlhf.openai_chat import OpenAIChat
from tests.unit.evaluation.openai_server import chat_server


def test_a_conversation_is_sent_turn_by_turn_and_images_go_with_the_last_one(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    turns.append({"role": "user", "content": "three"})
    with chat_server(lambda request: (200, "four")) as server:
        chat = OpenAIChat(server.url, "m", max_tokens=7)
        assert chat.reply(turns, [str(tmp_path / "a.png")] * 2) == "four"
    (request,) = server.requests
    assert [one["role"] for one in request["messages"]] == ["user", "assistant", "user"]
    assert [part["type"] for part in request["messages"][2]["content"]] == ["text", "image_url", "image_url"]
    assert request["max_tokens"] == 7
    assert turns[2]["content"] == "three"  # the caller's list is as it was


def test_greedy_unless_the_endpoint_decides() -> None:
    with chat_server(lambda request: (200, "x")) as server:
        chat = OpenAIChat(server.url, "m")
        chat.reply("a")
        chat.reply("a", temperature=0.7)
        chat.reply("a", temperature=None)
    assert [request.get("temperature") for request in server.requests] == [0, 0.7, None]
    assert "temperature" not in server.requests[2]


def test_a_dead_endpoint_is_an_error_that_names_it() -> None:
    with pytest.raises(EndpointError, match=r"http://127.0.0.1:9/v1/chat/completions does not answer after 2 tries"):
        OpenAIChat("http://127.0.0.1:9/v1/", "m", retries=1, first_pause=0.01).reply("a")


@pytest.mark.parametrize(("status", "body", "problem"), [
    (429, {"error": "slow down"}, "status 429"),
    (500, {}, "status 500"),
    (501, {}, "status 501"),
    (529, {"error": "overloaded"}, "status 529"),
    (200, b"<html>", "not JSON"),
    (200, b"[" * 5000, "not JSON"),
    (200, {"hello": 1}, "does not speak the OpenAI protocol"),
    (200, {"choices": []}, "does not speak the OpenAI protocol"),
])  # fmt: skip
def test_what_may_pass_is_asked_again_a_bounded_number_of_times(status: int, body: Any, problem: str) -> None:
    with chat_server(lambda request: (status, body)) as server:
        with pytest.raises(EndpointError, match=f"does not answer after 3 tries: .*{problem}") as caught:
            OpenAIChat(server.url, "m", retries=2, first_pause=0.01).reply("a")
        assert len(server.requests) == 3
    assert caught.value.silent
    assert pickle.loads(pickle.dumps(caught.value)).silent  # as it comes from another process


def test_a_body_that_cannot_be_unpacked_is_garbage_like_any_other() -> None:
    with chat_server(lambda request: (200, "x"), encoding="gzip") as server:
        with pytest.raises(EndpointError, match="after 2 tries: DecodingError") as caught:
            OpenAIChat(server.url, "m", retries=1, first_pause=0.01).reply("a")
        assert len(server.requests) == 2
    assert caught.value.silent


def test_half_of_a_character_can_be_written_to_a_file(tmp_path: Path) -> None:
    with chat_server(lambda request: (200, "so \ud83d")) as server:
        reply = OpenAIChat(server.url, "m").reply("a")
    (tmp_path / "reply.txt").write_text(reply, encoding="utf-8")
    assert reply == "so \ufffd"


def test_an_endpoint_that_never_answers_is_given_up_after_as_many_timeouts() -> None:
    def sleeps(request: dict[str, Any]) -> tuple[int, str]:
        time.sleep(0.5)
        return 200, "too late"

    with chat_server(sleeps) as server, pytest.raises(EndpointError, match="after 2 tries: ReadTimeout") as caught:
        OpenAIChat(server.url, "m", timeout_seconds=0.05, retries=1, first_pause=0.01).reply("a")
    assert caught.value.silent


def test_pauses_between_tries_grow() -> None:
    times: list[float] = []

    def busy(request: dict[str, Any]) -> tuple[int, Any]:
        times.append(time.monotonic())
        return 503, {}

    with chat_server(busy) as server, pytest.raises(EndpointError):
        OpenAIChat(server.url, "m", retries=3, first_pause=0.05).reply("a")
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True))


@pytest.mark.parametrize(("status", "silent"), [
    (401, False), (403, False), (404, False), (400, True), (413, True), (422, True),
])  # fmt: skip
def test_a_refusal_is_not_asked_again_and_says_whether_it_is_one_of_this_request_alone(
    status: int, silent: bool
) -> None:
    with chat_server(lambda request: (status, {"error": "too long"})) as server:
        with pytest.raises(EndpointError, match=f"refuses: status {status}") as caught:
            OpenAIChat(server.url, "m", retries=5).reply("a")
        assert len(server.requests) == 1
    assert caught.value.silent == silent
