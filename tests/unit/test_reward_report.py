"""The reward model's part of a report: its numbers, its words, and that other runs do not have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.batch import PreferencePair, Prompt
from rlhf.evaluation.reward_model import ScoredPair, record, summarise
from rlhf.report import write_report
from rlhf.reward_report import calibration_in_words, length_in_words, reward_section


def pair(number: int, margin: float, lengths: tuple[int, int], kind: str = "hardq", category: str = "") -> ScoredPair:
    prompt = Prompt(f"{kind}:{number}", "<script>q</script>", question_type=kind, category=category)
    return ScoredPair(PreferencePair(prompt, "a", "b"), margin, 0.0, *lengths)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [pair(n, 1.0 if n % 4 else -1.0, (n % 7, n % 5), category="<b>Privacy") for n in range(40)]
    rows += [pair(n, 2.0, (4, 6), kind="all") for n in range(20)]
    record(tmp_path, rows, summarise(rows))
    lines = [{"step": 1, "time": 0.0, "loss": 0.7, "accuracy": 0.5}, {"step": 1, "time": 0.0, "validation/loss": 0.6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_report_shows_accuracy_by_type_and_class_reliability_and_length(folder: Path) -> None:
    text = write_report(folder).read_text()
    assert "83.3 %" in text  # 30 of 40 and 20 of 20
    assert "Hard questions" in text
    assert "75.0 %" in text
    assert "59.8 – 85.8" in text  # Wilson, 30 of 40
    assert "60 pairs of unequal length" not in text  # some are equally long
    for title in ("Reliability", "Margins", "Calibration", "Length"):
        assert f">{title}<" in text
    assert "&lt;b&gt;Privacy" in text
    assert "<b>Privacy" not in text
    assert "is absent" in text  # config.yaml
    assert "evaluation/before.jsonl" not in text  # nobody answers prompts here
    assert write_report(folder).read_bytes() == text.encode()


def test_other_runs_have_no_such_section(folder: Path) -> None:
    (folder / "evaluation" / "reward_model.json").unlink()
    text = write_report(folder).read_text()
    assert "Reliability" not in text
    assert "evaluation/before.jsonl" in text
    assert reward_section({}) is None


def length(rank: float | None, by_label: float, by_score: float, pairs: int = 400) -> str:
    longer = {"pairs": pairs, "by_label": by_label, "by_score": by_score}
    return length_in_words({"within_pairs": {"pearson": rank, "spearman": rank}, "longer_preferred": longer})


def test_length_in_words() -> None:
    assert "hardly depends on length (rank correlation +0.04)." in length(0.04, 0.5, 0.52)
    assert "no taste for length can be measured" in length(0.04, 0.5, 0.52)
    strong = length(0.62, 0.5, 0.8)
    assert "depends strongly on length (rank correlation +0.62): longer answers score higher" in strong
    assert "scores higher in 80 % and is the preferred one in 50 %" in strong
    assert "may learn to write longer answers" in strong
    assert "may learn to write shorter answers" in length(-0.4, 0.5, 0.2)
    # a taste that the data have too is not the model's own, and a few pairs prove nothing
    assert "no taste for length can be measured" in length(-0.4, 0.2, 0.2)
    assert "no taste for length can be measured" in length(0.4, 0.5, 0.75, pairs=8)
    assert "cannot be judged" in length(None, 0.5, 0.5)


def test_calibration_in_words() -> None:
    def table(predicted: float, observed: float) -> str:
        return calibration_in_words({"bins": [
            {"pairs": 50, "predicted": predicted, "observed": observed},
            {"pairs": 50, "predicted": 1 - predicted, "observed": 1 - observed},
            {"pairs": 0, "predicted": None, "observed": None},
        ]})  # fmt: skip

    assert table(0.95, 0.75) == "On average it is 20 points more sure than it is right."
    assert table(0.6, 0.9) == "On average it is 30 points less sure than it is right."
    assert table(0.8, 0.8) == "On average it is about as sure as it is right."
