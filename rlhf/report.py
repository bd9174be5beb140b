"""`report.html`: one self-contained page about a run, made from the files of its run folder and nothing else.

Images are embedded and curves are inline SVG. Model output is hostile input: it is escaped, and a content security
policy forbids scripts and every outside address. The page works for every kind of run: missing parts are named.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from rlhf.curves import panels, short
from rlhf.data.images import load_image
from rlhf.data.rows import read_json
from rlhf.errors import DataError, ImageError
from rlhf.evaluation.reward_model import RESULTS_FILE
from rlhf.ledger import write_whole
from rlhf.metrics import METRICS_FILE, SAMPLES_FILE, read_json_lines
from rlhf.monitors import hacking_signs
from rlhf.reward_report import reward_section
from rlhf.selection import SELECTION_FILE
from rlhf.selection_report import selection_section

Row = dict[str, Any]
Item = TypeVar("Item")

REPORT_FILE = "report.html"
PROMPTS_PER_KIND = 8
SAMPLE_STEPS = 6
SAMPLES_PER_STEP = 4
IMAGE_SIDE = 320  # pixels; larger images are scaled down before they are embedded

_TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {
    "harmful": "Harmful questions, which should be refused",
    "biometric": "Biometric questions about people, which should be refused",
    "benign": "Benign questions, which should be answered",
}
# a run that trains a reward model answers no prompts
_OF_POLICIES = ("evaluation/summary.json", "evaluation/before.jsonl", "evaluation/after.jsonl", SAMPLES_FILE)
_UNVEILED = ("benign", "biometric")  # kinds whose images are shown at once; all others are blurred at first


@dataclass(frozen=True)
class Picture:
    """An embedded image, or the reason why there is none."""

    path: str
    uri: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Measure:
    """A measured value and, for rates, its 95 % interval (shares of 1). None where nothing was measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A row of the before -> after table. `change` is a word only where two intervals could be compared."""

    title: str
    wanted: str
    count: int
    before: Measure
    after: Measure
    change: str


@dataclass(frozen=True)
class Answer:
    """A judged response: `tone` is good or bad, `verdict` says why in words."""

    text: str
    score: float | None
    truncated: bool
    verdict: str
    tone: str


@dataclass(frozen=True)
class Card:
    """One prompt of the gallery with its answers before and after."""

    question: str
    expected: str
    picture: Picture
    veiled: bool
    before: Answer | None
    after: Answer | None


@dataclass(frozen=True)
class Shelf:
    """All prompts of a kind: how the verdicts changed ("bad to good": 97, ...) and a few of them as cards."""

    kind: str
    title: str
    count: int
    changes: dict[str, int]
    cards: list[Card]


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` from the run folder's files and return its path.

    Raises DataError when the folder does not exist or one of its files is damaged.
    """
    if not folder.is_dir():
        raise DataError("no such run folder", source=str(folder))
    absent: list[tuple[str, str]] = []

    def read(name: str, purpose: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        if (folder / name).exists():
            return reader(folder / name)
        absent.append((name, purpose))
        return empty

    reward = reward_section(_if_there(folder / RESULTS_FILE))
    selection = selection_section(_if_there(folder / SELECTION_FILE))
    metrics = read(METRICS_FILE, "no curves", read_json_lines, [])
    summary = read("evaluation/summary.json", "no before and after table", read_json, {})
    before = read("evaluation/before.jsonl", "no answers from before training", read_json_lines, [])
    after = read("evaluation/after.jsonl", "no answers from after training", read_json_lines, [])
    samples = read(SAMPLES_FILE, "no samples over training", read_json_lines, [])
    config = read("config.yaml", "no configuration", Path.read_text, "")
    main_panels, other_panels = panels(metrics)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            name=_run_name(config, folder),
            label=summary.get("label") or "",
            facts=_facts(metrics),
            comparisons=compare(summary),
            scores=[_measure(summary, moment, "mean_score") for moment in ("before", "after")],
            panels=main_panels,
            other_panels=other_panels,
            shelves=gallery(before, after),
            samples=samples_over_training(samples),
            config=config,
            absent=[one for one in absent if not (reward and one[0] in _OF_POLICIES)],
            reward=reward,
            selection=selection,
        )
    )
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def compare(summary: Mapping[str, Any]) -> list[Comparison]:
    """The rows of the before -> after table from `summary.json`, without rates that neither side measured."""
    rows = []
    for key, title, higher_is_better, count in (
        ("harmful_refusal_rate", "Harmful questions refused", True, "n_harmful"),
        ("biometric_refusal_rate", "Biometric questions refused", True, "n_biometric"),
        ("benign_accuracy", "Benign questions answered right", True, "n_benign"),
        ("over_refusal_rate", "Benign questions refused", False, "n_benign"),
    ):
        before, after = _measure(summary, "before", key), _measure(summary, "after", key)
        if before.value is None and after.value is None:
            continue
        total = max(int(summary.get(moment, {}).get(count) or 0) for moment in ("before", "after"))
        wanted = "higher is better" if higher_is_better else "lower is better"
        rows.append(Comparison(title, wanted, total, before, after, _change(before, after, higher_is_better)))
    return rows


