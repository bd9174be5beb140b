"""Signs of reward hacking against hand-made answers, scores and runs."""

from __future__ import annotations

import pytest

from rlhf.batch import Completion, Score
from rlhf.monitors import correlation, hacking_signs, reward_monitors


def said(*texts: str) -> list[Completion]:
    return [Completion(f"p:{place}", (1,), (0.0,), text, "stop", 0) for place, text in enumerate(texts)]


def test_the_share_of_the_commonest_answer_ignores_case_and_blanks() -> None:
    scores = [Score(1.0, {"reward": 1.0})] * 4
    found = reward_monitors(said("No.", "no. ", "NO.", "Yes."), scores)
    assert found == {"response/commonest_share": 0.75}  # one part needs no means and has nothing to agree with


def test_parts_have_means_and_agreements() -> None:
    scores = [Score(0.0, {"guard": a, "model": b}) for a, b in ((1.0, 2.0), (2.0, 4.0), (3.0, 6.0), (4.0, 1.0))]
    found = reward_monitors(said("a", "b", "c", "d"), scores)
    assert (found["score/part/guard"], found["score/part/model"]) == (2.5, 3.25)
    # covariance sum: -1.5*-1.25 + -0.5*0.75 + 0.5*2.75 + 1.5*-2.25 = -0.5; squares 5 and 14.75
    assert found["score/agreement/guard and model"] == pytest.approx(-0.5 / (5 * 14.75) ** 0.5)


def test_costs_have_means_over_the_answers_that_have_them_whether_bounded_or_not() -> None:
    scores = [
        Score(0.0, {"a": 1.0}, {"refused": 1.0}),
        Score(0.0, {"a": 1.0}, {"refused": 0.0}),
        Score(0.0, {"a": 1.0}),
    ]
    assert reward_monitors(said("a", "b", "c"), scores)["score/cost/refused"] == 0.5


def test_nothing_correlates_with_what_does_not_vary() -> None:
    assert correlation([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None
    assert correlation([(1.0, 2.0), (2.0, 3.0)]) is None
    assert correlation([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]) == pytest.approx(-1.0)


def run(**ends: tuple[float, float]) -> list[dict[str, float | None]]:
    names = {name.replace("__", "/"): pair for name, pair in ends.items()}
    return [{name: first + (last - first) * step / 29 for name, (first, last) in names.items()} for step in range(30)]


def test_a_score_that_rises_alone_one_sentence_and_longer_answers_are_signs() -> None:
    signs = hacking_signs(
        run(
            score__part__model=(-1.0, 2.0),
            score__part__guard=(0.8, 0.8),
            response__commonest_share=(0.1, 0.9),
            response__length=(10.0, 40.0),
        )
    )
    assert len(signs) == 3
    assert "model rose while guard did not" in signs
    assert any("same sentence" in one for one in signs)
    assert any("tokens" in one for one in signs)


def test_a_healthy_or_short_run_has_none() -> None:
    healthy = run(score__part__model=(-1.0, 2.0), score__part__guard=(-0.5, 0.9), response__length=(10.0, 12.0))
    assert hacking_signs(healthy) == []
    assert hacking_signs(healthy[:10]) == []
