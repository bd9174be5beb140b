"""A guard as the reward of PPO: a model before it, and after it with a bound on over-refusal and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf.constraints import ConstraintConfig
from rlhf.curves import Panel, compared
from rlhf.inference import Decoding
from rlhf.ledger import write_whole
from rlhf.monitors import hacking_signs
from rlhf.report import REPORT_FILE, environment

RUNS = ("constrained", "unconstrained")
_COLUMNS = {  # of the summary -> run, moment
    "before": ("constrained", "before"),
    "constrained": ("constrained", "after"),
    "unconstrained": ("unconstrained", "after"),
}
_RATES = {  # measure -> its name in evaluation/summary.json, and what it is
    "harmful_refusal": ("harmful_refusal_rate", "harmful questions refused"),
    "biometric_refusal": ("biometric_refusal_rate", "biometric questions refused"),
    "benign_accuracy": ("benign_accuracy", "harmless questions answered exactly right"),
    "over_refusal": ("over_refusal_rate", "harmless questions refused"),
}
_LAST = 5  # iterations that a cost at the end of training is the mean of

Row = Mapping[str, Any]


def proof_summary(
    evaluations: Mapping[str, Row],
    metrics: Mapping[str, Sequence[Row]],
    constraint: ConstraintConfig,
    harmful_refusal: float,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Measures (shares of 1) with 95 % intervals, the bound and what held it, and whether the bars are met.

    `evaluations` and `metrics` have the content of `evaluation/summary.json` and `metrics.jsonl` by run; both runs
    began with the same model. Bars are of the constrained run: `harmful_refusal` at least, over-refusal at most its
    bound.
    """
    after = {name: evaluations["constrained"]["after"][rate] for name, (rate, _) in _RATES.items()}
    bars: dict[str, dict[str, Any]] = {
        "harmful_refusal": {"at_least": harmful_refusal, "found": after["harmful_refusal"]},
        "over_refusal": {"at_most": constraint.max, "found": after["over_refusal"]},
    }
    bars["harmful_refusal"]["met"] = after["harmful_refusal"] >= harmful_refusal
    bars["over_refusal"]["met"] = after["over_refusal"] <= constraint.max
    first = evaluations["constrained"]
    return {
        "label": first["label"],
        "judge": "phrase rules (rlhf/evaluation/safety.py)",
        "decoding": Decoding(max_new_tokens=max_new_tokens).words,
        "prompts": {kind: int(first["after"][f"n_{kind}"]) for kind in ("harmful", "biometric", "benign")},
        "measures": {
            name: {column: evaluations[run][moment][rate] for column, (run, moment) in _COLUMNS.items()}
            for name, (rate, _) in _RATES.items()
        },
        "intervals": {
            name: {
                column: list(evaluations[run]["intervals"][moment][rate]) for column, (run, moment) in _COLUMNS.items()
            }
            for name, (rate, _) in _RATES.items()
        },
        "constraint": {"cost": constraint.name, "max": constraint.max, **_lambdas(metrics["constrained"], constraint)},
        "cost_at_the_end_of_training": {run: _end(metrics[run], f"score/cost/{constraint.name}") for run in RUNS},
        "signs": {run: hacking_signs(metrics[run]) for run in RUNS},
        "bars": bars,
        "met": all(bar["met"] for bar in bars.values()),
    }


def write_proof_report(folder: Path, summary: Row, metrics: Mapping[str, Sequence[Row]]) -> Path:
    """Write `folder/report.html` from the content of `summary.json`, with both runs' curves."""
    lines = [
        {
            "title": _RATES[name][1],
            "wanted": "low" if name == "over_refusal" else "high",
            "cells": [
                {"value": 100 * values[column], "low": 100 * low, "high": 100 * high}
                for column, (low, high) in summary["intervals"][name].items()
            ],
        }
        for name, values in summary["measures"].items()
    ]
    shown = {
        "title": "A guard as the reward, with a bound on over-refusal and without",
        "remark": " ".join(
            [
                *(_bar(name, bar) for name, bar in summary["bars"].items()),
                *(f"Look into the {run} run: {sign}." for run, signs in summary["signs"].items() for sign in signs),
            ]
        ),
        "arms": ["before", "with the bound", "without it"],
        "panels": _panels(summary["constraint"]["cost"], metrics),
    }
    page = environment().get_template("pair.html.j2").render(summary=summary, lines=lines, **shown)
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def _lambdas(rows: Sequence[Row], constraint: ConstraintConfig) -> dict[str, float]:
    """The multiplier of the last iteration, and the largest one."""
    values = [float(row[f"constraint/{constraint.name}_lambda"]) for row in rows]
    return {"final_lambda": values[-1], "largest_lambda": max(values)}


def _end(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return fmean(values[-_LAST:]) if values else None


def _bar(name: str, bar: Row) -> str:
    wanted = f"at least {100 * bar['at_least']:g} %" if "at_least" in bar else f"at most {100 * bar['at_most']:g} %"
    met = "met" if bar["met"] else "not met"
    return f"Bar: with the bound {_RATES[name][1]} {wanted}: {100 * bar['found']:.1f} %, {met}."


def _panels(cost: str, metrics: Mapping[str, Sequence[Row]]) -> list[Panel]:
    parts = sorted({key for rows in metrics.values() for row in rows for key in row if key.startswith("score/part/")})
    found = [
        compared("Over-refusal", "Harmless questions refused, of the sampled ones.", f"score/cost/{cost}", metrics),
        compared("Lambda", "What one such refusal costs.", f"constraint/{cost}_lambda", metrics, exact=True),
        *(compared(key.removeprefix("score/part/"), "Mean part of the score.", key, metrics) for key in parts),
        compared("KL to the reference", "Nats per response.", "kl/sequence", metrics),
    ]
    return [panel for panel in found if panel is not None]
