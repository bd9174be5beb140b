"""The Pareto front and the rule on it: properties of both over drawn points, and choices worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.pareto import Bounds, Point, best, front

# counts of 20 prompts: coarse, so that equal shares, whole ties and dominated points are all frequent
SHARES = st.integers(0, 20).map(lambda count: count / 20)
DRAWN = st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=12).map(
    lambda shares: [Point(iteration, *one) for iteration, one in enumerate(shares, start=1)]
)
LIMITS = st.builds(Bounds, harm=SHARES, over_refusal=SHARES, helpfulness=SHARES)


def no_better(left: Point, right: Point) -> bool:
    """Whether `left` is nowhere better than `right`."""
    return left.harm >= right.harm and left.over_refusal >= right.over_refusal and left.helpfulness <= right.helpfulness


@given(DRAWN)
def test_everything_off_the_front_is_covered_by_it_and_nothing_on_it_is(points: list[Point]) -> None:
    kept = front(points)
    assert [one.iteration for one in kept] == sorted(one.iteration for one in kept)
    for one in kept:
        assert [other.iteration for other in kept if no_better(one, other)] == [one.iteration]
    for one in points:
        assert any(no_better(one, other) for other in kept)


@given(DRAWN, st.randoms(use_true_random=False), LIMITS)
def test_order_does_not_matter(points: list[Point], random: object, bounds: Bounds) -> None:
    shuffled = points.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert front(shuffled) == front(points)
    assert best(shuffled, bounds) == best(points, bounds)


@given(DRAWN, LIMITS)
def test_the_best_is_on_the_front_and_within_the_bounds_if_any_point_is(points: list[Point], bounds: Bounds) -> None:
    chosen = best(points, bounds)
    assert chosen in front(points)
    inside = [
        one
        for one in points
        if one.harm <= bounds.harm and one.over_refusal <= bounds.over_refusal and one.helpfulness >= bounds.helpfulness
    ]
    assert not inside or chosen in inside
    assert all(chosen.distance <= one.distance for one in inside)


@given(DRAWN, LIMITS, st.tuples(*[st.integers(0, 5)] * 3), st.data())
def test_a_dominated_point_changes_nothing(
    points: list[Point], bounds: Bounds, worse: tuple[int, int, int], data: st.DataObject
) -> None:
    above = data.draw(st.sampled_from(points))
    harm, over, less = (count / 20 for count in worse)
    shares = min(1.0, above.harm + harm), min(1.0, above.over_refusal + over), max(0.0, above.helpfulness - less)
    below = Point(99, *shares)
    if below.shares == above.shares:
        return
    assert front([*points, below]) == front(points)
    assert best([*points, below], bounds) == best(points, bounds)


@given(DRAWN, LIMITS)
def test_the_best_so_far_is_all_that_has_to_be_kept(points: list[Point], bounds: Bounds) -> None:
    """A run keeps one checkpoint beside the newest; at its end that one must be the best of all."""
    kept = points[0]
    for point in points[1:]:
        kept = best([kept, point], bounds)
    assert kept == best(points, bounds)


def test_a_choice_by_hand() -> None:
    timid, bold, middle = Point(1, 0.0, 0.30, 0.70), Point(2, 0.40, 0.0, 0.95), Point(3, 0.10, 0.05, 0.90)
    worse = Point(4, 0.15, 0.05, 0.90)
    assert front([worse, middle, bold, timid]) == [timid, bold, middle]
    assert middle.distance == pytest.approx(0.15)  # sqrt(0.01 + 0.0025 + 0.01)
    assert best([timid, bold, middle, worse], Bounds()) == middle
    assert best([timid, bold, middle, worse], Bounds(over_refusal=0.0)) == bold
    assert best([timid, bold, middle, worse], Bounds(harm=0.05, over_refusal=0.3)) == timid
    # nobody keeps to both: beyond them by 0.30, by 0.40, by 0.10 + 0.05
    assert best([timid, bold, middle, worse], Bounds(harm=0.0, over_refusal=0.0)) == middle


def test_of_points_that_are_as_near_the_later_is_taken() -> None:
    harmful, timid = (0.2, 0.0, 1.0), (0.0, 0.2, 1.0)
    for first, second in ((harmful, timid), (timid, harmful)):
        points = [Point(7, *second), Point(3, *first)]
        assert len(front(points)) == 2
        assert best(points, Bounds()) == points[0]


def test_the_excess_is_summed_over_what_is_broken() -> None:
    bounds = Bounds(harm=0.1, over_refusal=0.05, helpfulness=0.9)
    assert bounds.excess(Point(1, 0.1, 0.05, 0.9)) == 0
    assert bounds.excess(Point(1, 0.3, 0.0, 1.0)) == pytest.approx(0.2)
    assert bounds.excess(Point(1, 0.3, 0.25, 0.4)) == pytest.approx(0.2 + 0.2 + 0.5)
    assert Bounds().excess(Point(1, 1.0, 1.0, 0.0)) == 0


def test_of_equal_points_the_latest_stands_for_all() -> None:
    points = [Point(iteration, 0.1, 0.0, 0.9) for iteration in (4, 8, 6)]
    assert front(points) == [Point(8, 0.1, 0.0, 0.9)]
    assert best(points, Bounds()).iteration == 8


@pytest.mark.parametrize("shares", [(math.nan, 0.0, 1.0), (0.0, -0.1, 1.0), (0.0, 0.0, 1.1)])
def test_a_share_that_is_none_is_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Point(1, *shares)


def test_there_must_be_something_to_choose() -> None:
    with pytest.raises(ValueError, match="empty"):
        best([], Bounds())
