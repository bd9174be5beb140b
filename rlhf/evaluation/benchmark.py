"""What all safety benchmarks share: items with groups, the image policy, and numbers that carry their conditions.

A number without its judge, its decoding and its image policy cannot be compared with another (seed page 6.4), so every
record repeats them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from rlhf.batch import Prompt
from rlhf.data.images import CLIP_MEAN_COLOUR
from rlhf.evaluation.statistics import wilson_interval

ImagePolicy = Literal["none", "blank"]
Measure = Literal["unsafe_rate", "win_rate", "compliance_rate"]

IMAGE_POLICIES: dict[ImagePolicy, str] = {
    "none": "prompts without an image are asked without one",
    "blank": "prompts without an image get a blank one in CLIP's mean colour",
}
UNANSWERED = "unanswered"
# what a measure counts, what else is an opinion, and what a row without an opinion is worth in the worst case
COUNTED: dict[Measure, str] = {"unsafe_rate": "unsafe", "win_rate": "win", "compliance_rate": "answered"}
_OPINIONS: dict[Measure, tuple[str, ...]] = {
    "unsafe_rate": ("unsafe", "safe"),
    "win_rate": ("win", "tie", "lose"),
    "compliance_rate": ("answered", "refused"),
}
_BLANK_SIDE = 336  # pixels, CLIP ViT-L/14-336


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a benchmark, and the groups by which results are broken down (class1, scenario, mode, ...)."""

    prompt: Prompt
    groups: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What every number of one benchmark depends on."""

    model: str
    judge: str
    decoding: str
    image_policy: str
    engine: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """One item with its answer and what the judge made of it; `verdict` may also be "invalid" or "unanswered"."""

    item: Item
    response: str
    truncated: bool
    verdict: str
    reason: str
    baseline: str = ""


def with_image_policy(items: Sequence[Item], policy: ImagePolicy, folder: Path) -> list[Item]:
    """The items with the policy applied to prompts that have no image; a blank image is written into `folder`.

    CLIP's mean colour becomes zeros after normalisation: the seed's zero tensor for absent images (seed page 1.1).
    """
    if policy == "none" or all(item.prompt.image is not None for item in items):
        return list(items)
    path = folder.absolute() / "blank.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / ".blank.partial"
        Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), CLIP_MEAN_COLOUR).save(draft, format="PNG")
        draft.replace(path)
    return [
        item if item.prompt.image is not None else replace(item, prompt=replace(item.prompt, image=str(path)))
        for item in items
    ]


def records(
    benchmark: str, measure: Measure, judged: Sequence[JudgedItem], conditions: Conditions, expected: int | None
) -> list[dict[str, Any]]:
    """One flat record for the whole benchmark and one per group, each with counts, interval and conditions.

    `rate` is over the rows on which the judge has an opinion, with its 95 % Wilson interval, and None if there are
    none; `worst_case` counts every other row against the model. `expected` is the published number of rows.
    """
    found = [_record(measure, judged) | {"expected": expected}]
    for kind in dict.fromkeys(kind for one in judged for kind in one.item.groups):
        values = sorted({one.item.groups[kind] for one in judged if kind in one.item.groups})
        for value in values:
            rows = [one for one in judged if one.item.groups.get(kind) == value]
            found.append(_record(measure, rows) | {"group_by": kind, "group": value})
    return [{"benchmark": benchmark, **record, **asdict(conditions)} for record in found]


def row_line(judged: JudgedItem, conditions: Conditions) -> dict[str, Any]:
    """One judged answer as a line of the benchmark's JSONL file, with its conditions."""
    prompt = judged.item.prompt
    line = {
        "id": prompt.id,
        "question": prompt.question,
        "image": prompt.image,
        "groups": dict(judged.item.groups),
        "response": judged.response,
        "truncated": judged.truncated,
        "verdict": judged.verdict,
        "reason": judged.reason,
    }
    if judged.baseline:
        line["baseline"] = judged.baseline
    return {**line, **asdict(conditions)}


def _record(measure: Measure, judged: Sequence[JudgedItem]) -> dict[str, Any]:
    counts = Counter(one.verdict for one in judged)
    opinions, counted = sum(counts[name] for name in _OPINIONS[measure]), counts[COUNTED[measure]]
    low, high = wilson_interval(counted, opinions) if opinions else (None, None)
    without = len(judged) - opinions
    against = counted + without if measure == "unsafe_rate" else counted
    return {
        "measure": measure,
        "group_by": "all",
        "group": "all",
        "n": len(judged),
        **{name: counts[name] for name in (*_OPINIONS[measure], "invalid", UNANSWERED)},
        "truncated": sum(one.truncated for one in judged),
        "rate": counted / opinions if opinions else None,
        "low": low,
        "high": high,
        "worst_case": against / len(judged) if judged else None,
    }
