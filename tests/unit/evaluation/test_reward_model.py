"""Results of a reward model on pairs whose answer is known."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rlhf.batch import PreferencePair, Prompt
from rlhf.evaluation.reward_model import RESULTS_FILE, ROWS_FILE, ScoredPair, headline, record, summarise


def scored(
    number: int,
    margin: float,
    lengths: tuple[int, int] = (5, 5),
    kind: str = "easy",
    category: str = "",
    base: float = 0.0,
) -> ScoredPair:
    prompt = Prompt(f"{kind}:{number}", "Why?", question_type=kind, category=category)
    pair = PreferencePair(prompt, "So.", "No.")
    return ScoredPair(pair, base + margin / 2, base - margin / 2, *lengths)


def drawn(count: int, scale: float, seed: int = 0) -> list[ScoredPair]:
    """Pairs that come true as often as a model with margins d / scale would say: scale > 1 is too sure."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        belief = generator.uniform(-4, 4)
        right = generator.random() < 1 / (1 + math.exp(-belief))
        rows.append(scored(number, scale * (belief if right else -belief)))
    return rows


def test_accuracy_in_all_and_in_groups() -> None:
    rows = [scored(n, 1.0, category="Privacy") for n in range(8)] + [scored(8, -1.0), scored(9, 0.0, kind="hards")]
    results = summarise(rows)
    assert results["accuracy"]["value"] == 0.8  # a tie is wrong
    assert results["accuracy"]["interval"] == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson, 8 of 10
    assert {name: (one["value"], one["pairs"]) for name, one in results["by_type"].items()} == {
        "easy": (8 / 9, 9),
        "hards": (0.0, 1),
    }
    assert {name: one["pairs"] for name, one in results["by_class"].items()} == {"Privacy": 8, "unknown": 2}


def test_a_calibrated_model_is_on_the_diagonal_and_a_loud_one_is_not() -> None:
    honest, loud = (summarise(drawn(6000, scale))["calibration"] for scale in (1.0, 4.0))
    assert honest["expected_error"] < 0.03
    assert loud["expected_error"] > 0.08
    for one in honest["bins"]:
        low, high = one["interval"]
        assert low - 0.03 <= one["predicted"] <= high + 0.03


def test_the_table_has_two_halves_even_for_a_model_that_is_always_right() -> None:
    bins = summarise([scored(number, 3.0) for number in range(400)])["calibration"]["bins"]
    assert bins[0]["pairs"] + bins[9]["pairs"] == 400
    assert 150 < bins[0]["pairs"] < 250
    assert (bins[0]["observed"], bins[9]["observed"]) == (0.0, 1.0)
    assert [one["observed"] for one in bins[1:9]] == [None] * 8


def test_length_within_pairs_is_not_length_between_questions() -> None:
    """Long questions get high scores here, but of two answers to one question the shorter one wins."""
    rows = [scored(n, 0.25, lengths=(10 * n, 10 * n + 2), base=float(n)) for n in range(1, 60)]
    length = summarise(rows)["length"]
    assert length["answers"]["spearman"] > 0.95
    assert length["within_pairs"]["spearman"] == pytest.approx(-1)
    assert length["longer_preferred"] == {"pairs": 59, "by_label": 0.0, "by_score": 0.0}


def test_the_models_taste_for_length_is_told_from_the_datas() -> None:
    """In the data the longer answer is the better one in half of the pairs; the model always takes it."""
    rows = [scored(n, 1.0, lengths=(9, 4)) for n in range(10)] + [scored(n, -1.0, lengths=(4, 9)) for n in range(10)]
    longer = summarise([*rows, scored(99, 1.0)])["length"]["longer_preferred"]
    assert longer == {"pairs": 20, "by_label": 0.5, "by_score": 1.0}


def test_margins_are_counted_once_and_apart_by_sign() -> None:
    margins = summarise([scored(n, value) for n, value in enumerate((-3.0, -0.1, 0.1, 0.2, 2.9))])["margins"]
    below = sum(count for low, count in zip(margins["edges"][:-1], margins["counts"], strict=True) if low < -1e-9)
    assert (below, sum(margins["counts"])) == (2, 5)
    assert margins["mean"] == pytest.approx(0.02)


def test_headline_leaves_out_what_was_not_measured() -> None:
    assert headline(summarise([scored(1, 1.0)])).keys() == {
        "accuracy_all", "accuracy_easy", "margin", "calibration_error"
    }  # fmt: skip
    both = [scored(n, 1.0, (n, 5), kind="all") for n in range(1, 9)]
    assert set(headline(summarise(both))) == {"accuracy_all", "margin", "calibration_error", "length_correlation"}
    with pytest.raises(ValueError, match="no scored pair"):
        summarise([])


def test_files_are_json_and_hold_every_row(tmp_path: Path) -> None:
    rows = [scored(n, float(n), (3, n + 1)) for n in range(4)]
    record(tmp_path, rows, summarise(rows))
    results: Any = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert results["accuracy"]["pairs"] == 4
    lines = [json.loads(line) for line in (tmp_path / ROWS_FILE).read_text().splitlines()]
    assert [(line["id"], line["margin"], line["rejected_tokens"]) for line in lines] == [
        (f"easy:{n}", float(n), n + 1) for n in range(4)
    ]
    assert not list(tmp_path.rglob("*.partial"))
