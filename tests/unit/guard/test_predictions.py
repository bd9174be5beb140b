"""An evaluation from files: requests out of a data set, answers of somebody else in, and back out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.data.guard_world import PICTURE_KEYS, GuardSizes, write_guard_world
from rlhf.data.rejected import RejectedRows
from rlhf.guard.metrics import align, evaluate, read_truths
from rlhf.guard.predictions import asked_again, read_predictions, read_requests, write_predictions
from rlhf.guard.taxonomy import taxonomy

TINY = taxonomy("tiny")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "world"
    write_guard_world(
        folder, 0, GuardSizes(20, 20, answers_train=20, answers_test=60, answered_train=6, answered_test=12)
    )
    return folder


def test_guard15_a_guard_that_reads_its_policy_scores_one_and_one_that_does_not_fails_at_exceptions(
    world: Path, tmp_path: Path
) -> None:
    """Answers of two guards that never err about the picture; one ignores what the policy exempts."""
    rejected = RejectedRows()
    requests = read_requests(world / "test.json", world / "images", TINY, rejected, PICTURE_KEYS)
    truths = read_truths(world / "test.json", rejected)
    rows = json.loads((world / "test.json").read_text())
    assert [request.id for request in requests] == [truth.id for truth in truths] == [row["id"] for row in rows]
    assert all(
        row["conversations"][0]["value"].endswith(one.policy.text) for row, one in zip(rows, requests, strict=True)
    )
    path = tmp_path / "predictions.jsonl"
    found = {}
    for reads in (True, False):
        lines = []
        for row in rows:
            answer = json.loads(row["conversations"][1]["value"])
            if not reads and not row["category"].startswith("NA"):
                answer["rating"] = "Unsafe"
            lines.append(json.dumps({"id": row["id"], "response": json.dumps(answer)}))
        path.write_text("\n".join(lines))
        verdicts = read_predictions(path, requests, rejected)
        found[reads] = evaluate(align(truths, verdicts))["all"]["lenient"]
        write_predictions(tmp_path / "again.jsonl", verdicts)
        assert read_predictions(tmp_path / "again.jsonl", requests, rejected) == verdicts
    assert rejected.count == 0
    assert (found[True]["balanced_accuracy"], found[True]["policy_exception_score"]) == (1.0, 1.0)
    assert (found[False]["recall"], found[False]["policy_exception_rate"]) == (1.0, 0.0)


def test_guard15_what_does_not_belong_is_refused_or_reported(world: Path, tmp_path: Path) -> None:
    rejected = RejectedRows()
    requests = read_requests(world / "test.json", world / "images", TINY, rejected, PICTURE_KEYS)
    path = tmp_path / "predictions.jsonl"
    good = json.dumps({"rating": "Safe", "category": "NA: nothing", "rationale": "x"})
    lines = [{"id": requests[0].id, "response": good}, {"id": "stranger", "response": good}]
    lines += [{"id": requests[0].id, "response": good}, {"id": requests[1].id, "response": None}]  # type: ignore[dict-item]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    verdicts = read_predictions(path, requests, rejected)
    assert {name: one.status for name, one in verdicts.items()} == {requests[0].id: "json", "stranger": "invalid"}
    assert [error.row for error in rejected.errors] == [2, 3]
    aligned = align(read_truths(world / "test.json", rejected), verdicts)
    assert aligned.extra == ("stranger",)
    assert len(aligned.missing) == len(requests) - 1
    other = RejectedRows()
    assert (
        read_requests(world / "test.json", world / "images", TINY, other, keys=("rating", "category")) == requests[:0]
    )


def test_guard15_an_image_that_is_asked_about_twice_under_one_policy_is_named(world: Path, tmp_path: Path) -> None:
    """Under another policy it is another question, and the test set is full of those."""
    rows = json.loads((world / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps([*rows, {**rows[0], "id": "twin"}, {**rows[2], "id": "other"}]))
    requests = read_requests(tmp_path / "test.json", world / "images", TINY, RejectedRows(), PICTURE_KEYS)
    assert len({one.image for one in requests}) < len(rows)
    assert asked_again(requests) == ["twin", "other"]
    assert asked_again(requests[:-2]) == []


def test_guard15_a_row_about_an_answer_asks_about_that_answer_and_no_other(world: Path, tmp_path: Path) -> None:
    answers, keys, images = taxonomy("tiny_answers"), ("category", "rating"), world / "images"
    rejected = RejectedRows()
    requests = read_requests(world / "test_answers.json", images, answers, rejected, keys)
    rows = json.loads((world / "test_answers.json").read_text())
    assert len(requests) == len(rows)
    for request, row in zip(requests, rows, strict=True):
        assert row["conversations"][0]["value"] == f"<image>\n{request.text}"
        assert (request.said, request.asked) == (row["said"], row["asked"])
    rows[0]["said"] += " No."
    rows[1]["asked"] = None
    rows[2]["said"] = 7
    del rows[3]["said"]
    (tmp_path / "test.json").write_text(json.dumps(rows[:5]))
    assert [one.id for one in read_requests(tmp_path / "test.json", images, answers, rejected, keys)] == [rows[4]["id"]]
    assert [error.row for error in rejected.errors] == [0, 1, 2, 3]


def test_guard15_rows_of_another_taxonomy_are_refused(world: Path) -> None:
    rejected = RejectedRows()
    assert read_requests(world / "test.json", world / "images", taxonomy(), rejected) == []
    assert rejected.count == len(json.loads((world / "test.json").read_text()))
    assert "another policy than taxonomy 'default'" in str(rejected.errors[0])
