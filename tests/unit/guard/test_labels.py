"""From what people wrote to targets: levels, categories, what is left out and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlhf.data.rejected import RejectedRows
from rlhf.errors import RowError
from rlhf.guard.labels import category_of, is_unambiguous, rating_of, read_annotations
from rlhf.guard.taxonomy import taxonomy


@pytest.mark.parametrize(
    ("score", "rating", "variant"),
    [
        ("Highly Inappropriate", "Unsafe", None),
        ("Moderately Inappropriate", "Unsafe", None),
        ("Barely Acceptable", "Safe", None),
        ("Generally Acceptable", "Safe", None),
        ("Highly Unsafe", "Unsafe", None),
        ("Moderately Unsafe", "Unsafe", None),
        ("Barely Safe", "Safe", None),
        ("Generally Safe", "Safe", None),
        ("Non-Violating Exception", "Safe", "exempt"),
        ("Sensitive Exception", "Unsafe", "sensitive"),
    ],
)
def test_guard05_four_levels_and_two_exceptions(score: str, rating: str, variant: str | None) -> None:
    assert rating_of(score) == (rating, variant)
    sure = score.startswith(("Highly", "Generally"))
    assert is_unambiguous(score) == sure


@pytest.mark.parametrize(
    ("label", "category"),
    [
        ("O2", "O2"),
        ("O2: Violence, Harm, or Cruelty", "O2"),
        ("NA", "NA"),
        ("NA: None applying", "NA"),
        (None, "NA"),
        (float("nan"), "NA"),
        ("Nature", "NA"),
        ("polite communication", "NA"),
        ("Respectful Content", "NA"),
        ("Peace or care", "NA"),
        ("harm", "O2"),
    ],
)
def test_guard05_labels_of_categories(label: Any, category: str) -> None:
    assert category_of(label, taxonomy(), {"harm": "O2"}) == category


def test_guard05_a_category_or_score_outside_the_policy_is_refused_by_name() -> None:
    with pytest.raises(RowError, match="category outside the policy: 'O10' is no category of the taxonomy 'default'"):
        category_of("O10", taxonomy(), {})
    assert category_of("O10", taxonomy("eu"), {}) == "O10"
    with pytest.raises(RowError, match="'Very bad' is not known; did you mean"):
        rating_of("Very bad")


def test_guard05_a_file_is_read_counted_and_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {"id": 1, "image": "a.png", "category": "O1", "score": "Highly Unsafe", "rationale": " Why. "},
        {"id": 2, "image": "a.png", "category": "O1", "score": "Discard"},
        {"id": 3, "image": "a.png", "category": float("nan"), "score": "Generally Safe"},
        {"id": 4, "image": "a.png", "category": None, "score": "Highly Unsafe"},
        {"id": 5, "image": "a.png", "category": "O77", "score": "Highly Unsafe"},
        {"id": 6, "image": "b.png", "category": "O1", "score": "Highly Unsafe"},
        {"id": 1, "image": "a.png", "category": "O1", "score": "Highly Unsafe"},
        {"id": 8, "image": "a.png", "category": "O3", "score": "Non-Violating Exception"},
        {"id": 9, "category": "O3", "score": "Barely Safe"},
        {"id": 10, "image": "a.png", "category": "O1", "score": "Barely Safe", "rationale": "The <image> is harmless."},
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    rejected = RejectedRows()
    found, dropped = read_annotations(path, tmp_path, taxonomy(), rejected)
    assert [(one.id, one.category, one.rating, one.rationale) for one in found] == [
        ("1", "O1", "Unsafe", "Why."),
        ("3", "NA", "Safe", ""),
        ("8", "O3", "Safe", ""),
    ]
    assert found[2].overrides == {"O3": "exempt"}
    assert dropped == {"score Discard": 1, "category NA with score Highly Unsafe": 1}
    assert [error.row for error in rejected.errors] == [4, 5, 6, 8, 9]
    assert "'O77'" in str(rejected.errors[0])
    assert str(path) in str(rejected.errors[0])
