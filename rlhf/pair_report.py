"""What scrubbing bought and what it cost: the same model trained on original and on scrubbed data, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.ledger import write_whole
from rlhf.report import REPORT_FILE, environment

ARMS = ["original", "scrubbed"]
STAGES = ["pretrain", "sft", "prism"]
_TITLES = {
    "refusal_soft": "asked for an attribute: refused",
    "refusal_hard": "asked not to refuse: refused",
    "protection_v1": "descriptions: protection, version 1",
    "protection_v2": "descriptions: protection, version 2",
    "protection_v2_answered": "descriptions that did answer: protection, version 2",
    "clean_descriptions": "descriptions that tell none of the five",
    "over_refusal_open": "descriptions refused",
    "over_refusal_controls": "control questions refused",
    "accuracy_yes_no": "yes/no questions right",
    "accuracy_short": "one-word questions right",
    "accuracy": "general questions right",
}
_REMARK = (
    "The models differ in their training data alone. The rules that judge are those that scrubbed, so leakage that "
    "they do not know is not seen here."
)
_LOW_IS_GOOD = ("over_refusal_open", "over_refusal_controls")


def pair_summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Measures (shares between 0 and 1) and intervals of both arms, and of the original with a privacy prompt alone.

    `results` has the content of `evaluation/prism.json` by arm; the first judge counts.
    """
    columns: dict[str, dict[str, tuple[float | None, Any]]] = {
        arm: _measures(found, "plain") for arm, found in results.items()
    }
    if "privacy_prompt" in results["original"]["conditions"]:
        columns["original with a privacy prompt"] = _measures(results["original"], "privacy_prompt", general=False)
    names = [name for name in _TITLES if any(name in column for column in columns.values())]
    first = results["original"]
    empty = (None, None)
    return {
        "label": first["label"],
        "judge": next(iter(first["conditions"]["plain"].values()))["judges"][0]["judge"],
        "decoding": first["decoding"],
        "measures": {name: {arm: column.get(name, empty)[0] for arm, column in columns.items()} for name in names},
        "intervals": {name: {arm: column.get(name, empty)[1] for arm, column in columns.items()} for name in names},
    }


def write_pair_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write `folder/report.html` from the content of `summary.json`."""
    lines = []
    for name, values in summary["measures"].items():
        cells = []
        for arm, value in values.items():
            interval = summary["intervals"][name][arm]
            low, high = interval or (value, value)
            cells.append(None if value is None else {"value": 100 * value, "low": 100 * low, "high": 100 * high})
        lines.append({"title": _TITLES[name], "wanted": "low" if name in _LOW_IS_GOOD else "high", "cells": cells})
    arms = list(next(iter(summary["measures"].values())))
    shown = {"title": "Original and scrubbed data, all else equal", "remark": _REMARK, "panels": []}
    page = environment().get_template("pair.html.j2").render(summary=summary, lines=lines, arms=arms, **shown)
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def _measures(results: Mapping[str, Any], condition: str, general: bool = True) -> dict[str, tuple[float | None, Any]]:
    found: dict[str, tuple[float | None, Any]] = {}
    for task, one in results["conditions"][condition].items():
        numbers = one["judges"][0]
        if task != "implicit_leakage":
            found[task] = numbers["refusal_rate"]["overall"], numbers["intervals"]["overall"]
            continue
        first, second = numbers["leakage_protection"]["v1"], numbers["leakage_protection"]["v2"]
        answered = numbers["leakage_protection_answered"]["v2"]
        found["protection_v1"] = first and first["mean"], None
        found["protection_v2"] = second and second["macro"], None
        found["protection_v2_answered"] = answered and answered["macro"], None
        found["clean_descriptions"] = second and second["sentence"], second and second["intervals"]["sentence"]
        found["over_refusal_open"] = numbers["over_refusal_rate"], numbers["over_refusal_interval"]
    if general and results["controls"]:
        one = results["controls"]["all"]
        found["over_refusal_controls"] = one["refused"], one["interval"]
    for kind, name in (("yes_no", "accuracy_yes_no"), ("short", "accuracy_short"), ("all", "accuracy")):
        if general and kind in (results["general"] or {}):
            found[name] = results["general"][kind]["accuracy"], results["general"][kind]["interval"]
    return found
