"""The part of a run's report that only a reward model has, from `evaluation/reward_model.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.curves import Panel, margins_panel, reliability_panel
from rlhf.evaluation.statistics import wilson_interval

_TYPES = {"easy": "Easy questions", "hardq": "Hard questions", "hards": "Hard statements"}
# Cohen 1988, section 3.2: correlations of 0.1, 0.3 and 0.5 are small, medium and large
_STRENGTHS = ((0.1, "hardly depends on"), (0.3, "depends weakly on"), (0.5, "depends on"), (2.0, "depends strongly on"))


@dataclass(frozen=True)
class Accuracy:
    """A row of the accuracy table: share of pairs whose chosen answer scores higher, with its 95 % interval."""

    title: str
    note: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LengthRow:
    """A row of the table of length correlations; None where nothing varies."""

    title: str
    note: str
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True)
class RewardSection:
    """What the template shows of a reward model."""

    pairs: int
    accuracies: list[tuple[str, list[Accuracy]]]  # heading -> rows
    panels: list[Panel]
    calibration_error: float
    calibration: str
    lengths: list[LengthRow]
    length: str


def reward_section(results: Mapping[str, Any]) -> RewardSection | None:
    """The section for what `rlhf.evaluation.reward_model.summarise` gave; None for an empty one."""
    if not results:
        return None
    calibration, margins, length = results["calibration"], results["margins"], results["length"]
    groups = [("", {"All pairs": results["accuracy"]})]
    groups.append(("By question type", {_TYPES.get(name, name): one for name, one in results["by_type"].items()}))
    groups.append(("By class", results["by_class"]))
    return RewardSection(
        pairs=results["accuracy"]["pairs"],
        accuracies=[(heading, [_accuracy(name, one) for name, one in rows.items()]) for heading, rows in groups],
        panels=[reliability_panel(calibration["bins"]), margins_panel(margins["edges"], margins["counts"])],
        calibration_error=calibration["expected_error"],
        calibration=calibration_in_words(calibration),
        lengths=[
            LengthRow("Between all answers", "also compares answers to different questions", **length["answers"]),
            LengthRow("Within pairs", "compares only the two answers to one question", **length["within_pairs"]),
        ],
        length=length_in_words(length),
    )


def calibration_in_words(calibration: Mapping[str, Any]) -> str:
    """Whether the model is too sure or not sure enough, from the table of `summarise`."""
    surplus = total = 0.0
    for one in calibration["bins"]:
        if one["observed"] is not None:
            sure = 1 if one["predicted"] >= 0.5 else -1  # being sure means being far from one half on either side
            surplus += one["pairs"] * sure * (one["predicted"] - one["observed"])
            total += one["pairs"]
    points = 100 * surplus / total
    if abs(points) < 1:
        return "On average it is about as sure as it is right."
    return f"On average it is {abs(points):.0f} points {'more' if points > 0 else 'less'} sure than it is right."


def length_in_words(length: Mapping[str, Any]) -> str:
    """What the correlation of score and length means for a policy that is trained on the score."""
    rank, longer = length["within_pairs"]["spearman"], length["longer_preferred"]
    if rank is None:
        return "The two answers of every pair are equally long or equally good to the model: length cannot be judged."
    strength = next(words for bound, words in _STRENGTHS if abs(rank) < bound)
    sign = "" if abs(rank) < 0.1 else f": {'longer' if rank > 0 else 'shorter'} answers score higher"
    text = (
        f"Between two answers to one question the score {strength} length (rank correlation {rank:+.2f}){sign}. Of "
        f"{longer['pairs']} pairs of unequal length the longer answer scores higher in {_percent(longer['by_score'])} "
        f"and is the preferred one in {_percent(longer['by_label'])}"
    )
    by_score = round(longer["by_score"] * longer["pairs"])
    low, high = wilson_interval(by_score, longer["pairs"])
    if low <= longer["by_label"] <= high:
        return f"{text}: beyond what is in the preferences already, no taste for length can be measured."
    more = "longer" if longer["by_score"] > longer["by_label"] else "shorter"
    return (
        f"{text}: the model likes {more} answers more than the data do, and a policy that is trained on it may learn "
        f"to write {more} answers for the sake of the score. Watch the response length."
    )


def _accuracy(title: str, one: Mapping[str, Any]) -> Accuracy:
    low, high = one["interval"]
    return Accuracy(title, f"{one['pairs']:,} pairs", one["value"], low, high)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
