"""Curves of a run as inline SVG: small multiples that the report shows, one per question a person asks of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import cycle
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

Series = dict[str, tuple[list[int], list[float]]]  # metric -> steps, values; gaps where a value was not finite

_COLOURS = ("#2b6cb0", "#d9730d", "#3a8f6f", "#8b5fa8", "#b08d1a", "#5f6b7a", "#c0507a", "#3a9fbf")
_PALE = "#8a94a3"
_DASHES = ("-", "--", ":")
_BORDERS = {"-": "solid", "--": "dashed", ":": "dotted"}  # the same line styles in the legend's CSS
_STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, sharper, and in the page's font
    "svg.hashsalt": "safevl",  # the same run gives the same bytes
    "font.size": 9,
    "text.color": "#5b6472",
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": "#5b6472",
    "xtick.color": "#5b6472",
    "ytick.color": "#5b6472",
    "axes.linewidth": 0.8,
}
_SMOOTHED_FROM = 24  # points; shorter curves are shown as they are
_ANONYMOUS = ("Creator", "Date", "Format", "Type")  # what matplotlib would write into the file about itself


@dataclass(frozen=True)
class Curve:
    """One line of a legend: what it shows, colour, line style name and last value."""

    name: str
    colour: str
    dash: str
    last: str


@dataclass(frozen=True)
class Panel:
    """One small chart with its words."""

    title: str
    hint: str
    curves: tuple[Curve, ...]
    svg: Markup


@dataclass(frozen=True)
class _Plan:
    """Which metrics share a panel and how to read it."""

    title: str
    keys: tuple[str, ...]  # of "score/part/*" all that begin so, each called what the star stands for
    hint: str
    spread: str = ""  # metric that is drawn as a band of plus and minus one around the first key
    logarithmic: bool = False
    exact: bool = False  # a schedule: smoothing would misstate it


_PLANS = (
    _Plan("Reward", ("score/mean",), "Score of the reward model, with one standard deviation.", spread="score/std"),
    _Plan(
        "Validation",
        ("evaluation/helpfulness", "evaluation/harm", "evaluation/over_refusal"),
        "Shares on the prompts that the checkpoint is chosen by.",
    ),
    _Plan(
        "Parts of the score", ("score/part/*",), "Weighted means. One that rises alone is gamed, or a guard is blind."
    ),
    _Plan("Agreement of parts", ("score/agreement/*",), "Correlation over the answers of an iteration, -1 to 1."),
    _Plan(
        "Invalid verdicts", ("score/invalid/*",), "Share of a guard's verdicts that nobody can read. Near 0 is healthy."
    ),
    _Plan("Costs", ("score/cost/*",), "Means over the answers that have them; `constraints` bounds some."),
    _Plan("Multipliers", ("constraint/*_lambda",), "What one unit of a bounded cost is weighed by.", exact=True),
    _Plan(
        "Alike answers",
        ("response/commonest_share", "response/commonest_refusal_share"),
        "Shares of answers that are the same, and that hold the same refusal. Near 1 is reward hacking.",
    ),
    _Plan("KL to the reference", ("kl/sequence",), "Nats per response: how far the policy has moved."),
    _Plan("KL per token", ("kl/token",), "Nats per response token."),
    _Plan("KL coefficient", ("kl/coefficient",), "Price of one nat; constant unless it adapts.", exact=True),
    _Plan("Response length", ("response/length",), "Tokens per response. A jump often means reward hacking."),
    _Plan("Cut off", ("response/truncated_share",), "Share of responses that hit the token limit."),
    _Plan("Entropy", ("policy/entropy",), "Nats per token. At zero the policy has stopped exploring."),
    _Plan("Clipped", ("policy/clip_fraction", "value/clip_fraction"), "Share of tokens whose update was clipped."),
    _Plan("Explained variance", ("value/explained_variance",), "Of returns: 1 is perfect, below 0 is harmful."),
    _Plan(
        "Engine against learner",
        ("rollout/logprob_gap", "sync/canary_gap"),
        "Largest log-probability gap, nats.",
        logarithmic=True,
    ),
    _Plan("Ratio", ("policy/ratio",), "New to old probability, averaged over tokens; near 1."),
    _Plan("Update size", ("policy/approx_kl",), "KL between the policy before and after an update, nats."),
    _Plan("Losses", ("policy/loss", "value/loss"), "Their level means little in PPO; a blow-up means much."),
    _Plan("Gradient norms", ("policy/grad_norm", "value/grad_norm"), "Before clipping.", logarithmic=True),
    _Plan("Learning rate", ("policy/lr", "value/lr"), "As it was applied.", exact=True),
    _Plan("Rollout speed", ("rollout/tokens_per_second",), "Response tokens per second."),
    _Plan("Loss", ("loss", "validation/loss"), "Per step, and on held-out rows where they were looked at."),
    _Plan("Accuracy", ("accuracy", "validation/accuracy_all"), "Share of rows that are right."),
    _Plan("Margin", ("margin", "validation/margin"), "By how much chosen answers win over rejected ones."),
    _Plan("Learning rate", ("lr",), "As it was applied.", exact=True),
    _Plan("Batch fill", ("batch/fill",), "Tokens per place of a batch; the rest is padding. Near 1 is cheap."),
    _Plan("Gradient norm", ("grad_norm",), "Before clipping.", logarithmic=True),
)


def panels(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], dict[str, list[Panel]]]:
    """Charts for the rows of metrics.jsonl: the known ones in reading order, and all others grouped by "prefix/"."""
    series = _series(rows)
    main, used = [], set()
    for plan in _PLANS:
        present = [key for wanted in plan.keys for key in series if fnmatchcase(key, wanted)]
        if present:
            main.append(_line_panel(plan, present, series))
            used |= {*present, plan.spread}
    stages = [key for key in series if key.startswith("seconds/") and key != "seconds/total"]
    if len(stages) > 1:
        main.append(_stage_panel(stages, series))
        used |= {*stages, "seconds/total"}
    others: dict[str, list[Panel]] = {}
    for key in series:
        if key not in used:
            group, _, name = key.rpartition("/")
            others.setdefault(group or "general", []).append(_line_panel(_Plan(name, (key,), ""), [key], series))
    return main, others


def compared(
    title: str, hint: str, key: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], exact: bool = False
) -> Panel | None:
    """One metric of several runs in one chart, from the rows of their metrics.jsonl; None where no run has it."""
    leaf = key.rpartition("/")[2]
    series = {f"{name}/{leaf}": found[key] for name, rows in runs.items() if key in (found := _series(rows))}
    return _line_panel(_Plan(title, (), hint, exact=exact), list(series), series) if series else None


def reliability_panel(bins: Sequence[Mapping[str, Any]]) -> Panel:
    """Observed share against predicted probability; `bins` has predicted, observed and interval, None where empty."""
    title = "Reliability"
    full = [one for one in bins if one["observed"] is not None]
    predicted, observed = ([one[key] for one in full] for key in ("predicted", "observed"))
    below, above = (
        [abs(one["interval"][side] - one["observed"]) for one in full] for side in (0, 1)
    )  # what a Wilson interval of 0 or 1 hits leaves no bar on that side
    figure, axes = _canvas(height=2.9)
    axes.plot([0, 1], [0, 1], "--", color=_PALE, linewidth=1.2)
    axes.errorbar(predicted, observed, (below, above), fmt="o-", color=_COLOURS[0], markersize=4, linewidth=1.4)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="predicted probability", ylabel="observed share")
    hint = "How often the first of two answers is the preferred one, where the model says so with this probability."
    curves = (Curve("this model", _COLOURS[0], "solid", ""), Curve("what it says comes true", _PALE, "dashed", ""))
    return Panel(title, hint, curves, _svg(figure, axes, title, steps=False))


def margins_panel(edges: Sequence[float], counts: Sequence[int]) -> Panel:
    """Histogram of score margins, wrong pairs (below zero) in another colour than right ones."""
    title = "Margins"
    figure, axes = _canvas(height=2.9)
    widths = [high - low for low, high in zip(edges, edges[1:], strict=False)]
    colours = [_COLOURS[1] if low + width / 2 < 0 else _COLOURS[0] for low, width in zip(edges, widths, strict=False)]
    axes.bar(edges[:-1], counts, widths, align="edge", color=colours, edgecolor="white", linewidth=0.5)
    axes.axvline(0, color="#1c2530", linewidth=0.8)
    axes.set(xlabel="margin", ylabel="pairs")
    curves = (Curve("right", _COLOURS[0], "solid", ""), Curve("wrong", _COLOURS[1], "solid", ""))
    return Panel(
        title,
        "Held-out pairs by the chosen answer's score minus the rejected one's.",
        curves,
        _svg(figure, axes, title, steps=False),
    )


def trade_off_panel(selection: Mapping[str, Any], across: str, title: str, hint: str) -> Panel:
    """Harm against the share `across` of every evaluated iteration, in percent, from `evaluation/selection.json`."""
    points = {one["iteration"]: (100 * one[across], 100 * one["harm"]) for one in selection["points"]}
    front, chosen = {one: points[one] for one in selection["front"]}, selection["best"]
    figure, axes = _canvas(height=2.9)
    for place in (points[one] for one in points if one not in front):
        axes.plot(*place, "o", color=_PALE, markerfacecolor="white", markersize=5)
    axes.plot(*zip(*sorted(front.values()), strict=True), "o-", color=_COLOURS[0], markersize=5, linewidth=0.8)
    axes.plot(*points[chosen], "*", color=_COLOURS[1], markersize=13)
    for iteration, place in front.items():  # the table names the others
        axes.annotate(str(iteration), place, (6, 5), textcoords="offset points", fontsize=8, color="#1c2530")
    bounds = {key: 100 * share for key, share in selection["bounds"].items() if key in ("harm", across)}
    for key, share in bounds.items():
        (axes.axhline if key == "harm" else axes.axvline)(share, linestyle=":", color="#1c2530", linewidth=1.0)
    for limit, values in zip((axes.set_xlim, axes.set_ylim), zip(*points.values(), strict=True), strict=True):
        low, high = min(values), max(values)
        room = max(2.0, 0.2 * (high - low))
        limit(max(low - room, -room / 4), min(high + room, 100 + room / 4))
    axes.set(xlabel=f"{across.replace('_', '-')}, %", ylabel="harm, %")
    curves = [
        Curve("chosen", _COLOURS[1], "solid", f"iteration {chosen}"),
        Curve("Pareto front", _COLOURS[0], "solid", ""),
        Curve("surpassed", _PALE, "solid", ""),
        *([Curve("bound", "#1c2530", "dotted", "")] if bounds else []),
    ]
    return Panel(title, hint, tuple(curves), _svg(figure, axes, title, steps=False))


def _series(rows: Sequence[Mapping[str, Any]]) -> Series:
    series: Series = {}
    for row in rows:
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and key not in ("step", "time") and math.isfinite(value):
                steps, values = series.setdefault(key, ([], []))
                steps.append(row["step"])
                values.append(float(value))
    return series


def _line_panel(plan: _Plan, keys: Sequence[str], series: Series) -> Panel:
    figure, axes = _canvas()
    curves = []
    for key, colour, dash in zip(keys, cycle(_COLOURS), cycle(_DASHES), strict=False):
        steps, values = series[key]
        if plan.spread in series and len(series[plan.spread][0]) == len(steps):
            spread = series[plan.spread][1]
            below, above = ([v + sign * s for v, s in zip(values, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, below, above, color=colour, alpha=0.12, linewidth=0)
        _draw(axes, steps, values, colour, dash, plan.exact)
        curves.append(Curve(_label(key, keys, plan), colour, _BORDERS[dash], short(values[-1])))
    values = [value for key in keys for value in series[key][1]]
    low, high = min(values), max(values)
    if plan.logarithmic and low > 0:
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.01)))
    elif low == high:
        axes.set_ylim(min(0.0, 2 * low), max(0.0, 2 * high) or 1.0)  # else rounding noise would look like a change
    return Panel(plan.title, plan.hint, tuple(curves), _svg(figure, axes, plan.title))


def _label(key: str, keys: Sequence[str], plan: _Plan) -> str:
    """The part of a metric's name that tells it from the others of its panel."""
    for start, star, end in (wanted.partition("*") for wanted in plan.keys):
        if star:
            return key.removeprefix(start).removesuffix(end).replace("_", " ")
    prefix, _, leaf = key.removesuffix("_all").rpartition("/")
    shared = len({other.removesuffix("_all").rpartition("/")[2] for other in keys}) == 1
    return (prefix or "training" if shared and len(keys) > 1 else leaf).replace("_", " ")


