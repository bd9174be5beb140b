"""An evaluation from files: requests out of a data set, answers of somebody else in, and back out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.guard_world import PICTURE_KEYS, GuardSizes, write_guard_world
from rlhf.data.rejected import RejectedRows
from rlhf.guard.metrics import align, evaluate, read_truths
from rlhf.guard.predictions import read_predictions, read_requests, repetitions, write_predictions
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import parse_verdict

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
    """A copy of its file is that image. Under another policy it is another question; the test set is full of those."""
    shutil.copytree(world / "images", tmp_path / "images")
    rows: list[dict[str, Any]] = json.loads((world / "test.json").read_text())
    shutil.copy(tmp_path / "images" / rows[0]["image"], tmp_path / "images" / "copy.jpg")
    other = "Safe" if rows[2]["rating"] == "Unsafe" else "Unsafe"
    more = [
        {**rows[0], "id": "twin"},
        {**rows[0], "id": "copied", "image": "copy.jpg"},
        {**rows[2], "id": "turned", "rating": other},
        {**rows[4], "id": "moved", "category": "O9: nobody's"},
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows + more))

    def found(check: bool = True, count: int | None = None) -> dict[str, Any]:
        requests = read_requests(
            tmp_path / "test.json", tmp_path / "images", TINY, RejectedRows(), PICTURE_KEYS, check_images=check
        )
        truths = read_truths(tmp_path / "test.json", RejectedRows())
        assert len({one.image for one in requests}) < len(rows)
        return repetitions(requests[:count], truths)

    contradictions = [[rows[2]["id"], "turned"], [rows[4]["id"], "moved"]]
    assert found() == {"repeated": ["twin", "copied", "turned", "moved"], "contradictions": contradictions}
    assert found(count=len(rows)) == {"repeated": [], "contradictions": []}
    shutil.rmtree(tmp_path / "images")  # without files a path is what is known of an image
    assert found(check=False) == {"repeated": ["twin", "turned", "moved"], "contradictions": contradictions}


def test_guard15_own_lines_are_read_again_whatever_is_said(world: Path, tmp_path: Path) -> None:
    """U+2028 and its like end no line of JSON; half a character is no text."""
    requests = read_requests(world / "test.json", world / "images", TINY, RejectedRows(), PICTURE_KEYS)[:2]
    odd = "A\u2028b\u2029c\u0085d\x1ce \ud800f"
    text = json.dumps({"category": "NA: nothing", "rating": "Safe", "rationale": odd}, ensure_ascii=False)
    verdicts = {one.id: parse_verdict(text, one.policy) for one in requests}
    assert {one.status for one in verdicts.values()} == {"json"}
    path, rejected = tmp_path / "predictions.jsonl", RejectedRows()
    write_predictions(path, verdicts)
    assert read_predictions(path, requests, rejected) == verdicts
    assert rejected.count == 0
    lines = [{"id": requests[0].id, "response": "\ud800"}, {"id": "half \ud800", "response": text}]
    deep = '{"id": "deep", "response": ' + "[" * 3000 + "]" * 3000 + "}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + deep)
    (said,) = read_predictions(path, requests, rejected).values()
    assert said.raw == "\ufffd"
    assert ["half a character" in rejected.errors[0].reason, "too deeply" in rejected.errors[1].reason] == [True, True]


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
