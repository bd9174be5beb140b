"""Which checkpoint of an online run becomes its model: evaluated while the run trains, chosen by a Pareto rule.

The prompts are none of those that results are reported on, since a choice made on these would flatter them. What was
measured is part of the training state; `evaluation/selection.json` is written from it and never knows more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from rlhf.batch import Prompt
from rlhf.checkpoint import Checkpoint, CheckpointStore
from rlhf.config import Config
from rlhf.errors import CheckpointError, DataError
from rlhf.evaluation.before_after import Answers, evaluate
from rlhf.evaluation.safety import EvaluationRow, is_refusal, summarise
from rlhf.ledger import write_whole
from rlhf.pareto import Bounds, Point, best, front

SELECTION_FILE = "evaluation/selection.json"
RULE = "of the Pareto front, least beyond the bounds, then nearest to harm 0, over-refusal 0, helpfulness 1, then last"
_LIMITS = {"harm": "harm at most", "over_refusal": "over-refusal at most", "helpfulness": "helpfulness at least"}


class SelectionConfig(Config):
    """Evaluation while training, by which the run's model is chosen among its checkpoints."""

    every: int = Field(ge=1)
    """Iterations between evaluations on data.validation, each with a checkpoint; the last iteration has one too."""
    bounds: Bounds = Bounds()
    """What the model should keep to; where no checkpoint does, the one that is least beyond them is taken."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen point, its checkpoint (None for the iteration that the roles hold anyway), and better ones lost."""

    point: Point
    checkpoint: Checkpoint | None
    lost: tuple[int, ...]  # iterations that the rule prefers, whose checkpoints are damaged or gone


def check_prompts(validation: Sequence[Prompt], reported: Sequence[Prompt]) -> None:
    """Raise DataError unless the prompts can tell all three shares, and none of them is a reported one."""
    counts = summarise([EvaluationRow(prompt, "", None, False) for prompt in validation])
    if not counts["n_benign"] or not counts["n_harmful"] + counts["n_biometric"]:
        raise DataError("needs benign prompts, and harmful or biometric ones", source="data.validation")
    both = {(one.question, one.image) for one in validation} & {(one.question, one.image) for one in reported}
    if both:
        question = min(question for question, _ in both)
        raise DataError(
            f"{len(both)} of its prompts are in data.evaluation too, for example {question!r}: remove them from one, "
            "or the choice of the checkpoint flatters the result",
            source="data.validation",
        )


def measure(
    engines: Answers, prompts: Sequence[Prompt], max_new_tokens: int, iteration: int
) -> tuple[Point, dict[str, float]]:
    """Greedy answers of the engines as a point, and as metrics `evaluation/...` (shares; NaN over no prompts)."""
    rows = evaluate(engines, None, prompts, max_new_tokens)
    rates = summarise(rows)
    answered = [not is_refusal(row.response) for row in rows if row.prompt.kind != "benign"]
    point = Point(iteration, sum(answered) / len(answered), rates["over_refusal_rate"], rates["benign_accuracy"])
    shown = dict(zip(("harm", "over_refusal", "helpfulness"), point.shares, strict=True))
    shown |= {name: rates[name] for name in ("harmful_refusal_rate", "biometric_refusal_rate")}
    return point, {f"evaluation/{name}": share for name, share in shown.items()}


def choose(points: Sequence[Point], bounds: Bounds, store: CheckpointStore, present: int) -> Choice:
    """The best point whose weights can still be had: of iteration `present`, or from an intact checkpoint.

    Raises CheckpointError where there is none.
    """
    left, lost = list(points), list[int]()
    while left:
        point = best(left, bounds)
        checkpoint = None if point.iteration == present else store.at(point.iteration)
        if checkpoint or point.iteration == present:
            return Choice(point, checkpoint, tuple(lost))
        left.remove(point)
        lost.append(point.iteration)
    raise CheckpointError(f"no checkpoint to choose is intact: {'; '.join(store.skipped) or 'none was evaluated'}")


def record(
    folder: Path, points: Sequence[Point], bounds: Bounds, prompts: Sequence[Prompt], lost: Collection[int] = ()
) -> None:
    """Write `evaluation/selection.json` about what was evaluated so far, or remove it where nothing was yet."""
    path = folder / SELECTION_FILE
    kept = [point for point in points if point.iteration not in lost]
    if not kept:
        path.unlink(missing_ok=True)
        return
    chosen = best(kept, bounds)
    selection = {
        "rule": RULE,
        "bounds": bounds.model_dump(exclude_defaults=True),
        "prompts": dict(Counter(prompt.kind for prompt in prompts)),
        "points": [asdict(point) for point in points],
        "front": [point.iteration for point in front(kept)],
        "best": chosen.iteration,
        "within_bounds": bounds.excess(chosen) == 0,
        "lost": list(lost),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(selection, indent=2) + "\n")


def in_words(selection: Mapping[str, Any]) -> str:
    """Which iteration was chosen and why, from the contents of `evaluation/selection.json`."""
    chosen = next(point for point in selection["points"] if point["iteration"] == selection["best"])
    shares = "harm {harm:.1%}, over-refusal {over_refusal:.1%}, helpfulness {helpfulness:.1%}".format_map(chosen)
    limits = ", ".join(f"{_LIMITS[name]} {share:.1%}" for name, share in selection["bounds"].items())
    count = len(selection["front"])
    text = f"Chosen among {len(selection['points'])} checkpoints: iteration {chosen['iteration']} ({shares}). "
    if not selection["within_bounds"]:
        text += f"None is within the bounds ({limits}); this one exceeds them least."
    elif count == 1:
        text += "No other is better in anything."
    else:
        ideal = "no harm, no over-refusal and every benign prompt right"
        within = f" within the bounds ({limits})" if limits else ""
        text += f"Of the {count} on the Pareto front it comes nearest{within} to {ideal}."
    if selection["lost"]:
        iterations = ", ".join(str(one) for one in selection["lost"])
        text += f" The rule prefers iteration {iterations}, whose checkpoint is damaged or gone."
    return text
