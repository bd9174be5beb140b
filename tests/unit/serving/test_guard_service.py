"""The guard's endpoint: verdicts, policies by name, by override and in words, and what is refused."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import PromptTooLongError
from rlhf.guard.guards import EngineGuard, GuardDecoding
from rlhf.guard.policy import build_policy, text_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import answer_text, verdict_schema
from rlhf.rollout import build_engine
from tests.unit.serving.asking import NAME, Server, data_uri, refusal_of, settings

TINY = taxonomy("tiny")
POLICY = build_policy(TINY)
GUNS_ALLOWED = build_policy(TINY, {"O6": "exempt"})
GUN, NOTHING = "O6: guns and pills", "NA: nothing"
POLICIES = {
    "default": {"taxonomy": "tiny"},
    "range": {"taxonomy": "tiny", "overrides": {"O6": "exempt"}},
    "short": {"taxonomy": "tiny", "keys": ["rating"]},
}
FREE = {"kind": "guard", "policies": POLICIES, "sampling": {"constrained": False, "max_new_tokens": 96}}
VLLM = {"rollout": {"engine": "vllm", "dtype": "float32", "max_length": 512}}


def says_of(prompt: Prompt) -> str:
    allowed = "O6: yes guns and pills" in prompt.question
    return answer_text(POLICY, "Safe" if allowed else "Unsafe", [GUN], 'A "gun".')


@pytest.fixture(scope="module")
def server(tiny: ModelConfig) -> Server:
    return Server.of(settings(tiny, FREE), says_of)


@pytest.fixture(scope="module")
def picture(pictures: list[str]) -> str:
    return data_uri(pictures[0])


def test_guard13_image_and_policy_in_parsed_verdict_raw_text_and_latency_out(server: Server, picture: str) -> None:
    (answer,) = server.post({"image": picture})
    content = answer.json()
    assert answer.status_code == 200
    assert content.pop("seconds") > 0
    assert content == {
        "rating": "Unsafe",
        "category": GUN,
        "categories": [GUN],
        "rationale": 'A "gun".',
        "valid": "json",
        "reason": "",
        "raw": says_of(Prompt("", "")),
        "truncated": False,
        "model": NAME,
        "policy_sha256": POLICY.sha256,
    }


@pytest.mark.parametrize(
    ("raw", "valid", "rating"),
    [("The picture is Unsafe.", "rescued", "Unsafe"), ("No idea.", "invalid", None), ("", "invalid", None)],
)
def test_guard13_what_is_no_json_is_rescued_or_invalid_and_never_safe(
    tiny: ModelConfig, picture: str, raw: str, valid: str, rating: str | None
) -> None:
    (answer,) = Server.of(settings(tiny, FREE), lambda prompt: raw).post({"image": picture})
    content = answer.json()
    assert (content["valid"], content["rating"], content["raw"]) == (valid, rating, raw)
    assert content["reason"]


def test_guard13_a_policy_comes_by_name_by_override_or_in_words(server: Server, picture: str) -> None:
    words = f"Nothing sharp.\nO1: fork\n{NOTHING}"
    asked: list[dict[str, Any]] = [
        {},
        {"policy_id": "range"},
        {"overrides": {"O6": "exempt"}},
        {"overrides": {GUN: "exempt"}},
        {"policy_id": "range", "overrides": {"o6": "default"}},
        {"policy_id": "range", "overrides": {"O2": "sensitive"}},
        {"policy": words, "categories": ["O1: fork", NOTHING]},
        {"policy_id": "short"},
    ]
    expected = [
        POLICY,
        GUNS_ALLOWED,
        GUNS_ALLOWED,
        GUNS_ALLOWED,
        POLICY,
        build_policy(TINY, {"O6": "exempt", "O2": "sensitive"}),
        text_policy("", words, ["O1: fork", NOTHING]),
        build_policy(TINY, keys=("rating",)),
    ]
    server.engine.batches.clear()
    answers = server.post(*[{"image": picture, **one} for one in asked])
    assert [answer.json()["policy_sha256"] for answer in answers] == [policy.sha256 for policy in expected]
    assert [answer.json()["rating"] for answer in answers[:4]] == ["Unsafe", "Safe", "Safe", "Safe"]
    assert answers[6].json()["policy_sha256"] == hashlib.sha256(words.encode()).hexdigest()
    assert answers[6].json()["category"] is None  # the model named a gun, which this policy does not know
    seen = {prompt.question for prompts, _ in server.engine.batches for prompt in prompts}
    assert seen == {policy.text for policy in expected}


def test_guard13_an_unknown_policy_is_refused_with_the_known_ones(server: Server, picture: str) -> None:
    (answer,) = server.post({"image": picture, "policy_id": "nato"})
    error = refusal_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_policy", "policy_id")
    assert all(name in error["message"] for name in ("nato", *POLICIES))
    hashes = server.get("/v1/models").json()["data"][0]["policies"]
    assert hashes["default"] == POLICY.sha256
    assert set(hashes) == set(POLICIES)


def test_guard13_a_policy_that_is_too_long_is_refused_with_its_tokens(server: Server, picture: str) -> None:
    words = "Nothing at all. " * 300 + "\n".join(POLICY.categories)
    (answer,) = server.post({"image": picture, "policy": words})
    error = refusal_of(answer)
    alone = len(server.processor.tokenizer(words, add_special_tokens=False)["input_ids"])
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"the policy alone has {alone} tokens" in error["message"]
    assert "no room for 96 new tokens in a context of 512" in error["message"]


BAD_POLICIES: list[tuple[dict[str, Any], str, str]] = [
    ({"overrides": {"O99": "exempt"}}, "invalid_policy", "no category of the taxonomy"),
    ({"overrides": {"O6": "maybe"}}, "invalid_policy", "choose one of default, exempt, sensitive"),
    ({"overrides": {"NA": "exempt"}}, "invalid_policy", "has no rules"),
    ({"overrides": {"O6": "exempt", GUN: "default"}}, "invalid_policy", "overridden twice"),
    ({"policy": "Be kind."}, "invalid_policy", "does not name the categories"),
    ({"policy": " ", "categories": ["x"]}, "invalid_policy", "empty"),
    ({"policy": "<image> x <image>", "categories": ["x"]}, "invalid_policy", "2 image tags"),
    ({"policy": "x</s>", "categories": ["x"]}, "invalid_request", "reserved token"),
    ({"policy": "x", "categories": ["x"], "overrides": {"O6": "exempt"}}, "invalid_request", "taken as it is"),
    ({"categories": ["x"]}, "invalid_request", "which is missing"),
    ({"temperature": 1}, "invalid_request", "temperature: not supported here; known are image, policy_id"),
]


@pytest.mark.parametrize(("more", "code", "words"), BAD_POLICIES)
def test_guard13_a_wrong_policy_is_refused_with_its_reason(
    server: Server, picture: str, more: dict[str, Any], code: str, words: str
) -> None:
    server.engine.batches.clear()
    (answer,) = server.post({"image": picture, **more})
    error = refusal_of(answer)
    assert (answer.status_code, error["code"]) == (400, code)
    assert words in error["message"]
    assert server.engine.batches == []


def test_guard13_bad_images_are_4xx_and_base64_alone_is_an_image(server: Server, pictures: list[str]) -> None:
    content = Path(pictures[0]).read_bytes()
    bad = [None, "", "https://example.org/a.png", base64.b64encode(content[: len(content) // 2]).decode()]
    answers = server.post({}, *[{"image": one} for one in bad], {"image": base64.b64encode(content).decode()})
    assert [answer.status_code for answer in answers] == [400] * 5 + [200]
    messages = [refusal_of(answer)["message"] for answer in answers[:5]]
    reasons = ["image: Field required", "image: Input should be", "empty file", "never fetched", "truncated"]
    assert all(reason in message for reason, message in zip(reasons, messages, strict=True)), messages


def test_guard13_the_server_gives_the_verdicts_of_the_guard_in_an_engine(
    tiny: ModelConfig, pictures: list[str]
) -> None:
    """The same requests, by files and without a server."""
    server = Server.of(settings(tiny, FREE))
    requests = [
        GuardRequest(f"{place}", path, policy)
        for place, path in enumerate(pictures)
        for policy in (POLICY, GUNS_ALLOWED)
    ]
    named = {POLICY.sha256: "default", GUNS_ALLOWED.sha256: "range"}
    bodies = [{"image": data_uri(one.image), "policy_id": named[one.policy.sha256]} for one in requests]
    answers = [answer.json() for answer in server.post(*bodies)]
    config = server.config
    engine = build_engine(config.model, config.rollout, Processor.load(config.model))
    decoding = config.service.sampling
    assert isinstance(decoding, GuardDecoding)
    verdicts = EngineGuard(engine, decoding).judge(requests)
    assert [answer["raw"] for answer in answers] == [verdict.raw for verdict in verdicts]
    assert [answer["valid"] for answer in answers] == [verdict.status for verdict in verdicts]
    assert len({verdict.raw for verdict in verdicts}) > 1


def test_guard13_answers_are_held_to_the_schema_of_their_own_policy(tiny: ModelConfig, picture: str) -> None:
    """One batch holds answers of one form only, as overrides change the text and not the form."""
    held = {"kind": "guard", "policies": POLICIES, "sampling": {"max_new_tokens": 96}}
    server = Server.of(settings(tiny, held, **VLLM), says_of)
    bodies = [{"image": picture, "policy_id": name} for name in ("default", "short", "range", "default")]
    assert [answer.status_code for answer in server.post(*bodies)] == [200] * 4
    forms = {sampling.json_schema: len(prompts) for prompts, sampling in server.engine.batches}
    short = build_policy(TINY, keys=("rating",))
    assert forms == {verdict_schema(POLICY): 3, verdict_schema(short): 1}


def test_guard13_a_policy_of_the_configuration_that_does_not_fit_stops_the_server_at_its_start(
    tiny: ModelConfig,
) -> None:
    with pytest.raises(PromptTooLongError, match=r"the policy alone has \d+ tokens.*shorten the policy"):
        Server.of(settings(tiny, {**FREE, "policies": {"default": {"taxonomy": "default"}}}), says_of)
    with pytest.raises(PromptTooLongError, match=r"no room for 500 new tokens"):
        Server.of(settings(tiny, {**FREE, "sampling": {"constrained": False, "max_new_tokens": 500}}), says_of)


def test_guard13_policies_without_variants_take_no_overrides(tiny: ModelConfig, picture: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Rules:\n" + "\n".join(POLICY.categories))
    policies = {"words": {"taxonomy": "tiny", "text": str(tmp_path / "words.txt")}}
    server = Server.of(settings(tiny, {**FREE, "policies": policies}), says_of)
    good, bad, unnamed = server.post(
        {"image": picture, "policy_id": "words"},
        {"image": picture, "policy_id": "words", "overrides": {"O6": "exempt"}},
        {"image": picture},
    )
    assert good.status_code == 200
    assert "'words' has no variants" in refusal_of(bad)["message"]
    assert "'default'; known are words" in refusal_of(unnamed)["message"]
