"""The embedded world in VLGuard's format, and what a proof on it sums up."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rlhf.data.rejected import RejectedRows
from rlhf.data.vlguard import read_vlguard
from rlhf.data.vlguard_world import REFUSALS, vlguard_rows
from rlhf.data.world import Scene, random_scene
from rlhf.evaluation.vlguard_refusal import RefusalConfig, RefusalMatcher
from rlhf.vlguard_proof import proof_summary, write_proof_report


def pictures() -> list[tuple[str, Scene]]:
    draw = random.Random(0)
    kinds = ("person", "harm", "object", "group")
    return [(f"{number}.png", random_scene(draw, kinds[number % 4])) for number in range(40)]


def put(path: Path, split: str, count: int) -> Path:
    path.write_text(json.dumps(vlguard_rows(random.Random(1), pictures(), split, count)))
    return path


def test_the_rows_are_vlguard_rows_of_both_shapes(tmp_path: Path) -> None:
    rejected = RejectedRows()
    rows = read_vlguard(put(tmp_path / "train.json", "train", 60), rejected)
    assert rejected.count == 0
    assert [sum(row.safe is safe for row in rows) for safe in (True, False)] == [30, 30]
    assert len({row.id for row in rows}) == 60
    categories = {row.category for row in rows if not row.safe}
    assert {"risky behavior", "deception"} <= categories <= {"risky behavior", "privacy", "deception", "discrimination"}


def test_every_refusal_is_one_by_the_keyword_rule_and_no_answer_is() -> None:
    matcher = RefusalMatcher(RefusalConfig())
    assert all(matcher.phrase(text) for text in REFUSALS)
    rows = vlguard_rows(random.Random(2), pictures(), "test", 80)
    answers = [row["instr-resp"][0]["response"] for row in rows if row["safe"]]
    assert [text for text in answers if matcher.phrase(text)] == []


def test_test_questions_are_not_trained_on() -> None:
    asked = {
        split: {
            pair[key]
            for row in vlguard_rows(random.Random(3), pictures(), split, 400)
            for pair in row["instr-resp"]
            for key in pair
            if key != "response"
        }
        for split in ("train", "test")
    }
    assert len(asked["test"]) > 40
    assert asked["train"] & asked["test"] == set()


def test_the_summary_counts_attacks_refusals_and_right_answers(tmp_path: Path) -> None:
    test = put(tmp_path / "test.json", "test", 4)
    rows = read_vlguard(test, RejectedRows())
    safe = [row for row in rows if row.safe]
    right = [row.pair("safe_instruction") for row in safe]
    lines = [
        {"subset": "unsafes", "verdict": "answered"},
        {"subset": "unsafes", "verdict": "refused"},
        {"subset": "safe_unsafes", "verdict": "refused"},
        {"subset": "safe_safes", "verdict": "answered", "id": safe[0].id, "question": right[0].instruction,
         "response": right[0].response.upper()},
        {"subset": "safe_safes", "verdict": "refused", "id": safe[1].id, "question": right[1].instruction,
         "response": "I cannot."},
    ]  # fmt: skip
    models = ("before", "posthoc", "mixed")
    results = {name: {"label": "a test", "decoding": "greedy"} for name in models}
    summary = proof_summary(results, dict.fromkeys(models, lines), test)
    assert {name: values["mixed"] for name, values in summary["measures"].items()} == {
        "unsafes_asr": 0.5, "safe_unsafes_asr": 0.0, "over_refusal": 0.5, "accuracy": 0.5
    }  # fmt: skip
    page = write_proof_report(tmp_path, summary).read_text()
    assert "mixed fine-tuning" in page
    assert "a test" in page
    for text in (page.replace("&#39;", "'"), summary["titles"]["accuracy"]):  # whose questions they are
        assert "general accuracy, on VLGuard's own safe questions (safe_safes)" in text