def gallery(before: Sequence[Row], after: Sequence[Row]) -> list[Shelf]:
    """For each kind of prompt, how its verdicts changed, and prompts at even distances so that nobody picked them."""
    earlier, later = ({row["id"]: row for row in rows} for rows in (before, after))
    both = bool(earlier and later)
    rows = [row for row in (after or before) if not both or row["id"] in earlier]
    found = {row["kind"] for row in rows}
    shelves = []
    for kind in [*(kind for kind in _KINDS if kind in found), *sorted(found - set(_KINDS))]:
        mine = [row for row in rows if row["kind"] == kind]
        answers = [(_answer(earlier.get(row["id"])), _answer(later.get(row["id"]))) for row in mine]
        cards = [
            Card(row["question"], row.get("answer") or "", embed(row.get("image")), kind not in _UNVEILED, old, new)
            for row, (old, new) in evenly(list(zip(mine, answers, strict=True)), PROMPTS_PER_KIND)
        ]
        shelves.append(Shelf(kind, _KINDS.get(kind, kind or "Other prompts"), len(mine), _changes(answers), cards))
    return shelves


def samples_over_training(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """A few steps from first to last, each with its first samples; every row gains "picture" and "veiled"."""
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    chosen = evenly(sorted(by_step), SAMPLE_STEPS)
    return [(step, [_sample(row) for row in by_step[step][:SAMPLES_PER_STEP]]) for step in chosen]


def embed(path: str | None) -> Picture:
    """An image file as a JPEG data URI of at most `IMAGE_SIDE` pixels a side; a bad file becomes a stated problem."""
    if not path:
        return Picture("", problem="no image")
    try:
        image = load_image(path)
    except ImageError as error:
        return Picture(path, problem=error.reason)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=84)
    return Picture(path, uri="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))


def environment() -> Environment:
    """Templates of all pages: everything is escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at even distances from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(position * (len(items) - 1) / (count - 1))] for position in range(count)]


def _if_there(path: Path) -> Row:
    return read_json(path) if path.exists() else {}


def _run_name(config: str, folder: Path) -> str:
    tree = yaml.safe_load(config) or {}
    run = tree.get("run") if isinstance(tree, dict) else None
    name = run.get("name") if isinstance(run, dict) else None
    return str(name or folder.resolve().name)


def _facts(metrics: Sequence[Row]) -> list[tuple[str, str]]:
    if not metrics:
        return []
    facts = [("last step", f"{metrics[-1]['step']:,}")]
    if all("time" in row for row in (metrics[0], metrics[-1])):
        minutes, seconds = divmod(round(metrics[-1]["time"] - metrics[0]["time"]), 60)
        facts.append(("from first to last step", f"{minutes:,} min {seconds:02d} s"))
    for key, title in (("seconds/total", "mean step"), ("seconds/step", "mean step")):
        values = [row[key] for row in metrics if row.get(key) is not None]
        if values:
            facts.append((title, f"{short(sum(values) / len(values))} s"))
    if fills := [row["batch/fill"] for row in metrics if row.get("batch/fill") is not None]:
        facts.append(("of a batch is no padding", f"{sum(fills) / len(fills):.1%}"))
    facts += [("look into", sign) for sign in hacking_signs(metrics)]
    return facts


def _measure(summary: Mapping[str, Any], moment: str, key: str) -> Measure:
    value = summary.get(moment, {}).get(key)
    if value is None or value != value:  # NaN: a rate over no prompts
        return Measure(None)
    low, high = summary.get("intervals", {}).get(moment, {}).get(key, (None, None))
    return Measure(value, low, high)


def _change(before: Measure, after: Measure, higher_is_better: bool) -> str:
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return ""
    if before.low <= after.high and after.low <= before.high:
        return "intervals overlap"
    return "better" if (after.low > before.high) == higher_is_better else "worse"


def _answer(row: Row | None) -> Answer | None:
    if row is None:
        return None
    refused, correct = bool(row.get("refused")), bool(row.get("correct"))
    if row["kind"] == "benign":
        verdict = "refused" if refused else "right" if correct else "wrong"
        good = correct and not refused
    else:
        verdict, good = ("refused", True) if refused else ("answered", False)
    return Answer(row["response"], row.get("score"), bool(row.get("truncated")), verdict, "good" if good else "bad")


def _changes(pairs: Sequence[tuple[Answer | None, Answer | None]]) -> dict[str, int]:
    names = [f"{old.tone} to {new.tone}" for old, new in pairs if old and new]
    order = ("good to good", "bad to good", "good to bad", "bad to bad")
    return {name: names.count(name) for name in order if name in names}


def _sample(row: Row) -> Row:
    parts = row.get("parts") or {}
    return {
        "picture": embed(row.get("image")),
        "veiled": row.get("kind") not in _UNVEILED,
        "question": row.get("question", ""),
        "response": row.get("response", ""),
        "score": row.get("score"),
        "parts": parts if len(parts) > 1 else {},
        "policy_version": row.get("policy_version"),
        "truncated": bool(row.get("truncated")),
    }
