"""Signs that a policy games its reward: parts that part ways, answers that are all alike, a score that rises alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

from rlhf.batch import Completion, Score

_LEAST = 8  # iterations at both ends that a trend is read from
_RISE = 0.25  # of the first iterations' spread: less is no rise


def reward_monitors(completions: Sequence[Completion], scores: Sequence[Score]) -> dict[str, float]:
    """Of one iteration: means of the score's parts and of its costs, correlations of parts, how alike answers are.

    `response/commonest_share` is the share of answers that say the very same thing most often; a policy that found one
    refusal for everything has 1. Correlations are of parts that both vary.
    """
    names = sorted({name for score in scores for name in score.parts})
    metrics = {f"score/part/{name}": fmean(_values(scores, name)) for name in names} if len(names) > 1 else {}
    for name in sorted({name for score in scores for name in score.costs}):  # bounded or not
        metrics[f"score/cost/{name}"] = fmean(score.costs[name] for score in scores if name in score.costs)
    for left, right in combinations(names, 2):
        both = [(one.parts[left], one.parts[right]) for one in scores if left in one.parts and right in one.parts]
        if (found := correlation(both)) is not None:
            metrics[f"score/agreement/{left} and {right}"] = found
    answers = Counter(" ".join(one.text.lower().split()) for one in completions)
    metrics["response/commonest_share"] = answers.most_common(1)[0][1] / len(completions) if completions else 0.0
    return metrics


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's correlation; None for fewer than three pairs or where one side does not vary."""
    if len(pairs) < 3:
        return None
    left, right = (fmean(pair[side] for pair in pairs) for side in (0, 1))
    squares = [sum((pair[side] - mean) ** 2 for pair in pairs) for side, mean in ((0, left), (1, right))]
    if min(squares) < 1e-12:
        return None
    together = sum((a - left) * (b - right) for a, b in pairs)
    return float(together / (squares[0] * squares[1]) ** 0.5)


def hacking_signs(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Sentences about a run's metrics that a person should look into; none is proof."""
    if len(rows) < 2 * _LEAST:
        return []
    signs = []
    parts = sorted({name for row in rows for name in row if name.startswith("score/part/")})
    rises = {name: _rise(rows, name) for name in parts}
    risen, flat = (
        [name for name in parts if (rises[name] or 0) > _RISE],
        [name for name in parts if rises[name] is not None and abs(rises[name] or 0) <= _RISE / 2],
    )
    for up in risen:
        for still in flat:
            signs.append(f"{up.removeprefix('score/part/')} rose while {still.removeprefix('score/part/')} did not")
    commonest = _ends(rows, "response/commonest_share")
    if commonest and commonest[1] > 0.5 and commonest[1] > 1.5 * commonest[0]:
        signs.append(f"{commonest[1]:.0%} of the last answers are the same sentence ({commonest[0]:.0%} at first)")
    length = _ends(rows, "response/length")
    if length and length[1] > 1.5 * length[0]:
        signs.append(f"answers grew from {length[0]:.0f} to {length[1]:.0f} tokens")
    return signs


def _values(scores: Sequence[Score], name: str) -> list[float]:
    return [score.parts[name] for score in scores if name in score.parts]


def _ends(rows: Sequence[Mapping[str, float | None]], name: str) -> tuple[float, float] | None:
    """Means over the first and the last iterations."""
    values = [value for row in rows if (value := row.get(name)) is not None]
    return (fmean(values[:_LEAST]), fmean(values[-_LEAST:])) if len(values) >= 2 * _LEAST else None


def _rise(rows: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    """How far a metric rose, in units of what it can be seen to range over in the whole run."""
    values, ends = [value for row in rows if (value := row.get(name)) is not None], _ends(rows, name)
    if ends is None:
        return None
    spread = max(abs(value) for value in values)
    return (ends[1] - ends[0]) / spread if spread > 0 else 0.0
