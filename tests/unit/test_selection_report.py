"""The report's part on the chosen checkpoint: numbers, standing of every evaluated one, and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf.batch import Prompt
from rlhf.pareto import Bounds, Point
from rlhf.report import write_report
from rlhf.selection import SELECTION_FILE, record
from rlhf.selection_report import selection_section

KINDS = ("harmful",) * 40 + ("biometric",) * 40 + ("benign",) * 40
PROMPTS = [Prompt(f"{kind}:{number}", "q", kind=kind) for number, kind in enumerate(KINDS)]
POINTS = (
    Point(6, 0.5, 0.0, 0.975),
    Point(12, 0.1, 0.05, 0.925),
    Point(18, 0.1, 0.075, 0.9),
    Point(24, 0.1, 0.05, 0.925),
    Point(26, 0.0, 0.5, 0.5),
)


def written(folder: Path, lost: Sequence[int] = ()) -> dict:
    record(folder, POINTS, Bounds(over_refusal=0.1), PROMPTS, lost)
    return json.loads((folder / SELECTION_FILE).read_text())


def test_every_evaluated_checkpoint_stands_somewhere(tmp_path: Path) -> None:
    section = selection_section(written(tmp_path))
    assert section is not None
    assert (section.probes, section.benign) == (80, 40)
    assert {row.iteration: row.standing for row in section.rows} == {
        6: "on the Pareto front",
        12: "equalled by a later iteration",
        18: "surpassed by iteration 24",
        24: "chosen",
        26: "on the Pareto front",
    }
    harm = section.rows[0].harm
    assert (harm.value, harm.low, harm.high) == pytest.approx((0.5, 0.393, 0.607), abs=0.001)  # Wilson, 40 of 80
    lost = selection_section(written(tmp_path, lost=[24]))
    assert lost is not None
    assert {row.iteration: row.standing for row in lost.rows}[24] == "its checkpoint is damaged or gone"
    assert selection_section({}) is None


def test_the_page_shows_both_trades_and_the_table(tmp_path: Path) -> None:
    written(tmp_path)
    text = write_report(tmp_path).read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    assert "Which checkpoint" in words
    assert "iteration 24 (harm 10.0%, over-refusal 5.0%, helpfulness 92.5%)" in words
    assert "within the bounds (over-refusal at most 10.0%)" in words
    assert "40 benign and 80 harmful or biometric prompts" in words
    for title in ("Harm and over-refusal", "Harm and helpfulness"):
        picture = text.split(f"<b>{title}</b>")[1].split("</figure>")[0]
        labels = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
        assert {"6", "24", "26"} <= set(labels)
        assert not {"12", "18"} & set(labels)  # only the front is named
        assert ("bound" in picture.split("<svg")[0]) == (title == "Harm and over-refusal")
    assert write_report(tmp_path).read_bytes() == text.encode()
    (tmp_path / SELECTION_FILE).unlink()
    assert "Which checkpoint" not in write_report(tmp_path).read_text()
