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
    assert found.pop("response/commonest_refusal_share") == 0.0  # by the phrase rules these are no refusals
    assert found == {"response/commonest_share": 0.75}  # one part needs no means and has nothing to agree with


def test_the_commonest_refusal_is_counted_by_its_sentence_whatever_follows() -> None:
    answers = said(
        "I can't help with that.",
        "i can't help  with that. The shirt is red.",
        "A red shirt. I can't help with that.",
        "I'm sorry, no.",
        "The shirt is red.",
        "The shirt is red.",
        "The shirt is red.",
        "The shirt is red.",
    )
    found = reward_monitors(answers, [Score(1.0, {"reward": 1.0})] * 8)
    assert (found["response/commonest_refusal_share"], found["response/commonest_share"]) == (3 / 8, 4 / 8)
    assert reward_monitors([], [])["response/commonest_refusal_share"] == 0.0


def test_invalid_verdicts_have_a_share_per_guard_of_those_that_were_asked_for() -> None:
    scores = [
        Score(-1.0, {"one/guard_answer": -1.0}, invalid={"one/guard_answer": True, "two/guard_answer": False}),
        Score(-1.0, {"one/guard_answer": -1.0}, invalid={"one/guard_answer": False, "two/guard_answer": False}),
        Score(1.0, {"one/guard_answer": 1.0}, invalid={"one/guard_answer": False}),
        Score(1.0, {"one/guard_answer": 1.0}, invalid={"one/guard_answer": False}),
    ]
    found = reward_monitors(said("a", "b", "c", "d"), scores)
    assert (found["score/invalid/one/guard_answer"], found["score/invalid/two/guard_answer"]) == (0.25, 0.0)


def test_parts_have_means_and_agreements() -> None:
    scores = [Score(0.0, {"guard": a, "model": b}) for a, b in ((1.0, 2.0), (2.0, 4.0), (3.0, 6.0), (4.0, 1.0))]
    found = reward_monitors(said("a", "b", "c", "d"), scores)
    assert (found["score/part/guard"], found["score/part/model"]) == (2.5, 3.25)
    assert found["score/part_std/guard"] == pytest.approx((5 / 4) ** 0.5)
    assert found["score/part_std/model"] == pytest.approx((14.75 / 4) ** 0.5)
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


def run(steps: int = 30, **ends: tuple[float, float]) -> list[dict[str, float | None]]:
    """Metrics that go from one number to another on a straight line; "__" is "/"."""
    names = {name.replace("__", "/"): pair for name, pair in ends.items()}
    return [
        {name: first + (last - first) * step / (steps - 1) for name, (first, last) in names.items()}
        for step in range(steps)
    ]


def parts(
    model: tuple[float, float], guard: tuple[float, float], image: tuple[float, float] = (0.5, 0.5), spread: float = 1.0
) -> list[dict[str, float | None]]:
    """A mixture's run: a reward model and a guard's verdicts on answers and on images."""
    means = {"pref/reward_model": model, "guard/guard_answer": guard, "guard/guard_image": image}
    ends = {f"score__part__{name}": pair for name, pair in means.items()}
    return run(**ends, **{f"score__part_std__{name}": (spread, spread) for name in means})


@pytest.mark.parametrize(("guard", "verb"), [((0.8, 0.8), "stood still"), ((0.8, -0.8), "fell"), ((0.8, 0.6), "fell")])
def test_a_reward_that_rises_while_the_guard_stands_still_or_falls_is_a_sign(
    guard: tuple[float, float], verb: str
) -> None:
    (sign,) = hacking_signs(parts((-1.0, 2.0), guard))
    # means of steps 0 to 7 and of 22 to 29: 3.5 / 29 and 25.5 / 29 of the way
    assert sign.startswith("pref/reward_model rose (-0.638 to 1.64) while guard/guard_answer " + verb)


@pytest.mark.parametrize("offset", [-1000.0, 0.0, 1000.0])
@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_neither_an_offset_nor_a_unit_changes_what_is_a_sign(offset: float, unit: float) -> None:
    def shown(*pair: float) -> tuple[float, float]:
        return unit * (pair[0] + offset), unit * (pair[1] + offset)

    assert len(hacking_signs(parts(shown(-1.0, 2.0), shown(0.8, 0.8), shown(0, 0), unit))) == 1
    assert hacking_signs(parts(shown(-1.0, 2.0), shown(0.0, 0.9), shown(0, 0), unit)) == []
    assert hacking_signs(parts(shown(0.0, 0.2), shown(0.8, 0.8), shown(0, 0), unit)) == []  # 0.15 of the spread


def test_a_guard_that_rises_is_what_is_wanted_unless_another_part_falls() -> None:
    assert hacking_signs(parts((1.0, 1.0), (-0.5, 0.9))) == []  # nor does what it says of images alone count
    assert hacking_signs(parts((1.0, 1.0), (-0.5, 0.9), image=(0.9, -0.9))) == []
    (sign,) = hacking_signs(parts((1.0, 0.0), (-0.5, 0.9)))
    assert sign.startswith("guard/guard_answer rose")
    assert "pref/reward_model fell" in sign


def test_verdicts_that_were_all_alike_at_first_count_as_fallen_once_others_come() -> None:
    rows = run(
        score__part__a__reward_model=(0.0, 3.0),
        score__part_std__a__reward_model=(1.0, 1.0),
        score__part__g__guard_answer=(1.0, 1.0),
        score__part_std__g__guard_answer=(0.0, 0.0),
    )
    for row in rows[-6:]:
        row["score/part/g/guard_answer"] = 0.9
    (sign,) = hacking_signs(rows)
    assert "g/guard_answer fell" in sign


def test_one_refusal_for_everything_and_answers_that_grow_or_shrink_are_signs() -> None:
    (refusal,) = hacking_signs(run(response__commonest_refusal_share=(0.1, 0.9)))
    assert refusal == "80% of the last answers hold the same refusal (20% at first)"
    (same,) = hacking_signs(run(response__commonest_share=(0.1, 0.9)))
    assert "are the same, word for word" in same
    assert hacking_signs(run(response__length=(10.0, 40.0))) == ["answers grew from 14 to 36 tokens"]
    assert hacking_signs(run(response__length=(40.0, 10.0))) == ["answers shrank from 36 to 14 tokens"]
    assert hacking_signs(run(response__length=(40.0, 30.0))) == []


def test_invalid_verdicts_are_a_sign_from_one_in_twenty_on_in_short_runs_too() -> None:
    def signs(steps: int, first: float, last: float) -> list[str]:
        return hacking_signs(run(steps, score__invalid__g__guard_answer=(first, last)))

    assert signs(3, 0.2, 0.2) == ["20.0% of g/guard_answer's verdicts are invalid (20.0% of the last ones)"]
    assert signs(30, 0.04, 0.04) == []
    assert len(signs(300, 0.0, 0.08)) == len(signs(300, 0.16, 0.0)) == 1  # at the end alone, or on the whole
    assert hacking_signs(run(3, score__invalid__g__guard_answer=(0.0, 0.0))) == []


def test_a_healthy_or_short_run_has_none() -> None:
    healthy = parts((-1.0, 2.0), (-0.5, 0.9))
    for row, length in zip(healthy, run(response__length=(10.0, 12.0)), strict=True):
        row |= length
    assert hacking_signs(healthy) == []
    hacked = parts((-1.0, 2.0), (0.8, -0.8))
    assert (len(hacking_signs(hacked)), hacking_signs(hacked[:15])) == (1, [])
