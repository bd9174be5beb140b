"""The chat endpoint: the answers and prompts of evaluation, the refusal flag, and what is refused with which words."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.serving.chat import ChatBody
from rlhf.serving.uploads import UploadProcessor
from tests.fakes import tiny_model
from tests.unit.serving.asking import NAME, Server, data_uri, refusal_of, settings, texts

CHAT = {"kind": "chat", "sampling": {"max_new_tokens": 12}}


def image_part(uri: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri}}


def body(question: str, image: str | None = None, **others: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": question}, *([image_part(image)] if image else [])]
    return {"model": NAME, "messages": [{"role": "user", "content": parts}], **others}


@pytest.mark.parametrize(("kind", "temperature"), [("llava", 0.0), ("llava_onevision", 1.0)])
def test_vlguard17_the_server_gives_the_engines_own_answers_to_evaluations_own_prompts(
    kind: Any, temperature: float, tmp_path: Path, pictures: list[str]
) -> None:
    """Prompts that name files, asked one by one without a server, against uploads that come together; also drawn."""
    model = tiny_model(tmp_path / "model", kind=kind)
    server = Server.of(settings(model, CHAT))
    prompts = [Prompt("seed:3", f"What is it? ({place})", path) for place, path in enumerate(pictures)]
    prompts.append(Prompt("seed:3", "Say something."))
    prompts.append(Prompt("seed:3", "And now?", pictures[1], history=(("What colour?", "Red."), ("Sure?", "Yes."))))
    drawn = {"temperature": temperature, "seed": 3}
    bodies = [body(one.question, data_uri(one.image) if one.image else None, **drawn) for one in prompts]
    bodies[-1]["messages"] = [
        {"role": "user", "content": [image_part(data_uri(pictures[1])), {"type": "text", "text": "What colour?"}]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": "And now?"},
    ]
    answers = server.post(*bodies)
    processor = Processor.load(server.config.model)
    direct = build_engine(
        server.config.model, RolloutConfig(engine="transformers", dtype="float32", max_length=512), processor
    )
    sampling = Sampling(max_new_tokens=12, temperature=temperature)
    for prompt, answer in zip(prompts, answers, strict=True):
        (expected,) = direct.generate([prompt], sampling)
        content = answer.json()
        (choice,) = content["choices"]
        assert choice["message"]["content"] == expected.text
        assert choice["finish_reason"] == expected.finish_reason
        tokens = len(processor.prompt_ids(prompt))
        assert content["usage"] == {
            "prompt_tokens": tokens,
            "completion_tokens": len(expected.token_ids),
            "total_tokens": tokens + len(expected.token_ids),
        }


@pytest.mark.parametrize("kind", ["llava", "llava_onevision"])
def test_vlguard17_a_model_sees_an_upload_as_it_sees_a_file(kind: Any, tmp_path: Path, pictures: list[str]) -> None:
    """To the last bit, padding and crops included: random models hardly tell pictures apart, their inputs do."""
    model = tiny_model(tmp_path / "model", kind=kind)
    files, uploads = Processor.load(model), UploadProcessor.load(model)
    for path in pictures:
        upload = uploads.hold(Path(path).read_bytes(), 4096)
        expected, found = files.model_inputs(path), uploads.model_inputs(upload.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        asked = [Prompt("", "Who?", image) for image in (path, upload.name)]
        assert files.prompt_ids(asked[0]) == uploads.prompt_ids(asked[1])


@pytest.mark.parametrize(
    ("says", "rules", "keywords"),
    [
        ("A red ball.", False, False),
        ("I cannot help with that.", True, True),
        ("I\u2019m sorry, but no.", True, False),  # the published list knows straight apostrophes only
        ("You may legally park there.", False, True),  # and takes this for a refusal
    ],
)
def test_vlguard17_the_refusal_flag_is_that_of_the_evaluations_rule(
    tiny: ModelConfig, says: str, rules: bool, keywords: bool
) -> None:
    flags = {}
    for rule in ("rules", "keywords"):
        (answer,) = Server.of(settings(tiny, {**CHAT, "refusal": rule}), lambda prompt: says).post(body("?"))
        content = answer.json()
        flags[rule] = content["safevl"]["refused"]
        assert content["safevl"]["rule"].startswith(rule)
        assert content["choices"][0]["message"] == {"role": "assistant", "content": says, "refusal": None}
    assert flags == {"rules": rules, "keywords": keywords}


def test_vlguard17_the_answer_has_openais_shape(tiny: ModelConfig) -> None:
    server = Server.of(settings(tiny, CHAT), lambda prompt: "Yes.")
    first, second = (answer.json() for answer in server.post(body("One?"), body("Two?")))
    assert set(first) == {"id", "object", "created", "model", "choices", "usage", "safevl"}
    assert (first["object"], first["model"]) == ("chat.completion", NAME)
    assert first["id"].startswith("chatcmpl-")
    assert first["id"] != second["id"]
    assert first["safevl"]["seconds"] > 0
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == (NAME, "model")
    assert server.get("/health").json() == {"status": "ok", "model": NAME, "pending": 0}


def test_a_request_says_how_its_answer_is_drawn(tiny: ModelConfig) -> None:
    server = Server.of(settings(tiny, CHAT), lambda prompt: "Yes.")
    asked = [
        body("default"),
        body("short", max_tokens=3),
        body("newer name", max_completion_tokens=3),
        body("hot", temperature=0.5, top_p=0.9),
    ]
    assert [answer.status_code for answer in server.post(*asked)] == [200] * 4
    used = {prompt.question: sampling for prompts, sampling in server.engine.batches for prompt in prompts}
    assert (used["default"].max_new_tokens, used["default"].temperature) == (12, 0)
    assert used["short"].max_new_tokens == used["newer name"].max_new_tokens == 3
    assert (used["hot"].temperature, used["hot"].top_p, used["hot"].max_new_tokens) == (0.5, 0.9, 12)


def test_a_seed_repeats_an_answer_and_its_absence_does_not(tiny: ModelConfig) -> None:
    server = Server.of(settings(tiny, CHAT))
    hot = {"temperature": 1.5, "max_tokens": 12}
    answers = server.post(*[body("Say it.", **hot, seed=seed) for seed in (5, 5, 6)], *[body("Say it.", **hot)] * 4)
    said = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert said[0] == said[1] != said[2]
    assert len(set(said[3:])) > 1


def picture(width: int, height: int, kind: str = "PNG") -> str:
    content = io.BytesIO()
    Image.effect_noise((width, height), 50).save(content, format=kind)
    return base64.b64encode(content.getvalue()).decode()


def two_turns(last: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": last}]
    return {"messages": turns}


TRUNCATED = picture(40, 40)[:800]
TIFF = picture(4, 4, "TIFF")
REFUSED: dict[str, tuple[dict[str, Any] | bytes, int, str, str]] = {
    "an address": (body("?", "https://example.org/a.png"), 400, "invalid_image", "never fetched"),
    "a path": (body("?", "file:///etc/passwd"), 400, "invalid_image", "never fetched"),
    "not base64": (body("?", "data:image/png;base64,a b"), 400, "invalid_image", "not base64"),
    "not an image's head": (body("?", "data:text/html;base64,aaaa"), 400, "invalid_image", "no head of an image"),
    "not an image": (body("?", "data:image/png;base64,aGVsbG8="), 400, "invalid_image", "not an image"),
    "an empty image": (body("?", "data:image/png;base64,"), 400, "invalid_image", "empty"),
    "a cut image": (body("?", f"data:image/png;base64,{TRUNCATED}"), 400, "invalid_image", "truncated"),
    "a rare format": (body("?", f"data:image/tiff;base64,{TIFF}"), 400, "invalid_image", "not an image of JPEG"),
    "a long line": (body("?", picture(4097, 1)), 400, "invalid_image", "longer than 4096 pixels"),
    "another model": (body("?", model="gpt-4"), 404, "model_not_found", NAME),
    "no model": ({"messages": [{"role": "user", "content": "?"}]}, 400, "invalid_request", "model: Field required"),
    "an unknown key": (body("?", tools=[]), 400, "invalid_request", "tools: not supported here; known are model,"),
    "several answers": (body("?", n=2), 400, "invalid_request", "n: "),
    "a stream": (body("?", stream=True), 400, "invalid_request", "stream: "),
    "too hot": (body("?", temperature=2.5), 400, "invalid_request", "temperature: "),
    "a number as text": (body("?", max_tokens="5"), 400, "invalid_request", "max_tokens: "),
    "two budgets": (body("?", max_tokens=5, max_completion_tokens=5), 400, "invalid_request", "the same"),
    "too many tokens": (body("?", max_tokens=5000), 400, "context_length_exceeded", "prompt tokens"),
    "a long prompt": (body("word " * 600), 400, "context_length_exceeded", "prompt tokens"),
    "a reserved token": (body("Look: <image>"), 400, "invalid_request", "reserved token '<image>'"),
    "an end of turn": (body("a</s>b"), 400, "invalid_request", "reserved token '</s>'"),
    "no words": (body(" "), 400, "invalid_request", "messages.0: there is no text"),
    "no messages": ({"model": NAME, "messages": []}, 400, "invalid_request", "messages: "),
    "a system prompt": (
        {"model": NAME, "messages": [{"role": "system", "content": "Be kind."}]},
        400,
        "invalid_request",
        "own system prompt",
    ),
    "an answer last": ({"model": NAME, "messages": two_turns("c")["messages"][:2]}, 400, "invalid_request", "the last"),
    "two in a row": ({"model": NAME, "messages": [two_turns("c")["messages"][0]] * 2}, 400, "invalid_request", "turn"),
    "a late image": (
        {"model": NAME, **two_turns([{"type": "text", "text": "c"}, image_part("data:image/png;base64,aaaa")])},
        400,
        "invalid_request",
        "messages.2: an image belongs to the first message",
    ),
    "two images": (
        {
            "model": NAME,
            "messages": [{"role": "user", "content": [*[image_part("x")] * 2, {"type": "text", "text": "c"}]}],
        },
        400,
        "invalid_request",
        "2 images; the model sees one",
    ),
    "no JSON": (b"{", 400, "invalid_request", "Invalid JSON"),
    "nothing": (b"", 400, "invalid_request", "Invalid JSON"),
    "a list": (b"[]", 400, "invalid_request", "body: "),
    "half a character": (b'{"model": "\\ud800"}', 400, "invalid_request", "Invalid JSON"),
    "no text at all": (b"\xff\xfe\x00", 400, "invalid_request", "Invalid JSON"),
    "too deep": (b"[" * 100_000, 400, "invalid_request", "Invalid JSON"),
}


@pytest.fixture(scope="module")
def silent(tiny: ModelConfig) -> Server:
    return Server.of(settings(tiny, CHAT), lambda prompt: "Yes.")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused_with_its_reason_before_the_engine(silent: Server, name: str) -> None:
    sent, status, code, words = REFUSED[name]
    (answer,) = silent.post(sent)
    error = refusal_of(answer)
    assert (answer.status_code, error["code"]) == (status, code), error
    assert words in error["message"]
    assert len(error["message"]) < 500  # a megabyte is not sent back
    assert texts(silent.engine) == []


def test_every_field_that_is_known_is_accepted_as_openais_clients_send_it(silent: Server) -> None:
    every = body("fine", n=1, stream=False, user="me", seed=1, temperature=0, top_p=1, max_tokens=4)
    every["messages"][0]["content"] += [{"type": "text", "text": "and more"}]
    assert set(every) | {"max_completion_tokens"} == set(ChatBody.model_fields)
    (answer,) = silent.post(every)
    assert answer.status_code == 200, json.dumps(answer.json())
    assert texts(silent.engine)[-1] == ["fine\nand more"]
    silent.engine.batches.clear()
