"""What stands around a guard's numbers: cases, the summary and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.guard import GuardFiles, read_cases, summary
from rlhf.data.guard_world import PICTURE_KEYS, GuardSizes, write_guard_world
from rlhf.data.rejected import RejectedRows
from rlhf.guard.guards import GuardDecoding
from rlhf.guard.metrics import Truth, align, balanced_interval, evaluate
from rlhf.guard.policy import build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.report import write_guard_report
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import Verdict


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "world"
    write_guard_world(folder, 0, GuardSizes(10, 10, 0, 0, 0, 0))
    return folder


def test_guard15_a_bad_row_is_named_once_and_a_broken_image_counts_as_missing(world: Path, tmp_path: Path) -> None:
    rows = json.loads((world / "test.json").read_text())
    rows[0]["rating"], rows[1]["overrides"] = "safe", None
    rows[2] |= {"rating": "?", "overrides": None}
    (tmp_path / "test.json").write_text(json.dumps(rows))
    rejected = RejectedRows()
    files = GuardFiles(
        test=str(tmp_path / "test.json"), image_root=str(world / "images"), taxonomy="tiny", keys=PICTURE_KEYS
    )
    requests, truths = read_cases(files, rejected)
    assert sorted(error.row for error in rejected.errors) == [0, 1, 2]  # type: ignore[type-var]
    assert [one.id for one in requests] == [row["id"] for row in rows[3:]]
    assert [one.id for one in truths] == [row["id"] for row in rows[1:2] + rows[3:]]
    assert align(truths, {}).missing[0] == rows[1]["id"]


def test_guard15_one_taxonomy_has_one_schema_whatever_is_exempt() -> None:
    tiny = taxonomy("tiny")
    policies = [build_policy(tiny), build_policy(tiny, {"O6": "exempt"}), build_policy(tiny, {"O1": "sensitive"})]
    schemas = {GuardDecoding().for_request(GuardRequest("", "", one)).json_schema for one in policies}
    assert len(schemas) == 1
    assert len({one.text for one in policies}) == 3


def test_guard15_the_interval_of_balanced_accuracy_is_around_it_and_narrows() -> None:
    for many in (1, 10):
        low, high = balanced_interval(32 * many, 4 * many, 42 * many, 4 * many) or (1.0, 0.0)
        middle = (32 / 36 + 42 / 46) / 2
        assert 0 <= low < middle < high <= 1
        assert (high - low < 0.05) == (many == 10)
    assert balanced_interval(5, 0, 0, 1) is None


def test_guard15_summary_and_page_show_lenient_and_strict(tmp_path: Path) -> None:
    gun, nothing = "O6: guns and pills", "NA: nothing"
    truths = [Truth("0", "Unsafe", gun), Truth("1", "Safe", gun, "v2"), Truth("2", "Safe", nothing)]
    truths += [Truth("3", "Unsafe", gun), Truth("4", "Safe", nothing)]
    said = {
        "0": Verdict("json", "Unsafe", (gun,), "A <i>gun</i>.", ""),
        "1": Verdict("json", "Safe", (gun,), "A gun.", ""),
        "2": Verdict("json", "Unsafe", (gun,), "A gun.", ""),
        "3": Verdict("invalid", None, (), "", "hm", "not JSON"),
    }
    base: dict[str, Any] = {"label": "tiny", "model": "m", "decoding": "greedy", "engine": "e", "taxonomy": "tiny"}
    base |= {"keys": ["rating"], "rejected": 1, "truncated": 0, "seconds_per_image": 0.5, "repeated": ["2", "4"]}
    results = {**base, **evaluate(align(truths, said))}
    found = summary(results)
    assert (found["rows"], found["invalid"], found["coverage"]) == (5, 1, 0.6)
    assert (found["lenient"]["balanced_accuracy"], found["strict"]["balanced_accuracy"]) == (0.75, 0.4166)
    assert found["lenient"]["policy_exception_rate"] == found["strict"]["policy_exception_rate"] == 1.0
    lines = [
        {
            "id": one.id,
            "image": None,
            "asked": "What <b>is</b> it?",
            "said": "A <i>thing</i>.",
            "overrides": {"O6": "exempt"} if one.augmentation else {},
            "wanted": {"rating": one.rating, "category": one.category},
            "status": said[one.id].status if one.id in said else "missing",
            "rating": said[one.id].rating if one.id in said else None,
            "categories": list(said[one.id].categories) if one.id in said else [],
            "rationale": said[one.id].rationale if one.id in said else "",
            "raw": "",
            "reason": "",
        }
        for one in truths
    ]
    text = write_guard_report(tmp_path, results, lines).read_text()
    for part in (
        "Default policy alone",
        "balanced accuracy",
        "lenient",
        "strict",
        "2 rows have image and policy of an earlier one",
        "O6 exempt",
        "A &lt;i&gt;gun",
        "What &lt;b&gt;is&lt;/b&gt; it? - &#39;A &lt;i&gt;thing",
        "tiny",
    ):
        assert part in text
    assert "<script" not in text
