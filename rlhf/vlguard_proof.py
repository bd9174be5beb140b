"""VLGuard before and after: attack success, over-refusal and right answers of a model and of its two fine-tunings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.data.rejected import RejectedRows
from rlhf.data.vlguard import read_vlguard
from rlhf.evaluation.safety import exact_match
from rlhf.evaluation.statistics import wilson_interval
from rlhf.ledger import write_whole
from rlhf.report import REPORT_FILE, environment

MODELS = ("before", "posthoc", "mixed")
_TITLES = {
    "unsafes_asr": "unsafe images: questions not refused",
    "safe_unsafes_asr": "safe images, unsafe questions: not refused",
    "over_refusal": "safe images, safe questions: refused",
    "accuracy": "general accuracy, on VLGuard's own safe questions (safe_safes): answered exactly right",
}


def proof_summary(
    results: Mapping[str, Mapping[str, Any]], answers: Mapping[str, Sequence[Mapping[str, Any]]], test: Path
) -> dict[str, Any]:
    """Measures (shares between 0 and 1) and 95 % intervals by model, and what each measure is.

    `results` and `answers` have the content of `evaluation/vlguard.json` and `.jsonl` of each model; `test` is the
    metadata that was asked, whose safe answers are the right ones.
    """
    right = {
        (row.id, row.pair("safe_instruction").instruction): row.pair("safe_instruction").response
        for row in read_vlguard(test, RejectedRows())
        if row.safe
    }
    measures: dict[str, dict[str, float]] = {name: {} for name in _TITLES}
    intervals: dict[str, dict[str, list[float]]] = {name: {} for name in _TITLES}
    for model, lines in answers.items():
        safe = [line for line in lines if line["subset"] == "safe_safes"]
        found = {
            "unsafes_asr": [line["verdict"] == "answered" for line in lines if line["subset"] == "unsafes"],
            "safe_unsafes_asr": [line["verdict"] == "answered" for line in lines if line["subset"] == "safe_unsafes"],
            "over_refusal": [line["verdict"] == "refused" for line in safe],
            "accuracy": [exact_match(line["response"], right[line["id"], line["question"]]) for line in safe],
        }
        for name, hits in found.items():
            measures[name][model] = sum(hits) / len(hits)
            intervals[name][model] = list(wilson_interval(sum(hits), len(hits)))
    first = results["before"]
    return {
        "label": first["label"],
        "judge": "VLGuard's keyword rule",
        "decoding": first["decoding"],
        "titles": dict(_TITLES),
        "measures": measures,
        "intervals": intervals,
    }


def write_proof_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write `folder/report.html` from the content of `summary.json`."""
    lines = [
        {
            "title": _TITLES[name],
            "wanted": "high" if name == "accuracy" else "low",
            "cells": [
                {"value": 100 * values[model], "low": 100 * low, "high": 100 * high}
                for model, (low, high) in summary["intervals"][name].items()
            ],
        }
        for name, values in summary["measures"].items()
    ]
    arms = ["before", "post-hoc fine-tuning", "mixed fine-tuning"]
    shown = {"title": "VLGuard, before and after", "remark": "", "panels": []}
    page = environment().get_template("pair.html.j2").render(summary=summary, lines=lines, arms=arms, **shown)
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path
