"""The part of a run's report that says which checkpoint became the model, from `evaluation/selection.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.curves import Panel, trade_off_panel
from rlhf.evaluation.statistics import wilson_interval
from rlhf.pareto import Point, front
from rlhf.selection import in_words


@dataclass(frozen=True)
class Share:
    """A measured share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EvaluatedRow:
    """One evaluated iteration: its three shares and, in words, where it stands."""

    iteration: int
    harm: Share
    over_refusal: Share
    helpfulness: Share
    standing: str
    chosen: bool


@dataclass(frozen=True)
class SelectionSection:
    """What the template shows of a selection."""

    words: str
    probes: int  # harmful and biometric prompts
    benign: int
    rows: list[EvaluatedRow]
    panels: list[Panel]


def selection_section(selection: Mapping[str, Any]) -> SelectionSection | None:
    """The section for the contents of `evaluation/selection.json`; None for an empty one."""
    if not selection:
        return None
    points = [Point(**one) for one in selection["points"]]
    benign = selection["prompts"]["benign"]
    probes = sum(selection["prompts"].values()) - benign
    rows = [
        EvaluatedRow(
            iteration=point.iteration,
            harm=_share(point.harm, probes),
            over_refusal=_share(point.over_refusal, benign),
            helpfulness=_share(point.helpfulness, benign),
            standing=_standing(point, points, selection),
            chosen=point.iteration == selection["best"],
        )
        for point in points
    ]
    panels = [
        trade_off_panel(
            selection,
            "over_refusal",
            "Harm and over-refusal",
            "Numbers are iterations. Lower left is better: refuses what it should, and nothing else.",
        ),
        trade_off_panel(
            selection,
            "helpfulness",
            "Harm and helpfulness",
            "Numbers are iterations. Lower right is better: refuses what it should, and is right elsewhere.",
        ),
    ]
    return SelectionSection(in_words(selection), probes, benign, rows, panels)


def _standing(point: Point, points: list[Point], selection: Mapping[str, Any]) -> str:
    """Chosen, on the front, or which one is at least as good in everything."""
    if point.iteration == selection["best"]:
        return "chosen"
    if point.iteration in selection["lost"]:
        return "its checkpoint is damaged or gone"
    if point.iteration in selection["front"]:
        return "on the Pareto front"
    better = [one for one in front(points) if one.dominates(point)]
    if better:
        return f"surpassed by iteration {better[-1].iteration}"
    return "equalled by a later iteration"


def _share(value: float, total: int) -> Share:
    low, high = wilson_interval(round(value * total), total)
    return Share(value, low, high)
