"""Guided rationales from a real HTTP server: the begun answer, exceptions, repetition, contradiction, resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.build_guard_data import GuardDataConfig
from rlhf.batch import Prompt
from rlhf.config import load
from rlhf.errors import ConfigError, EndpointError
from rlhf.guard.augment import Sample, augmented
from rlhf.guard.dataset import version
from rlhf.guard.guards import EndpointConfig
from rlhf.guard.rationales import RationaleConfig, clean, decoded, prefill, repetition, with_rationales
from rlhf.guard.taxonomy import taxonomy
from rlhf.inference import Decoding, source_and_row
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
        return (200, "A man hits another one hard.") if len(seen) == 1 else (401, "no such key")

    with chat_server(breaks) as server:
        settings = config(server)
        settings = settings.model_copy(update={"endpoint": settings.endpoint.model_copy(update={"concurrency": 1})})
        with pytest.raises(EndpointError, match="401"):
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


ENGINE = {"model": {"path": "./writer", "max_length": 2048}, "rollout": {"dtype": "float32"}}


def test_guard10_an_engine_goes_on_with_the_same_beginning_and_is_asked_again_for_what_is_refused(images: Path) -> None:
    samples = augmented(Sample("1", "a.png", "O2", "Highly Unsafe", "Unsafe"), version("v24").unsafe, DEFAULT.ids, 0)
    samples += [Sample("2", "b.png", "O2", "x", "Safe"), Sample("3", "gone.png", "O2", "x", "Safe")]
    good = 'Two men attack a third one with fists."\n}\nUSER: And "now"?'
    asked: list[tuple[Decoding, list[Prompt]]] = []

    def answer(prompts: Sequence[Prompt], decoding: Decoding) -> dict[str, str]:
        asked.append((decoding, list(prompts)))
        loops = "They fight. They fight."
        texts = {one.id: loops if one.image == f"{images}/b.png" and decoding.seed == 0 else good for one in prompts}
        return {one.id: texts[one.id] for one in prompts if one.image != f"{images}/gone.png"}

    settings = RationaleConfig(engine=ENGINE, tries=2)  # type: ignore[arg-type]
    with Ledger(images / "ledger", settings.made_by) as ledger:
        made, failed = with_rationales(samples, DEFAULT, images, settings, ledger, answer=answer)
        assert [(one.temperature, one.top_p, one.top_k, one.seed) for one, _ in asked] == [
            (0.2, 0.95, 50, s) for s in (0, 1)
        ]
        first, second = (prompts for _, prompts in asked)
        assert [Path(one.image or "").name for one in first] == ["a.png", "a.png", "b.png", "gone.png"]
        assert [one.id for one in second] == [one.id for one in first[2:]]
        assert [one.begun for one in first] == [prefill("Unsafe", O2), "", prefill("Safe", O2), prefill("Safe", O2)]
        assert [source_and_row(one.id)[0] for one in first] == ["rationales"] * 4
        assert [one.rationale for one in made][:4] == ["Two men attack a third one with fists."] * 4
        assert [one.id for one in made] == [one.id for one in samples[:-1]]
        assert failed == {"the engine could not be asked: see rejected.jsonl": 1}
        again, _ = with_rationales(samples[:-1], DEFAULT, images, settings, ledger, answer=answer)
        assert again == made
        assert len(asked) == 2  # nothing is asked twice
    with chat_server(reply) as server:  # an endpoint is asked in the same words
        with Ledger(images / "other", config(server).made_by) as ledger:
            with_rationales(samples[:1], DEFAULT, images, config(server), ledger)
        sent = server.requests[0]["messages"]
    assert sent[0]["content"][1]["text"] == first[0].question
    assert sent[1]["content"] == first[0].begun


def test_guard10_either_an_endpoint_or_an_engine_writes() -> None:
    endpoint = {"base_url": "http://127.0.0.1:9", "model": "m"}
    for keys in ({}, {"endpoint": endpoint, "engine": ENGINE}):
        with pytest.raises(ConfigError, match="either endpoint or engine"):
            RationaleConfig.model_validate(keys)
    with pytest.raises(ConfigError, match="leaves no room for a prompt in a context of 512"):
        RationaleConfig.model_validate({"engine": ENGINE | {"rollout": {"max_length": 512}}})
    path = Path(__file__).parents[3] / "jobs" / "configs" / "7b" / "guard_data.yaml"
    loaded = load(GuardDataConfig, path, ["rationales.endpoint=null", f"rationales.engine={json.dumps(ENGINE)}"])
    assert loaded.rationales is not None
    assert "./writer" in loaded.rationales.made_by["rationales"]


@pytest.mark.parametrize("reply", [(429, {}), (500, "busy"), (200, b"<html>"), (200, {"choices": []})])
def test_guard10_a_text_that_never_comes_is_counted_and_asked_for_again(images: Path, reply: tuple[int, Any]) -> None:
    samples = [Sample(str(number), f"{name}.png", "O2", "x", "Unsafe") for number, name in enumerate("ab")]
    samples.append(Sample("2", "a.png", "O2", "x", "Safe"))

    def deaf(request: dict[str, Any]) -> tuple[int, Any]:
        return reply if '"Safe"' in request["messages"][1]["content"] else (200, "A man hits another one hard.")

    heard: list[int] = []
    with chat_server(deaf) as server:
        settings = config(server)
        with Ledger(images / "ledger", settings.made_by) as ledger:
            made, failed = with_rationales(samples, DEFAULT, images, settings, ledger, heard.append)
    assert [one.id for one in made] == ["0", "1"]
    assert failed == {"the endpoint was silent": 1}
    assert heard == [1, 2, 3]
    with chat_server(lambda _: (200, "A man hits another one hard.")) as server:
        settings = config(server)
        with Ledger(images / "ledger", settings.made_by) as ledger:
            assert len(with_rationales(samples, DEFAULT, images, settings, ledger)[0]) == 3
        assert len(server.requests) == 1
    with chat_server(lambda _: reply) as server:
        settings = config(server)
        with Ledger(images / "other", settings.made_by) as ledger, pytest.raises(EndpointError, match="not answer"):
            with_rationales(samples, DEFAULT, images, settings, ledger)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dog. A cat. A dog.", "a dog."),
        ("A U.S. flag. It is a U.S. flag.", ""),
        ("U.S. troops march. U.S. flags hang.", ""),
        ("He greets Mr. Smith. She greets Mr. Smith. They do not fight.", ""),
        ("Under the U.S. flag he holds a gun. Under the U.S. flag a child sits.", ""),
        ("He sits in the U.S. He sits in the U.S. He sits.", "he sits in the u.s"),
        ("He holds a very long knife and he holds a very long rope", "he holds a very long"),
        ("A man holds a knife. A woman holds a rope.", ""),
        ("", ""),
    ],
)
def test_guard10_what_counts_as_repetition(text: str, found: str) -> None:
    assert repetition(text) == found


@pytest.mark.parametrize("text", ['A man.\nA "knife" {here}."\n}', "A man.\\nA knife here.", 'A man. A knife here."'])
def test_guard10_what_is_taken_out(text: str) -> None:
    assert clean(decoded(text)).replace(" .", ".") == "A man. A knife here."


@pytest.mark.parametrize("wanted", ["Das Café, voilà.", "A flag \U0001f3f4 of pirates.", "Half a path C:/x and a tab."])
def test_guard10_a_continued_string_is_read_as_json_says(wanted: str) -> None:
    """Python's own encoder is the independent side: in ASCII, every other character is an escape."""
    written = json.dumps(wanted.replace(" a tab", "\ta tab"), ensure_ascii=True)
    assert written.isascii()
    assert clean(decoded(written[1:])) == wanted


def test_guard10_neither_tags_nor_halves_of_characters_reach_a_target(images: Path) -> None:
    with chat_server(lambda _: (200, 'The <image> shows two men who fight.</s> \\ud83d"}')) as server:
        made, failed = ask([Sample("1", "a.png", "O2", "x", "Unsafe")], images, config(server))
    assert failed == {}
    assert made[0].rationale == "The image shows two men who fight. /s \ufffd"
