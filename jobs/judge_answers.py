"""Scores for answers that exist already, without a model: `python jobs/evaluate.py judge --benchmark prism ...`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import SafeVLError
from rlhf.evaluation import prism
from rlhf.ledger import write_whole


def main(arguments: Sequence[str]) -> None:
    """Judge one file of answers by rules and write the numbers. Exit code 1 for an unusable file."""
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py judge", description=__doc__)
    parser.add_argument("--benchmark", choices=("prism",), required=True, help="whose rules and numbers")
    parser.add_argument("--answers", type=Path, required=True, help="JSON lines: question_id, prompt, text, ...")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the numbers")
    chosen = parser.parse_args(arguments)
    try:
        found = prism.judge(prism.read_answers(chosen.answers))
    except SafeVLError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(chosen.output, json.dumps(found, indent=2) + "\n")
    if not found["complete"]:
        whole = ", ".join(str(count) for count in prism.WHOLE[found["task"]])
        print(f"incomplete: {found['rows']} rows; a whole file of {found['task']} has {whole}", flush=True)
    print(f"{found['task']}: {found['rows']} rows judged by rules, numbers in {chosen.output}", flush=True)
