"""Seeded, nested subsets and the filters of the ablations."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf.data.subset import SubsetConfig, nested_subset

PAPER_SIZES = (100, 1_000, 5_000, 10_000, 30_000, 90_000)


def test_row31_the_papers_subsets_are_nested_and_reproduced() -> None:
    ids = list(range(93_258))
    subsets = [nested_subset(ids, size, 0) for size in PAPER_SIZES]
    assert [len(subset) for subset in subsets] == list(PAPER_SIZES)
    for small, large in zip(subsets, subsets[1:], strict=False):
        assert small < large
    shuffled = random.Random(1).sample(ids, len(ids))
    assert nested_subset(shuffled, 1_000, 0) == subsets[1]
    # The row ids of a published experiment must never change: computed with Perl's Digest::SHA and sort.
    assert sorted(subsets[0])[:5] == [4506, 5192, 5793, 7220, 7230]


def test_row31_another_seed_is_another_subset_and_a_fair_one() -> None:
    ids = range(93_258)
    one, other = nested_subset(ids, 10_000, 0), nested_subset(ids, 10_000, 1)
    expected = 10_000**2 / 93_258  # of two independent draws
    assert abs(len(one & other) - expected) < 5 * expected**0.5
    halves = sum(row < 93_258 // 2 for row in one)
    assert abs(halves - 5_000) < 5 * 50  # five standard deviations of a fair coin


@given(st.sets(st.integers(0, 10_000), max_size=60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_row31_nested_for_any_rows_and_stable_under_filters(rows: set[int], one: int, two: int, seed: int) -> None:
    small, large = sorted((one, two))
    subset = nested_subset(rows, small, seed)
    assert subset <= nested_subset(rows, large, seed) <= rows
    assert len(subset) == min(small, len(rows))
    even = {row for row in rows if row % 2 == 0}
    assert subset & even <= nested_subset(even, small, seed)  # a filter only moves further rows up


def record(**more: object) -> dict[str, object]:
    row = {"keyword": "easy", "class1": "Malicious Use", "class2": "Fraud", "class3": "scams"}
    return {**row, "chosen_models": ["Otter"], "rejected_models": ["LAMM", "gemini"], **more}


@pytest.mark.parametrize(("filters", "reason"), [
    ({}, None),
    ({"question_types": ["hardd"]}, "question_types"),
    ({"question_types": ["hards", "easy"]}, None),
    ({"class1": ["malicioususe"]}, None),
    ({"class1": ["Malicious Use"], "class3": ["fake news"]}, "class3"),
    ({"class3": ["scamns"]}, None),
    ({"class2": ["Toxic"]}, "class2"),
    ({"response_models": ["Otter", "LAMM"]}, None),
    ({"response_models": ["Otter"]}, "response_models"),
    ({"response_models": ["LAMM", "gemini"]}, "response_models"),
])  # fmt: skip
def test_row31_filters_name_what_a_row_did_not_pass(filters: dict[str, list[str]], reason: str | None) -> None:
    assert SubsetConfig.model_validate(filters).excluded_by(record()) == reason


def test_row31_hardd_is_hards() -> None:
    subset = SubsetConfig(question_types=("hardd", "hards"))
    assert subset.question_types == ("hards",)
    assert subset.excluded_by(record(keyword="hards")) is None


@pytest.mark.parametrize(("key", "value"), [
    ("question_types", ["hard"]), ("response_models", ["gpt"]), ("size", 0), ("size", -5),
])  # fmt: skip
def test_unknown_names_and_sizes_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        SubsetConfig.model_validate({key: value})
