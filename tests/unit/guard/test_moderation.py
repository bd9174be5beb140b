"""Moderation: what blocks, how often is drawn, what a killed run does not ask again, and the statistics."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs.moderate_images import ModerateConfig, build_judge, run
from rlhf.config import ModelConfig, load
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, EndpointError, PromptTooLongError
from rlhf.guard.generators import Drawn, FolderConfig, ImagesEndpointConfig, Wanted
from rlhf.guard.moderation import moderate, read_wanted, statistics
from rlhf.guard.policy import Policy, build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import Verdict, answer_text, parse_verdict
from tests.fakes import draw_images
from tests.unit.evaluation.openai_server import chat_server

POLICY = build_policy(taxonomy("tiny"))
GUN, NOTHING = "O6: guns and pills", "NA: nothing"
SAFE = answer_text(POLICY, "Safe", [NOTHING], "A ball.")
UNSAFE = answer_text(POLICY, "Unsafe", [GUN], "A gun.")
WANTED = [Wanted("good", "a ball", "toys"), Wanted("bad", "a gun", "weapons"), Wanted("gone", "?", "weapons")]


class Pictures:
    """A generator that never draws `gone`."""

    def __init__(self, tries: bool = True) -> None:
        self.tries, self.asked = tries, list[list[str]]()

    def draw(self, wanted: Sequence[Wanted], attempt: int) -> list[Drawn]:
        self.asked.append([one.id for one in wanted])
        return [Drawn(None, "no") if one.id == "gone" else Drawn(f"/{one.id}-{attempt}.png") for one in wanted]


def judge(says: Mapping[str, str]) -> Any:
    def verdicts(requests: Sequence[GuardRequest], attempt: int) -> dict[str, Verdict]:
        return {one.id: parse_verdict(says[one.image], POLICY) for one in requests if one.image in says}

    return verdicts


def test_guard17_only_what_was_read_as_safe_passes_and_tries_are_bounded() -> None:
    pictures = Pictures()
    says = {"/good-0.png": SAFE, "/bad-0.png": UNSAFE, "/bad-1.png": "neither", "/bad-2.png": UNSAFE}
    heard: list[int] = []
    made = moderate(WANTED, POLICY, pictures, judge(says), 3, lambda found: heard.append(len(found)))
    assert pictures.asked == [["good", "bad", "gone"], ["bad", "gone"], ["bad", "gone"]]
    assert heard == [3, 3, 3]
    lines = [one.line() for one in made]
    assert [(line["decision"], line["tries"]) for line in lines] == [("allow", 1), ("block", 3), ("block", 3)]
    assert lines[1]["blocked_before"][0] == f"Unsafe: {GUN}"
    assert lines[1]["blocked_before"][1].startswith("invalid verdict: ")
    assert lines[2]["reason"] == "no picture: no"
    json.dumps(lines)


def test_guard17_another_picture_may_pass_and_a_folder_has_no_other() -> None:
    says = {"/good-0.png": SAFE, "/bad-0.png": UNSAFE, "/bad-1.png": SAFE}
    assert [one.allowed for one in moderate(WANTED, POLICY, Pictures(), judge(says), 2)] == [True, True, False]
    once = Pictures(tries=False)
    assert [one.allowed for one in moderate(WANTED, POLICY, once, judge(says), 5)] == [True, False, False]
    assert len(once.asked) == 1
    (lost,) = moderate(WANTED[:1], POLICY, Pictures(), judge({}), 1)
    assert (lost.allowed, lost.tries[-1].reason) == (False, "no verdict: see rejected.jsonl")


def test_guard17_statistics_count_prompts_by_their_category_and_pictures_by_the_verdicts() -> None:
    says = {"/good-0.png": SAFE, "/bad-0.png": UNSAFE, "/bad-1.png": answer_text(POLICY, "Safe", [GUN], "Two guns.")}
    found = statistics(moderate(WANTED, POLICY, Pictures(), judge(says), 2))
    assert (found["prompts"]["count"], found["prompts"]["blocked"], found["first_try"]["blocked"]) == (3, 1, 2)
    pictures = found["pictures"]
    assert (pictures["count"], pictures["not_drawn"], pictures["unsafe"], pictures["invalid"]) == (3, 2, 1, 0)
    weapons = found["prompt_categories"]["weapons"]
    assert (weapons["prompts"], weapons["blocked"], weapons["share"]) == (2, 1, 0.5)
    assert weapons["interval"][0] < 0.5 < weapons["interval"][1]
    assert found["verdict_categories"] == {GUN: {**found["verdict_categories"][GUN], "pictures": 2, "unsafe": 1}}
    assert statistics([])["prompts"]["share"] is None


def test_guard17_narcotics_are_a_category_and_a_rationale_may_hold_half_a_character() -> None:
    policy = Policy("mine", "NARCOTICS: drugs, NA: nothing", ("NARCOTICS: drugs", NOTHING))
    text = json.dumps({"rating": "Safe", "category": "NARCOTICS: drugs", "rationale": "A \ud800."})

    def verdicts(requests: Sequence[GuardRequest], attempt: int) -> dict[str, Verdict]:
        return {one.id: parse_verdict(text, one.policy) for one in requests}

    made = moderate(WANTED[:2], policy, Pictures(), verdicts, 1)
    assert statistics(made)["verdict_categories"]["NARCOTICS: drugs"]["pictures"] == 2
    assert made[0].line()["rationale"] == "A \ufffd."
    json.dumps(made[0].line(), ensure_ascii=False).encode()


def test_guard17_prompts_are_read_from_lists_and_lines(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": "a\u2028ball", "category": "toys"}, {"id": 1, "prompt": "again"}]
    rows += [{"id": 2, "prompt": " "}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    for name in ("a.json", "a.jsonl"):
        rejected = RejectedRows()
        assert read_wanted(tmp_path / name, rejected) == [Wanted("1", "a\u2028ball", "toys")]
        assert [error.row for error in rejected.errors] == [1, 2]


def test_guard17_pictures_of_a_folder_are_found_by_prompt_id(tmp_path: Path) -> None:
    draw_images(tmp_path / "images", 2)
    (tmp_path / "images" / "broken.png").write_bytes(b"no")
    names = ("0", "broken", "../images/1", "gone")
    drawn = FolderConfig(folder=f"{tmp_path}/images").build(tmp_path).draw([Wanted(one, "x") for one in names], 0)
    assert drawn[0].image == f"{tmp_path}/images/0.png"
    assert [one.image for one in drawn[1:]] == [None] * 3
    assert ["not an image" in drawn[1].problem, "stay below" in drawn[2].problem, "no file" in drawn[3].problem] == [
        True
    ] * 3


def picture(path: str) -> dict[str, Any]:
    return {"data": [{"b64_json": base64.b64encode(Path(path).read_bytes()).decode()}]}


def test_guard17_an_endpoint_draws_each_prompt_once_and_its_own_refusal_is_no_picture(tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 2)

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        if request["prompt"] == "?":
            return 400, {"error": {"code": "content_policy_violation"}}
        return 200, picture(images[request["prompt"] == "a gun"])

    with chat_server(answer, "/v1/images/generations") as server:
        config = ImagesEndpointConfig(base_url=server.url, model="painter", seed=7, concurrency=2)
        drawn = config.build(tmp_path / "work").draw(WANTED, 0)
        assert config.build(tmp_path / "work").draw(WANTED, 0) == drawn  # a later process asks nothing again
        assert len(server.requests) == 3
        config.build(tmp_path / "work").draw(WANTED[:1], 1)
        assert server.requests[-1]["seed"] == 8
        assert server.requests[0]["response_format"] == "b64_json"
    assert Path(drawn[0].image or "").read_bytes() == Path(images[0]).read_bytes()
    assert Path(drawn[1].image or "").read_bytes() == Path(images[1]).read_bytes()
    assert (drawn[2].image, drawn[2].problem) == (None, "the generator's own filter refused")
    sent = {"data": [{"url": "http://elsewhere", "b64_json": None}]}
    with chat_server(lambda _: (200, sent), "/v1/images/generations") as server:
        other = ImagesEndpointConfig(base_url=server.url, model="painter").build(tmp_path / "other")
        with pytest.raises(EndpointError, match="ask for base64"):
            other.draw(WANTED[:1], 0)
        assert len(server.requests) == 1


NO_PICTURES = [(429, {}), (500, "busy"), (200, b"<html>"), (200, {"data": []}), (200, {"data": [{"b64_json": "?"}]})]


@pytest.mark.parametrize("silence", NO_PICTURES, ids=["429", "500", "html", "empty", "no base64"])
def test_guard17_a_generator_that_is_silent_on_one_prompt_draws_the_others_and_is_asked_again(
    tmp_path: Path, silence: tuple[int, Any]
) -> None:
    (image,) = draw_images(tmp_path / "images", 1)
    answers = {"a ball": (200, picture(image)), "a gun": silence, "?": (200, picture(image))}
    with chat_server(lambda request: answers[request["prompt"]], "/v1/images/generations") as server:
        config = ImagesEndpointConfig(base_url=server.url, model="painter", retries=0)
        drawn = config.build(tmp_path / "work").draw(WANTED, 0)
        assert [(one.image is None, one.silent) for one in drawn] == [(False, False), (True, True), (False, False)]
        assert "does not answer after 1 tries" in drawn[1].problem
        answers["a gun"] = (200, picture(image))
        (again,) = config.build(tmp_path / "work").draw([WANTED[1]], 0)
        assert (again.image, len(server.requests)) == (drawn[0].image, 4)
        answers |= dict.fromkeys(answers, silence)
        with pytest.raises(EndpointError, match="does not answer"):
            config.build(tmp_path / "other").draw(WANTED, 0)


def moderation(tmp_path: Path, url: str) -> ModerateConfig:
    draw_images(tmp_path / "images", 3)
    (tmp_path / "images" / "2.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:-30])
    rows = [{"id": str(number), "prompt": f"picture {number}"} for number in range(4)]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    tree = {
        "run": {"name": "moderation", "root": str(tmp_path / "runs")},
        "prompts": str(tmp_path / "prompts.json"),
        "generator": {"kind": "folder", "folder": str(tmp_path / "images")},
        "guard": {"kind": "openai", "base_url": url, "model": "guard", "retries": 0},
        "policy": {"taxonomy": "tiny"},
    }
    (tmp_path / "moderation.yaml").write_text(json.dumps(tree))
    return load(ModerateConfig, tmp_path / "moderation.yaml")


def test_guard17_the_job_goes_on_where_the_guard_went_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies: list[tuple[int, Any]] = [(200, UNSAFE), (401, "later"), (200, SAFE)]
    with chat_server(lambda _: replies.pop(0)) as server:
        config = moderation(tmp_path, server.url)
        config = config.model_copy(update={"guard": config.guard.model_copy(update={"concurrency": 1})})
        with pytest.raises(EndpointError):
            run(config)
        found = run(config)
        assert len(server.requests) == 3  # what was judged is not asked again
        assert "json_schema" in json.dumps(server.requests[0])
        assert run(config) == found  # complete
    lines = [json.loads(one) for one in (tmp_path / "runs/moderation/decisions.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["block", "allow", "block", "block"]
    assert found["prompts"]["blocked"] == 3
    assert found["policy_sha256"] == POLICY.sha256
    assert "blocked" in capsys.readouterr().out


@pytest.mark.parametrize("silence", [(429, {}), (500, "busy"), (200, b"<html>"), (200, {})])
def test_guard17_a_guard_that_is_silent_on_one_picture_blocks_it_and_a_repeated_command_asks_again(
    tmp_path: Path, silence: tuple[int, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    replies: list[tuple[int, Any]] = [silence, (200, SAFE), (200, SAFE)]
    with chat_server(lambda _: replies.pop(0)) as server:
        config = moderation(tmp_path, server.url)
        config = config.model_copy(update={"guard": config.guard.model_copy(update={"concurrency": 1})})
        found = run(config)
        assert len(server.requests) == 2  # two of four have no picture to judge
        lines = [json.loads(one) for one in (tmp_path / "runs/moderation/decisions.jsonl").read_text().splitlines()]
        assert [(line["decision"], line["status"]) for line in lines[:2]] == [("block", "invalid"), ("allow", "json")]
        assert lines[0]["reason"].startswith("invalid verdict: the model at ")
        pictures = found["pictures"]
        assert (pictures["invalid"], pictures["silent"], pictures["not_drawn"]) == (1, 1, 2)
        assert "repeat the command to ask it again" in capsys.readouterr().out
        again = run(config)
        assert len(server.requests) == 3
        assert (again["pictures"]["invalid"], again["prompts"]["blocked"]) == (0, 2)
        assert run(config) == again  # complete
        assert len(server.requests) == 3


def test_guard17_a_policy_without_room_is_refused_with_its_tokens_before_anything_is_drawn(
    tmp_path: Path, tiny: ModelConfig
) -> None:
    config = moderation(tmp_path, "http://127.0.0.1:9")
    guard = {"kind": "engine", "model": tiny.model_dump(), "sampling": {"max_new_tokens": 96, "constrained": False}}
    guard["rollout"] = {"engine": "transformers", "max_length": 256}
    tree = config.model_dump() | {"guard": guard, "policy": {"taxonomy": "default"}}
    tree["generator"] = {"kind": "openai", "base_url": "http://127.0.0.1:9", "model": "painter"}
    long = build_policy(taxonomy())
    tokens = len(Processor.load(tiny).tokenizer(long.text, add_special_tokens=False)["input_ids"])
    with pytest.raises(PromptTooLongError, match=f"the policy alone has {tokens} tokens.*in a context of 256"):
        run(ModerateConfig.model_validate(tree))
    assert not (tmp_path / "runs/moderation/drawn").exists()
    judge = partial(build_judge, wanted=WANTED, folder=tmp_path, rejected=RejectedRows())
    free = 256 - 96 - Processor.load(tiny).tokens_per_image  # type: ignore[operator]
    words = Policy("words", "word " * free, ("NA",), ("rating",))  # room for the text, none for an image beside it
    with pytest.raises(PromptTooLongError, match=r"of which [1-9]\d* for the image"):
        judge(ModerateConfig.model_validate(tree), policy=words)


def test_guard17_configurations_that_cannot_work_are_refused(tmp_path: Path) -> None:
    config = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "moderate_images.yaml"
    with pytest.raises(ConfigError, match="cannot hold answers to a schema"):
        load(ModerateConfig, config, ["guard.rollout.engine=transformers"])
    with pytest.raises(ConfigError, match="tries"):
        load(ModerateConfig, config, ["tries=0"])
    gone = load(ModerateConfig, config, [f"guard.model.path={tmp_path}/gone"])
    with pytest.raises(ConfigError):
        build_judge(gone, WANTED, POLICY, tmp_path, RejectedRows())
