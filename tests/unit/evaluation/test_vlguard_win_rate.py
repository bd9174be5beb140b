"""The win rate against a real HTTP server: what is a win, what costs nothing twice, and how failures end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import JudgeError
from rlhf.evaluation.vlguard_win_rate import Choice, Comparison, WinRateConfig, WinRateJudge, choose, win_rate
from rlhf.ledger import Ledger
from tests.fakes import draw_images
from tests.unit.evaluation.openai_server import chat_server

POLICY = {"error": {"code": "content_policy_violation", "message": "no"}}


def compared(count: int, image: str | None = None) -> list[Comparison]:
    return [Comparison(f"r{n}", f"Question {n}?", image, f"ours {n}.", f"theirs {n}.") for n in range(count)]


def judge_at(url: str, swap: bool = False, retries: int = 1) -> WinRateJudge:
    config = WinRateConfig(base_url=url, model="j", swap=swap, retries=retries, concurrency=2)
    return WinRateJudge(config, first_pause=0.01)


def text_and_parts(request: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    content = request["messages"][0]["content"]
    return (content, []) if isinstance(content, str) else (content[0]["text"], content[1:])


def test_vlguard12_only_the_reply_m_is_a_win(tmp_path: Path) -> None:
    replies: dict[str, tuple[int, Any]] = {
        "Question 0?": (200, "m"),
        "Question 1?": (200, "M"),
        "Question 2?": (200, "m."),
        "Question 3?": (200, "Output m is better"),
        "Question 4?": (400, POLICY),
        "Question 5?": (200, "m"),
    }

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        text, _ = text_and_parts(request)
        return next(reply for question, reply in replies.items() if question in text)

    with chat_server(answer) as server, Ledger(tmp_path, {"judge": "j"}) as ledger:
        choices = choose(judge_at(server.url), compared(6), ledger)
    found = win_rate(compared(6), choices)
    assert [choice.outcome for choice in choices] == ["win", "lose", "lose", "lose", "lose", "win"]
    assert (found["win"], found["lose"], found["rows"], found["win_rate"]) == (2, 4, 6, 33.33)


def test_vlguard12_ours_comes_first_as_m_with_the_image_and_two_tokens(tmp_path: Path) -> None:
    image = draw_images(tmp_path / "images", 1)[0]
    with chat_server(lambda _: (200, "m")) as server, Ledger(tmp_path / "l", {"judge": "j"}) as ledger:
        choose(judge_at(server.url), compared(1, image), ledger)
    (request,) = server.requests
    text, parts = text_and_parts(request)
    assert text.index('"m">\nours 0.') < text.index('"M">\ntheirs 0.')
    assert [part["type"] for part in parts] == ["image_url"]
    assert (request["max_tokens"], request["temperature"]) == (2, 0)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("m", "M", "win"),
        ("M", "m", "lose"),
        ("m", "m", "tie"),  # always the first one
        ("M", "M", "tie"),
        ("m", "junk", "invalid"),
        ("", "M", "invalid"),
    ],
)
def test_vlguard12_both_orders_must_agree(first: str, second: str, outcome: str) -> None:
    assert Choice(first, second).outcome == outcome


def test_vlguard12_a_judge_that_always_prefers_the_first_place_ties_when_swapped(tmp_path: Path) -> None:
    with chat_server(lambda _: (200, "m")) as server, Ledger(tmp_path, {"judge": "j"}) as ledger:
        once = choose(judge_at(server.url), compared(4), ledger)
        both = choose(judge_at(server.url, swap=True), compared(4), ledger)
    assert win_rate(compared(4), once)["win_rate"] == 100.0
    assert [choice.outcome for choice in both] == ["tie"] * 4
    assert len(server.requests) == 8  # the first order was not asked again
    assert win_rate(compared(4), both)["win_rate"] == 0.0


def test_vlguard12_a_busy_endpoint_is_asked_again_and_a_dead_one_not_for_ever(tmp_path: Path) -> None:
    busy = iter([(429, "slow down"), (200, "m")])
    with chat_server(lambda _: next(busy)) as server, Ledger(tmp_path / "a", {"judge": "j"}) as ledger:
        assert choose(judge_at(server.url), compared(1), ledger)[0].outcome == "win"
    with chat_server(lambda _: (429, "slow down")) as server, Ledger(tmp_path / "b", {"judge": "j"}) as ledger:
        with pytest.raises(JudgeError, match="does not answer after 3 tries"):
            choose(judge_at(server.url, retries=2), compared(1), ledger)
        assert len(server.requests) == 3


def test_vlguard12_a_second_run_asks_only_what_is_missing(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        return (500, "down") if "Question 3?" in text_and_parts(request)[0] else (200, "m")

    with chat_server(answer) as server, Ledger(tmp_path, {"judge": "j"}) as ledger:
        first = choose(judge_at(server.url, retries=0), compared(4), ledger)
        swapped = choose(judge_at(server.url, swap=True, retries=0), compared(4), ledger)
    assert [choice.outcome for choice in first] == ["win", "win", "win", "invalid"]
    assert win_rate(compared(4), first)["invalid"] == 1
    assert win_rate(compared(4), first)["win_rate"] == 75.0  # what nobody preferred is no win
    assert [choice.outcome for choice in swapped] == ["tie", "tie", "tie", "invalid"]
    with chat_server(lambda _: (200, "M")) as server, Ledger(tmp_path, {"judge": "j"}) as ledger:
        choices = choose(judge_at(server.url), compared(4), ledger)
        assert len(server.requests) == 1
        changed = [Comparison("r0", "Question 0?", None, "another answer", "theirs 0.")]
        assert choose(judge_at(server.url), changed, ledger)[0].first == "M"  # a new answer is a new question
    assert choices[3].outcome == "lose"


def test_vlguard12_empty_references_are_counted_apart() -> None:
    rows = [*compared(3), Comparison("r3", "q", None, "ours", " ")]
    found = win_rate(rows, [Choice("m"), Choice("M"), Choice("M"), Choice("m")])
    assert (found["win_rate"], found["empty_references"]) == (50.0, 1)
    assert found["win_rate_without_empty_references"] == 33.33
    assert found["interval"] == [15.0, 85.0]  # Wilson, 2 of 4
