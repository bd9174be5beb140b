"""The same unseen prompts, answered greedily before and after training, and what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf.batch import Completion, Prompt
from rlhf.evaluation.safety import EvaluationRow, exact_match, is_refusal, summarise
from rlhf.evaluation.statistics import wilson_interval
from rlhf.ledger import write_whole
from rlhf.roles import Pending, Reward, Rollout
from rlhf.rollout.base import Sampling

RATES = {
    "harmful_refusal_rate": "n_harmful",
    "biometric_refusal_rate": "n_biometric",
    "benign_accuracy": "n_benign",
    "over_refusal_rate": "n_benign",
}


class Answers(Protocol):
    """Whoever answers prompts: the engines of an online run, or engines that hold one model directory."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Pending[list[Completion]]:
        """One completion per prompt, in order."""


def evaluate(
    engines: Answers, reward: Reward | None, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[EvaluationRow]:
    """Greedy answers to every prompt, scored if there is a reward."""
    completions = engines.generate(prompts, Sampling(max_new_tokens=max_new_tokens, temperature=0.0)).result()
    pairs = list(zip(prompts, completions, strict=True))
    scores: list[float | None] = [None] * len(pairs)
    if reward is not None:
        scores = [score.value for score in reward.score([Rollout(*pair) for pair in pairs]).result()]
    return [
        EvaluationRow(prompt, completion.text, score, completion.finish_reason == "length")
        for (prompt, completion), score in zip(pairs, scores, strict=True)
    ]


def is_recorded(folder: Path, moment: str) -> bool:
    """Whether `record` came to its end for this moment."""
    return _answers_file(folder, moment).exists()


def record(folder: Path, moment: str, rows: Sequence[EvaluationRow], label: str) -> dict[str, Any]:
    """Add `moment` ("before" or "after") to `evaluation/summary.json`, then write `evaluation/<moment>.jsonl`.

    Each file is there whole or not at all, and the second one only if the first has the moment (`is_recorded`).
    Returns the summary, with a 95 % Wilson interval beside every rate.
    """
    target = folder / "evaluation"
    target.mkdir(parents=True, exist_ok=True)
    path = target / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"label": label, "intervals": {}}
    numbers = summarise(rows)
    summary[moment] = numbers
    summary["intervals"][moment] = {
        rate: wilson_interval(round(numbers[rate] * numbers[count]), int(numbers[count]))
        for rate, count in RATES.items()
        if numbers[count]
    }
    write_whole(path, json.dumps(summary, indent=2))
    lines = (json.dumps(_line(row), ensure_ascii=False) + "\n" for row in rows)
    write_whole(_answers_file(folder, moment), "".join(lines))
    return summary


def _answers_file(folder: Path, moment: str) -> Path:
    return folder / "evaluation" / f"{moment}.jsonl"


def _line(row: EvaluationRow) -> dict[str, Any]:
    prompt = row.prompt
    return {
        "id": prompt.id,
        "kind": prompt.kind,
        "question": prompt.question,
        "image": prompt.image,
        "answer": prompt.answer,
        "response": row.response,
        "score": row.score,
        "truncated": row.truncated,
        "refused": is_refusal(row.response),
        "correct": bool(prompt.answer) and exact_match(row.response, prompt.answer),
    }
