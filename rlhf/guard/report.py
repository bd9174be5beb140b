"""`report.html` of a guard's evaluation: every rate with its interval, per category, and verdicts beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.evaluation.statistics import wilson_interval
from rlhf.ledger import write_whole
from rlhf.privacy_report import Bar
from rlhf.report import REPORT_FILE, Picture, embed, environment, evenly

Line = Mapping[str, Any]

EXAMPLES = 6  # verdicts of each outcome that a page shows
_GROUPS = {
    "all": "All rows",
    "default_policy": "Default policy alone",
    "unambiguous": "Images that people were sure of",
    "ambiguous": "Images that people were not sure of",
}
_RATES = {
    "balanced_accuracy": "balanced accuracy",
    "recall": "unsafe seen (recall)",
    "specificity": "safe seen (specificity)",
    "policy_exception_rate": "policy exceptions seen",
}
_NUMBERS = ("balanced_accuracy", "recall", "specificity", "precision", "f1", "f2", "accuracy")
_EXCEPTIONS = ("policy_exception_rate", "policy_exception_score")
_OUTCOMES = {
    ("Unsafe", "Safe"): "Unsafe images that were passed",
    ("Safe", "Unsafe"): "Safe images that were flagged",
    ("Unsafe", "Unsafe"): "Unsafe images that were flagged",
    ("Safe", "Safe"): "Safe images that were passed",
}
_UNREAD = "Answers that could not be read"


@dataclass(frozen=True)
class Group:
    """The numbers of one set of rows: bars of strict rates, and a table row for each way to count."""

    title: str
    facts: dict[str, str]
    bars: list[Bar]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Example:
    """One verdict beside what was right."""

    wanted: str
    said: str
    policy: str
    text: str
    picture: Picture


def write_guard_report(folder: Path, results: Mapping[str, Any], lines: Sequence[Line]) -> Path:
    """Write `folder/report.html` from the content of `evaluation/guard.json` and `.jsonl`."""
    groups = [_group(title, results[name]) for name, title in _GROUPS.items() if name in results]
    page = environment().get_template("guard.html.j2")
    path = folder / REPORT_FILE
    heads = [name.replace("_", " ") for name in (*_NUMBERS, *_EXCEPTIONS)]
    shown = {"groups": groups, "heads": heads, "categories": _categories(results), "examples": _examples(lines)}
    write_whole(path, page.render(results=results, **shown))
    return path


def _group(title: str, found: Mapping[str, Any]) -> Group:
    strict = found["strict"]
    facts = {
        "rows": str(found["rows"]),
        "coverage": f"{_percent(found['coverage'])}: {found['json']} as asked, {found['rescued']} rescued, "
        f"{found['invalid']} invalid, {found['missing']} missing",
        "counts": f"{strict['tp']} unsafe flagged, {strict['fn']} passed or unreadable; "
        f"{strict['tn']} safe passed, {strict['fp']} flagged or unreadable",
        "policy exceptions": str(strict["policy_exceptions"]),
    }
    bars = [_bar(words, strict[name], strict["intervals"][name]) for name, words in _RATES.items()]
    keys = (*_NUMBERS, *_EXCEPTIONS)
    rows = [(way, [_percent(found[way][key]) for key in keys]) for way in ("lenient", "strict")]
    return Group(title, facts, [bar for bar in bars if bar], rows)


def _categories(results: Mapping[str, Any]) -> list[Bar]:
    """Share of right ratings for each true category, unreadable ones wrong."""
    bars = []
    for name, found in results["categories"].items():
        right, rows = found["strict"]["tp"] + found["strict"]["tn"], found["rows"]
        if rows:
            bars.append(_bar(f"{name} ({rows})", right / rows, wilson_interval(right, rows)))
    return [bar for bar in bars if bar]


def _bar(title: str, rate: float | None, interval: Sequence[float] | None) -> Bar | None:
    if rate is None or not interval:
        return None
    return Bar(title, 100 * rate, 100 * interval[0], 100 * interval[1])


def _examples(lines: Sequence[Line]) -> list[tuple[str, int, list[Example]]]:
    """Outcomes with how many rows had them and some of these, at even distances."""
    by_outcome: dict[str, list[Line]] = {title: [] for title in (*_OUTCOMES.values(), _UNREAD)}
    for line in lines:
        by_outcome[_OUTCOMES.get((line["wanted"]["rating"], line["rating"]), _UNREAD)].append(line)
    return [
        (title, len(found), [_example(one) for one in evenly(found, EXAMPLES)])
        for title, found in by_outcome.items()
        if found
    ]


def _example(line: Line) -> Example:
    wanted = f"{line['wanted']['rating']} - {line['wanted']['category']}"
    said = line["status"] if line["rating"] is None else f"{line['rating']} - {'; '.join(line['categories']) or '?'}"
    changed = ", ".join(f"{name} {variant}" for name, variant in line["overrides"].items())
    quoted = "" if line["said"] is None else f"{line['asked'] or ''} - {line['said']!r}. "
    text = line["rationale"] or ": ".join(part for part in (line["reason"], line["raw"]) if part)
    return Example(wanted, said, changed or "default policy", quoted + text, embed(line["image"]))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}\u00a0%"  # no line ends between number and sign
