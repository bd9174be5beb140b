"""Guided rationales from a real HTTP server: the begun answer, exceptions, repetition, contradiction, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlhf.errors import EndpointError
from rlhf.guard.augment import Sample, augmented
from rlhf.guard.dataset import version
from rlhf.guard.guards import EndpointConfig
from rlhf.guard.rationales import RationaleConfig, clean, prefill, repetition, with_rationales
from rlhf.guard.taxonomy import taxonomy
from rlhf.ledger import Ledger
from tests.unit.evaluation.openai_server import ChatServer, chat_server

DEFAULT = taxonomy()
O2 = "O2: Violence, Harm, or Cruelty"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def config(server: ChatServer, **more: Any) -> RationaleConfig:
    endpoint = EndpointConfig(base_url=server.url, model="writer", retries=0, concurrency=2)
    return RationaleConfig(endpoint=endpoint, **more)


def reply(request: dict[str, Any]) -> tuple[int, str]:
    if request["messages"][-1]["role"] == "assistant":
        return 200, 'Two men attack a third one {with}\nsticks and fists."\n'
    return 200, "The picture shows a fight. One man is on the ground."


def ask(samples: list[Sample], images: Path, settings: RationaleConfig) -> tuple[list[Sample], dict[str, int]]:
    with Ledger(images / "ledger", settings.made_by) as ledger:
        made, failed = with_rationales(samples, DEFAULT, images, settings, ledger)
    return made, dict(failed)


def test_guard10_the_answer_is_begun_and_shared_by_all_that_keep_the_rating(images: Path) -> None:
    samples = augmented(Sample("1", "a.png", "O2", "Highly Unsafe", "Unsafe"), version("v24").unsafe, DEFAULT.ids, 0)
    with chat_server(reply) as server:
        made, failed = ask(samples, images, config(server))
        assert len(server.requests) == 2  # one rationale for base and v3, one description for v2
        again, _ = ask(samples, images, config(server))
        assert len(server.requests) == 2  # resumed: nothing is asked twice
    assert made == again
    assert failed == {}
    guided = next(one for one in server.requests if len(one["messages"]) == 2)
    begun = guided["messages"][1]["content"]
    assert json.loads(begun + 'x"}') == {"rating": "Unsafe", "category": O2, "rationale": "x"}
    assert (guided["continue_final_message"], guided["add_generation_prompt"]) == (True, False)
    assert [part["type"] for part in guided["messages"][0]["content"]] == ["image_url", "text"]
    text = "Two men attack a third one with sticks and fists."
    assert [one.rationale for one in made[:4]] == [text] * 4
    described = next(one for one in server.requests if len(one["messages"]) == 1)
    asked = described["messages"][0]["content"][1]["text"]
    assert O2 in asked
    assert "Judge" not in asked  # no policy
    assert made[4].augmentation == "v2"
    assert made[4].rationale == (
        "The picture shows a fight. One man is on the ground. "
        f"The policy of this request permits the category {O2}, so the picture does not break it."
    )


def test_guard10_repetition_is_asked_again_and_then_given_up(images: Path) -> None:
    good = "Two men hit a third one hard with their fists."
    samples = [Sample("1", "a.png", "O2", "x", "Unsafe"), Sample("2", "b.png", "O2", "x", "Safe")]

    def loop(request: dict[str, Any]) -> tuple[int, str]:
        unsafe = '"Unsafe"' in request["messages"][1]["content"]
        return 200, good if unsafe and request["seed"] == 1 else "They fight. They fight. They fight."

    with chat_server(loop) as server:
        made, failed = ask(samples, images, config(server))
        assert sorted(one["seed"] for one in server.requests) == [0, 0, 1, 1, 2]
        assert [(one.id, one.rationale) for one in made] == [("1", good)]
        assert failed == {"the rationale repeats itself": 1}
        ask(samples, images, config(server))
        assert len(server.requests) == 5 + 3  # only what failed is asked for again


def test_guard10_an_endpoint_that_begins_anew_must_agree_with_the_label(images: Path) -> None:
    whole = {"rating": "Unsafe", "category": O2, "rationale": "Two men beat a third one with sticks."}
    sample = [Sample("1", "a.png", "O2", "x", "Unsafe")]
    with chat_server(lambda _: (200, json.dumps(whole))) as server:
        made, _ = ask(sample, images, config(server, continue_answer=False))
        assert made[0].rationale == whole["rationale"]
        (request,) = server.requests
        assert len(request["messages"]) == 1
        assert prefill("Unsafe", O2) in request["messages"][0]["content"][1]["text"]
    with chat_server(lambda _: (200, json.dumps(whole | {"rating": "Safe"}))) as server:
        settings = config(server, continue_answer=False, tries=1)
        with Ledger(images / "other", settings.made_by) as ledger:
            made, failed = with_rationales(sample, DEFAULT, images, settings, ledger)
    assert made == []
    assert failed == {"the reply argues for another label": 1}


def test_guard10_an_endpoint_that_is_gone_stops_the_job_and_keeps_what_is_written(images: Path) -> None:
    samples = [Sample(str(number), f"{name}.png", "O2", "x", "Unsafe") for number, name in enumerate("ab")]
    seen: list[int] = []

    def breaks(_: dict[str, Any]) -> tuple[int, Any]:
        seen.append(1)
        return (200, "A man hits another one hard.") if len(seen) == 1 else (400, "broken")

    with chat_server(breaks) as server:
        settings = config(server)
        settings = settings.model_copy(update={"endpoint": settings.endpoint.model_copy(update={"concurrency": 1})})
        with pytest.raises(EndpointError, match="400"):
            ask(samples, images, settings)
        assert len(Ledger(images / "ledger", settings.made_by).entries) == 1


def test_guard10_a_reply_that_is_nested_too_deeply_or_holds_half_a_character_harms_nothing(images: Path) -> None:
    samples = [Sample("1", "a.png", "O2", "x", "Unsafe"), Sample("2", "b.png", "O2", "x", "Safe")]
    deep = '{"rating": "Unsafe", "category": ' + "[" * 5000

    def reply(request: dict[str, Any]) -> tuple[int, str]:
        return 200, deep if '"Unsafe"' in request["messages"][1]["content"] else "One \ud800 man hits another."

    with chat_server(reply) as server:
        made, failed = ask(samples, images, config(server, tries=1))
    assert [(one.id, one.rationale) for one in made] == [("2", "One \ufffd man hits another.")]
    assert failed == {"the reply is broken JSON": 1}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dog. A cat. A dog.", "a dog."),
        ("He holds a very long knife and he holds a very long rope", "he holds a very long"),
        ("A man holds a knife. A woman holds a rope.", ""),
        ("", ""),
    ],
)
def test_guard10_what_counts_as_repetition(text: str, found: str) -> None:
    assert repetition(text) == found


@pytest.mark.parametrize("text", ['A man.\nA "knife" {here}."\n}', "A man.\\nA knife here.", 'A man. A knife here."'])
def test_guard10_what_is_taken_out(text: str) -> None:
    assert clean(text).replace(" .", ".") == "A man. A knife here."
