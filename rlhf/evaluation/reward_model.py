"""What a reward model is worth on held-out preference pairs: accuracy, calibration, and what length does to its score.

Its number for a pair is the margin, the chosen answer's score minus the rejected one's; by Bradley and Terry
sigmoid(margin) is the probability that the chosen answer is preferred.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rlhf.batch import PreferencePair
from rlhf.evaluation.calibration import (
    Bin,
    expected_calibration_error,
    pearson,
    reliability,
    spearman,
    within_pairs,
)
from rlhf.evaluation.statistics import wilson_interval
from rlhf.ledger import write_whole

RESULTS_FILE, ROWS_FILE = "evaluation/reward_model.json", "evaluation/reward_model.jsonl"
UNKNOWN = "unknown"  # the group of pairs that carry no question type or class

_MARGIN_BINS = 24


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair with the scores of its answers and their lengths (tokens, EOS included)."""

    pair: PreferencePair
    chosen_score: float
    rejected_score: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def margin(self) -> float:
        """By how much the chosen answer wins; a tie is no win."""
        return self.chosen_score - self.rejected_score

    @property
    def chosen_is_first(self) -> bool:
        """Which side the preferred answer is on when the pair is shown without saying so: a coin by the row's hash.

        Asked about the preferred answer alone, a model that is sure of everything would look calibrated in half of
        the table and have no other half.
        """
        return bool(xxhash.xxh3_64_intdigest(self.pair.prompt.id.encode()) & 1)


def summarise(rows: Sequence[ScoredPair]) -> dict[str, Any]:
    """Everything that the report shows of held-out pairs, as plain data; rates are shares of 1.

    accuracy (a tie is wrong) in all, `by_type` (question type) and `by_class` (SPA-VL domain), each with its 95 %
    Wilson interval; `calibration`, ten bins of P(first answer is preferred) against how often it is; `length`, the
    correlation of score and response length over all answers and within pairs; the histogram of `margins`. Raises
    ValueError without rows.
    """
    if not rows:
        raise ValueError("no scored pair to summarise")
    margins = [row.margin for row in rows]
    scores = [score for row in rows for score in (row.chosen_score, row.rejected_score)]
    return {
        "accuracy": _accuracy(rows),
        "by_type": _by([row.pair.prompt.question_type for row in rows], rows),
        "by_class": _by([row.pair.prompt.category for row in rows], rows),
        "calibration": _calibration(rows),
        "length": _length(rows),
        "margins": _histogram(margins),
        "score": {"mean": float(np.mean(scores)), "std": float(np.std(scores))},
    }


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `summarise` that belong into the metrics of a run; what could not be measured is left out."""
    within = results["length"]["within_pairs"]["spearman"]
    return {
        "accuracy_all": results["accuracy"]["value"],
        **{f"accuracy_{name}": group["value"] for name, group in results["by_type"].items() if name != "all"},
        "margin": results["margins"]["mean"],
        "calibration_error": results["calibration"]["expected_error"],
        **({} if within is None else {"length_correlation": within}),
    }


def record(folder: Path, rows: Sequence[ScoredPair], results: Mapping[str, Any]) -> None:
    """Write results and rows to `evaluation/` of a run folder, each file whole or not at all."""
    (folder / RESULTS_FILE).parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_line(row), ensure_ascii=False) for row in rows]
    write_whole(folder / ROWS_FILE, "".join(line + "\n" for line in lines))
    write_whole(folder / RESULTS_FILE, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def _accuracy(rows: Sequence[ScoredPair]) -> dict[str, Any]:
    right = sum(row.margin > 0 for row in rows)
    return {"value": right / len(rows), "interval": wilson_interval(right, len(rows)), "pairs": len(rows)}


def _by(names: Sequence[str], rows: Sequence[ScoredPair]) -> dict[str, Any]:
    groups: dict[str, list[ScoredPair]] = defaultdict(list)
    for name, row in zip(names, rows, strict=True):
        groups[name or UNKNOWN].append(row)
    return {name: _accuracy(groups[name]) for name in sorted(groups)}


def _calibration(rows: Sequence[ScoredPair]) -> dict[str, Any]:
    first = [row.chosen_is_first for row in rows]
    chances = [_sigmoid(row.margin if one else -row.margin) for row, one in zip(rows, first, strict=True)]
    table = reliability(chances, first)
    return {"bins": [_bin(one) for one in table], "expected_error": expected_calibration_error(table)}


def _bin(one: Bin) -> dict[str, Any]:
    observed = one.came_true / one.count if one.count else None
    interval = wilson_interval(one.came_true, one.count) if one.count else None
    return {
        "low": one.low,
        "high": one.high,
        "pairs": one.count,
        "predicted": one.predicted,
        "observed": observed,
        "interval": interval,
    }


def _length(rows: Sequence[ScoredPair]) -> dict[str, Any]:
    lengths = [float(tokens) for row in rows for tokens in (row.chosen_tokens, row.rejected_tokens)]
    scores = [score for row in rows for score in (row.chosen_score, row.rejected_score)]
    longer = within_pairs([float(row.chosen_tokens - row.rejected_tokens) for row in rows])
    better = within_pairs([row.margin for row in rows])
    unequal = [row for row in rows if row.chosen_tokens != row.rejected_tokens]
    by_label = sum(row.chosen_tokens > row.rejected_tokens for row in unequal)
    by_score = sum((row.chosen_tokens - row.rejected_tokens) * row.margin > 0 for row in unequal)
    return {
        "answers": {"pearson": pearson(lengths, scores), "spearman": spearman(lengths, scores)},
        "within_pairs": {"pearson": pearson(longer, better), "spearman": spearman(longer, better)},
        "longer_preferred": {
            "pairs": len(unequal),
            "by_label": by_label / len(unequal) if unequal else None,
            "by_score": by_score / len(unequal) if unequal else None,
        },
    }


def _histogram(margins: Sequence[float]) -> dict[str, Any]:
    """Counts over equal bins around zero, so that no bin holds right and wrong pairs."""
    reach = max(map(abs, margins)) or 1.0
    counts, edges = np.histogram(margins, bins=_MARGIN_BINS, range=(-reach, reach))
    return {"mean": float(np.mean(margins)), "edges": edges.tolist(), "counts": counts.tolist()}


def _line(row: ScoredPair) -> dict[str, Any]:
    prompt = row.pair.prompt
    return {
        "id": prompt.id,
        "question_type": prompt.question_type,
        "class": prompt.category,
        "image": prompt.image,
        "question": prompt.question,
        "chosen": row.pair.chosen,
        "rejected": row.pair.rejected,
        "chosen_score": row.chosen_score,
        "rejected_score": row.rejected_score,
        "chosen_tokens": row.chosen_tokens,
        "rejected_tokens": row.rejected_tokens,
        "margin": row.margin,
    }


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))