def _draw(axes: Axes, steps: list[int], values: list[float], colour: str, dash: str, exact: bool) -> None:
    if len(steps) == 1:
        axes.plot(steps, values, "o", color=colour, markersize=4)
    elif exact or len(steps) < _SMOOTHED_FROM:
        axes.plot(steps, values, dash, color=colour, linewidth=1.8)
    else:
        axes.plot(steps, values, dash, color=colour, linewidth=0.8, alpha=0.4)
        axes.plot(steps, _smoothed(values), dash, color=colour, linewidth=2.0)


def _stage_panel(keys: Sequence[str], series: Series) -> Panel:
    figure, axes = _canvas()
    steps = sorted({step for key in keys for step in series[key][0]})
    by_key = {key: dict(zip(*series[key], strict=True)) for key in keys}  # a stage that did not run took no time
    heights = {key: [by_key[key].get(step, 0.0) for step in steps] for key in keys}
    order = sorted(keys, key=lambda key: -sum(heights[key]))
    colours = [colour for colour, _ in zip(cycle(_COLOURS), order, strict=False)]
    axes.stackplot(steps, [heights[key] for key in order], colors=colours, alpha=0.8, linewidth=0, step="mid")
    curves = tuple(
        Curve(key.removeprefix("seconds/"), colour, "solid", f"{sum(heights[key]) / len(steps):.2g} s")
        for key, colour in zip(order, colours, strict=True)
    )
    title = "Seconds per stage"
    hint = "Where the time of a step goes, largest below; the numbers are means."
    return Panel(title, hint, curves, _svg(figure, axes, title))


def _canvas(height: float = 1.85) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.7, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=3, width=0.8)
        axes.margins(x=0.02)
    return figure, axes


def _svg(figure: Figure, axes: Axes, title: str, steps: bool = True) -> Markup:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=steps))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        low, high = axes.get_ylim()
        if max(abs(low), abs(high)) >= 1e-3:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_ANONYMOUS))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()  # without the XML prologue, whose DTD is an external address
    return Markup(text.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(title), 1))


def _smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average over about an eighth of the curve; the window shrinks at both ends, so nothing lags."""
    reach = max(2, len(values) // 16)
    result = []
    for place in range(len(values)):
        width = min(reach, place, len(values) - 1 - place)
        window = values[place - width : place + width + 1]
        result.append(sum(window) / len(window))
    return result


def short(value: float) -> str:
    """A number with three significant digits, for people."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
