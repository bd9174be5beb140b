"""Scores for answers that exist already, without a model: `python jobs/evaluate.py judge --benchmark NAME ...`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jobs import guard_answers, vlguard_answers
from jobs.command_line import claim_output, refusals
from rlhf.data.rejected import RejectedRows
from rlhf.evaluation import prism
from rlhf.evaluation.privacy_judges import PrivacyJudgeConfig, build_privacy_judge, opinions_on
from rlhf.ledger import write_whole

_OTHERS = {"vlguard": vlguard_answers.main, "guard": guard_answers.main}


def main(arguments: Sequence[str]) -> None:
    """Judge one file of answers and write the numbers. An unusable file ends as errors do everywhere."""
    first = argparse.ArgumentParser(prog="jobs/evaluate.py judge", description=__doc__, add_help=False)
    first.add_argument("--benchmark", choices=("prism", *_OTHERS), help="whose rules and numbers")
    known, rest = first.parse_known_args(arguments)
    if known.benchmark in _OTHERS:
        _OTHERS[known.benchmark](rest)
        return
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py judge", description=__doc__)
    parser.add_argument(
        "--benchmark", choices=("prism", *_OTHERS), required=True, help="the others have options of their own"
    )
    parser.add_argument("--answers", type=Path, required=True, help="JSON lines: question_id, prompt, text, ...")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the numbers")
    parser.add_argument("--base-url", help="judge by a model at this OpenAI-compatible endpoint, not by rules")
    parser.add_argument("--model", help="that model's name")
    chosen = parser.parse_args(arguments)
    with refusals():
        claim_output(chosen.output, chosen.answers)
        found = _judged(chosen.answers, chosen.base_url, chosen.model)
        write_whole(chosen.output, json.dumps(found, indent=2) + "\n")
        if not found["complete"]:
            whole = ", ".join(str(count) for count in prism.WHOLE[found["task"]])
            has = f"{found['rows']} rows, {found['unreadable']} of them unreadable and {found['doubled']} doubled"
            print(f"incomplete: {has}; a whole file of {found['task']} has {whole}, each question once", flush=True)
        print(
            f"{found['task']}: {found['rows']} rows judged by {found['judge']}, numbers in {chosen.output}", flush=True
        )


def _judged(path: Path, base_url: str | None, model: str | None) -> dict[str, Any]:
    kind: Literal["rules", "openai"] = "openai" if base_url or model else "rules"
    config = PrivacyJudgeConfig(kind=kind, base_url=base_url, model=model)
    rejected = RejectedRows()
    answers, judge = prism.read_answers(path, rejected), build_privacy_judge(config)
    for error in rejected.errors:
        print(f"invalid: {error}", flush=True)
    opinions = opinions_on(judge, answers, concurrency=config.concurrency)
    return prism.judge(answers, opinions, judge.name, rejected.count)
