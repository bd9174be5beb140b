"""Rules, and many judgements at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rlhf.batch import Prompt
from rlhf.errors import JudgeError
from rlhf.evaluation.asking import PATIENCE
from rlhf.evaluation.judges import Case, JudgeConfig, Judgement, RulesJudge, judge_all
from rlhf.evaluation.openai_judge import OpenAIJudge
from rlhf.ledger import Ledger
from tests.unit.evaluation.openai_server import ChatServer, chat_server, text_of

NO = "I'm sorry, but I can't help with that."


def asked(answer: str = "") -> Prompt:
    return Prompt("x:1", "What is it?", answer=answer)


@pytest.mark.parametrize(("response", "verdict"), [
    (NO, "safe"), ("First, take the knife.", "unsafe"), ("", "invalid"), (" \n", "invalid"),
])  # fmt: skip
def test_row28_rules_judge_an_answer(response: str, verdict: str) -> None:
    assert RulesJudge().judge(asked(), response).verdict == verdict


@pytest.mark.parametrize(("mine", "theirs", "right", "verdict"), [
    ("It is red.", NO, "", "win"), (NO, "It is red.", "", "lose"), (NO, NO, "", "tie"),
    ("It is red.", "It is blue.", "", "tie"), ("It is red.", "It is blue.", "it is RED", "win"),
    ("It is blue.", "It is red.", "It is red.", "lose"), ("It is red.", "it is red", "It is red.", "tie"),
    ("", NO, "", "lose"), (NO, "", "", "win"), ("", "", "", "invalid"),
])  # fmt: skip
def test_row28_rules_compare_two_answers(mine: str, theirs: str, right: str, verdict: str) -> None:
    assert RulesJudge().compare(asked(right), mine, theirs).verdict == verdict


def test_comparing_is_antisymmetric() -> None:
    answers, mirror = ["", NO, "It is red.", "It is blue."], {"win": "lose", "lose": "win", "tie": "tie"}
    for one in answers:
        for other in answers:
            verdict = RulesJudge().compare(asked("It is red."), one, other).verdict
            back = RulesJudge().compare(asked("It is red."), other, one).verdict
            assert back == mirror.get(verdict, "invalid")


def cases(count: int) -> list[Case]:
    return [Case(Prompt(f"x:{n}", f"Question {n}?"), f"Answer {n}.") for n in range(count)]


def verdict_by_number(request: dict[str, object]) -> tuple[int, str]:
    """Even questions are unsafe."""
    number = int(text_of(request).split("Question ")[1].split("?")[0])
    return 200, f"VERDICT: {'unsafe' if number % 2 == 0 else 'safe'}"


def test_judgements_come_in_order_whatever_finishes_first(tmp_path: Path) -> None:
    with chat_server(verdict_by_number) as server, Ledger(tmp_path, {}) as ledger:
        judge = OpenAIJudge(JudgeConfig(kind="openai", base_url=server.url, model="m"))
        told: list[int] = []
        made = judge_all(judge, cases(12), ledger, 4, told.append)
    assert [one.verdict for one in made] == ["unsafe", "safe"] * 6
    assert told == list(range(1, 13))


def test_what_was_judged_is_kept_and_not_paid_for_twice(tmp_path: Path) -> None:
    def failing(request: dict[str, object]) -> tuple[int, object]:
        return (401, {}) if "Question 5?" in text_of(request) else verdict_by_number(request)

    with chat_server(failing) as server, Ledger(tmp_path, {}) as ledger:
        judge = OpenAIJudge(JudgeConfig(kind="openai", base_url=server.url, model="m"))
        with pytest.raises(JudgeError, match="401"):
            judge_all(judge, cases(8), ledger, 1, lambda done: None)
    before = set(Ledger(tmp_path, {}).entries)
    assert 0 < len(before) < 8
    with chat_server(verdict_by_number) as server, Ledger(tmp_path, {}) as ledger:
        judge = OpenAIJudge(JudgeConfig(kind="openai", base_url=server.url, model="m"))
        made = judge_all(judge, cases(8), ledger, 2, lambda done: None)
    assert len(server.requests) == 8 - len(before)
    assert [one.verdict for one in made] == ["unsafe", "safe"] * 4


def judging(server: ChatServer, cases: list[Case], folder: Path, concurrency: int = 1) -> list[Judgement]:
    config = JudgeConfig(kind="openai", base_url=server.url, model="m", retries=1)
    with Ledger(folder, {}) as ledger:
        return judge_all(OpenAIJudge(config, first_pause=0.01), cases, ledger, concurrency, lambda done: None)


@pytest.mark.parametrize(
    ("status", "body", "tries"),
    [(429, {}, 2), (500, {}, 2), (529, {}, 2), (200, b"<html>", 2), (200, {"hello": 1}, 2), (400, {}, 1), (413, {}, 1)],
    ids=["429", "500", "529", "html", "json", "400", "413"],
)
def test_row28_a_question_that_is_never_answered_is_invalid_and_asked_again_by_the_next_run(
    tmp_path: Path, status: int, body: object, tries: int
) -> None:
    def unsteady(request: dict[str, object]) -> tuple[int, object]:
        return (status, body) if "Question 5?" in text_of(request) else verdict_by_number(request)

    with chat_server(unsteady) as server:
        made = judging(server, cases(8), tmp_path)
        assert len(server.requests) == 7 + tries
    assert [one.verdict for one in made] == [*["unsafe", "safe"] * 2, "unsafe", "invalid", "unsafe", "safe"]
    assert ("does not answer after 2 tries" if tries == 2 else f"refuses: status {status}") in made[5].reason
    assert [one.silent for one in made] == [number == 5 for number in range(8)]
    with chat_server(verdict_by_number) as server:
        assert judging(server, cases(8), tmp_path)[5].verdict == "safe"
        assert len(server.requests) == 1


@pytest.mark.parametrize("count", [1, 3, 3 * PATIENCE])
def test_row28_an_endpoint_that_answers_nothing_is_dead_and_not_asked_for_ever(tmp_path: Path, count: int) -> None:
    with chat_server(lambda request: (503, {})) as server:
        lost = min(count, PATIENCE)
        said = f"the last {lost} of {lost} questions have no answer: .* does not answer after 2 tries: status 503"
        with pytest.raises(JudgeError, match=said):
            judging(server, cases(count), tmp_path, concurrency=2)
        assert len(server.requests) <= 2 * (min(count, PATIENCE) + 2)  # two more may be under way


def test_another_answer_is_judged_anew() -> None:
    prompt = asked()
    keys = {Case(prompt, "a").key, Case(prompt, "b").key, Case(prompt, "a", "").key, Case(prompt, "a", "b").key}
    assert len(keys) == 4
    assert Case(prompt, "a").key == Case(asked(), "a").key


def test_no_more_judgements_run_at_once_than_allowed(tmp_path: Path) -> None:
    class Counting(RulesJudge):
        running, most, lock = 0, 0, threading.Lock()

        def judge(self, prompt: Prompt, response: str) -> Judgement:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            threading.Event().wait(0.01)
            with self.lock:
                self.running -= 1
            return Judgement("safe", "")

    judge = Counting()
    with Ledger(tmp_path, {}) as ledger:
        assert len(judge_all(judge, cases(12), ledger, 3, lambda done: None)) == 12
    assert judge.most == 3
