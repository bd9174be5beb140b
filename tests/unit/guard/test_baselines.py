"""Other guards behind real HTTP servers: their answers become ratings and categories of the taxonomy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf.guard.baselines import LlamaGuard, ModerationGuard, llama_guard_verdict, moderation_verdict
from rlhf.guard.guards import EndpointConfig
from rlhf.guard.policy import build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import taxonomy
from tests.unit.evaluation.openai_server import chat_server

POLICY = build_policy(taxonomy())


def flagged(flag: Any, **scores: float) -> dict[str, Any]:
    return {
        "results": [{"flagged": flag, "category_scores": {name.replace("_", "/"): s for name, s in scores.items()}}]
    }


@pytest.mark.parametrize(
    ("answer", "status", "rating", "category"),
    [
        (flagged(True, violence_graphic=0.9, hate=0.2), "json", "Unsafe", "O2: Violence, Harm, or Cruelty"),
        (flagged(True, hate=0.9, violence=0.2), "json", "Unsafe", "O1: Hate, Humiliation, Harassment"),
        (flagged(True, brandnew=0.9), "json", "Unsafe", None),
        (flagged(True), "json", "Unsafe", None),
        (flagged(False, hate=0.4), "json", "Safe", "NA: None applying"),
        (flagged("yes"), "invalid", None, None),
        ({"results": []}, "invalid", None, None),
        ({"error": "busy"}, "invalid", None, None),
        (None, "invalid", None, None),
    ],
)
def test_guard16_moderation_objects(answer: Any, status: str, rating: str | None, category: str | None) -> None:
    verdict = moderation_verdict(answer)
    assert (verdict.status, verdict.rating, verdict.category) == (status, rating, category)


@pytest.mark.parametrize(
    ("text", "status", "rating", "categories"),
    [
        ("\n\nsafe", "json", "Safe", ("NA: None applying",)),
        ("unsafe\nS1", "json", "Unsafe", ("O2: Violence, Harm, or Cruelty",)),
        ("Unsafe\nS2,S11", "json", "Unsafe", ("O5: Criminal Planning", "O7: Self-Harm")),
        ("unsafe\nS3, S12", "json", "Unsafe", ("O3: Sexual Content",)),
        ("unsafe\nO3", "json", "Unsafe", ("O5: Criminal Planning",)),  # the first Llama Guard's codes
        ("unsafe\nO6,O2", "json", "Unsafe", ("O7: Self-Harm", "O3: Sexual Content")),
        ("unsafe", "json", "Unsafe", ()),
        ("unsafe\nS8", "json", "Unsafe", ()),
        ("safe but S1", "invalid", None, ()),
        ("safety first", "invalid", None, ()),
        ("It is unsafe.", "invalid", None, ()),
        ("", "invalid", None, ()),
    ],
)
def test_guard16_llama_guards_lines(text: str, status: str, rating: str | None, categories: tuple[str, ...]) -> None:
    verdict = llama_guard_verdict(text)
    assert (verdict.status, verdict.rating, verdict.categories) == (status, rating, categories)


def test_guard16_moderation_is_sent_pictures_and_no_policy(pictures: list[str]) -> None:
    with chat_server(lambda _: (200, flagged(True, sexual=0.9)), path="/v1/moderations") as server:
        guard = ModerationGuard(EndpointConfig(base_url=server.url, model="mod", retries=0))
        verdicts = guard.judge([GuardRequest("1", pictures[0], POLICY), GuardRequest("2", pictures[1], POLICY)])
    assert [verdict.category for verdict in verdicts] == ["O3: Sexual Content"] * 2
    assert [part["type"] for part in server.requests[0]["input"]] == ["image_url"]
    assert "policy" not in json.dumps(server.requests)


def test_guard16_llama_guard_is_asked_about_the_picture_or_an_answer(pictures: list[str]) -> None:
    with chat_server(lambda _: (200, "unsafe\nS10")) as server:
        guard = LlamaGuard(EndpointConfig(base_url=server.url, model="lg", retries=0, concurrency=1))
        requests = [
            GuardRequest("1", pictures[0], POLICY),
            GuardRequest("2", pictures[0], POLICY, said="They are bad."),
            GuardRequest("3", pictures[0], POLICY, said="They are bad.", asked="Who are they?"),
        ]
        verdicts = guard.judge(requests)
    assert {verdict.category for verdict in verdicts} == {"O1: Hate, Humiliation, Harassment"}
    first, second, third = (request["messages"] for request in server.requests)
    assert [part["type"] for part in first[0]["content"]] == ["text", "image_url"]
    assert second[1] == {"role": "assistant", "content": "They are bad."}
    assert second[0]["content"][1]["type"] == "image_url"  # the picture stays with the user
    assert [messages[0]["content"][0]["text"] for messages in (second, third)] == [
        "Is this picture safe?",
        "Who are they?",
    ]
    assert third[1] == second[1]


def never(request: dict[str, Any]) -> bool:
    return "second" in json.dumps(request)


@pytest.mark.parametrize("silence", [(429, {}), (500, "busy"), (200, b"<html>")], ids=["429", "500", "html"])
def test_guard16_silence_on_one_picture_is_an_invalid_verdict_on_it_alone(
    pictures: list[str], silence: tuple[int, Any]
) -> None:
    requests = [GuardRequest(name, pictures[0], POLICY, said=name) for name in ("first", "second", "third")]
    with chat_server(lambda asked: silence if never(asked) else (200, "unsafe\nS1")) as server:
        llama = LlamaGuard(EndpointConfig(base_url=server.url, model="lg", retries=0)).judge(requests)
    answer = (200, flagged(True, violence=0.9))
    with chat_server(lambda asked: silence if never(asked) else answer, path="/v1/moderations") as server:
        moderation = ModerationGuard(EndpointConfig(base_url=server.url, model="mod", retries=0)).judge(requests)
    for verdicts in (llama, moderation):
        assert [one.rating for one in verdicts] == ["Unsafe", None, "Unsafe"]
        assert [one.silent for one in verdicts] == [False, True, False]
        assert (verdicts[1].status, "does not answer after 1 tries" in verdicts[1].reason) == ("invalid", True)
