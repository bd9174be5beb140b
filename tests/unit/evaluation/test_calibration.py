"""Reliability tables and correlations against numbers from elsewhere."""

from __future__ import annotations

import math

import pytest

from rlhf.evaluation.calibration import expected_calibration_error, pearson, reliability, spearman, within_pairs


def test_a_table_by_hand() -> None:
    table = reliability([0.05, 0.15, 0.15, 0.95, 1.0, 0.1], [False, True, False, True, True, False])
    assert [one.count for one in table] == [1, 3, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table[1].predicted == pytest.approx(0.4 / 3)
    assert [one.came_true for one in table] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (table[9].low, table[9].high, table[9].predicted) == (0.9, 1.0, 0.975)
    assert table[2].predicted is None
    # 1/6 x 0.05 + 3/6 x |0.1333 - 0.3333| + 2/6 x 0.025
    assert expected_calibration_error(table) == pytest.approx(0.05 / 6 + 0.1 + 0.025 / 3)


def test_sure_and_always_wrong_is_the_worst_there_is() -> None:
    assert expected_calibration_error(reliability([1.0, 0.0], [False, True])) == 1.0
    assert expected_calibration_error(reliability([1.0, 0.0], [True, False])) == 0.0
    assert math.isnan(expected_calibration_error(reliability([], [])))


def test_what_is_no_probability_is_refused() -> None:
    for wrong in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="no probability"):
            reliability([wrong], [True])
    with pytest.raises(ValueError, match="1 probabilities for 2"):
        reliability([0.5], [True, False])


def test_anscombes_quartet() -> None:
    """Anscombe 1973: four data sets with correlation 0.816 and very different ranks."""
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    first = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    third = [7.46, 6.77, 12.74, 7.11, 7.81, 8.84, 6.08, 5.39, 8.15, 6.42, 5.73]
    assert pearson(x, first) == pytest.approx(0.81642, abs=1e-5)
    assert pearson(x, third) == pytest.approx(0.81629, abs=1e-5)
    # without ties: 1 - 6 sum(d^2) / (n (n^2 - 1)), d^2 summed by hand over the ranks of `first`
    order = {value: rank for rank, value in enumerate(sorted(first), 1)}
    ranks = zip([7, 5, 10, 6, 8, 11, 3, 1, 9, 4, 2], (order[value] for value in first), strict=True)
    squares = sum((one - other) ** 2 for one, other in ranks)
    assert spearman(x, first) == pytest.approx(1 - 6 * squares / (11 * 120))
    assert spearman(x, first) == pytest.approx(0.81818, abs=1e-5)


def test_equal_numbers_share_their_mean_rank() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5."""
    assert spearman([1, 5, 5, 9], [0, 2, 1, 3]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 2, 3], [math.exp(k) for k in (1, 5, 100)]) == pytest.approx(1)


def test_nothing_varies_or_too_little_is_there() -> None:
    assert pearson([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1], [1]) is None
    assert pearson([], []) is None
    with pytest.raises(ValueError, match="2 numbers against 1"):
        pearson([1, 2], [1])


def test_within_pairs_does_not_depend_on_who_comes_first() -> None:
    lengths, margins = [3.0, -2.0, 7.0, 1.0], [1.0, 0.5, 2.0, -1.0]
    kept = pearson(within_pairs(lengths), within_pairs(margins))
    turned = pearson(within_pairs([-3.0, -2.0, 7.0, -1.0]), within_pairs([-1.0, 0.5, 2.0, 1.0]))
    assert kept == pytest.approx(turned)
    # sum(xy) / sqrt(sum(x^2) sum(y^2)) = (3 - 1 + 14 - 1) / sqrt(63 x 6.25)
    assert kept == pytest.approx(15 / math.sqrt(63 * 6.25))
