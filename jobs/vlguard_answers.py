"""VLGuard's numbers for answers that exist already: `python jobs/evaluate.py judge --benchmark vlguard --subset ...`.

No model, no images: the keyword rule reads texts. An answer that is missing or that nobody asked for stops it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.benchmark import listed
from jobs.command_line import claim_output, refusals
from rlhf.data.rejected import RejectedRows
from rlhf.data.vlguard import read_vlguard
from rlhf.errors import DataError
from rlhf.evaluation.vlguard import SUBSETS, Subset, questions_of, score
from rlhf.evaluation.vlguard_answers import Matched, read_answers
from rlhf.evaluation.vlguard_refusal import RefusalConfig, RefusalMatcher
from rlhf.ledger import write_whole


def judge(
    meta: Path, answers: Path, subset: Subset, options: RefusalConfig | None = None, partial: bool = False
) -> dict[str, Any]:
    """The numbers of one file of answers. Raises DataError for unusable files and, unless `partial`, for gaps."""
    rejected = RejectedRows()
    rows = read_vlguard(meta, rejected)
    rejected.check(len(rows) + rejected.count)
    questions = questions_of(rows, subset)
    if not questions:
        raise DataError(f"no row of the subset {subset}", source=str(meta))
    matched = read_answers(answers, subset, questions)
    if not matched.questions:
        raise DataError(f"not one of its answers is to {subset} of {meta}{_gaps(matched)}", source=str(answers))
    if (matched.missing or matched.extra) and not partial:
        remedy = f"these are not the answers to {subset} of {meta}; --partial scores what is there"
        raise DataError(f"{remedy}{_gaps(matched)}", source=str(answers))
    found = score(matched.questions, matched.answers, RefusalMatcher(options))
    return {**found, "missing": matched.missing, "extra": matched.extra}


def main(arguments: Sequence[str]) -> None:
    """Judge one file of answers and write the numbers. An unusable file, or gaps, end as errors do everywhere."""
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py judge --benchmark vlguard", description=__doc__)
    parser.add_argument("--subset", choices=SUBSETS, required=True, help="which rows, and which of their questions")
    parser.add_argument("--meta", type=Path, required=True, help="VLGuard's test.json")
    parser.add_argument(
        "--answers", type=Path, required=True, help="one object from image to text, or *.jsonl with id, response"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the numbers")
    parser.add_argument("--partial", action="store_true", help="score what is there, and list what is not")
    parser.add_argument("--fold-apostrophes", action="store_true", help="read typographic apostrophes as straight ones")
    parser.add_argument("--word-boundaries", action="store_true", help="match whole words only")
    chosen = parser.parse_args(arguments)
    options = RefusalConfig(fold_apostrophes=chosen.fold_apostrophes, word_boundaries=chosen.word_boundaries)
    with refusals():
        claim_output(chosen.output, chosen.meta, chosen.answers)
        found = judge(chosen.meta, chosen.answers, chosen.subset, options, chosen.partial)
        write_whole(chosen.output, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        for image, count in found["duplicate_images"].items():
            print(f"{count} rows share the image {image}; each is counted", flush=True)
        if found["missing"] or found["extra"]:
            print(f"partial: {len(found['missing'])} answers are missing, {len(found['extra'])} are extra", flush=True)
        said = f"{found['asr']['overall']} % did not refuse"
        print(f"{chosen.subset}: {found['rows']} rows, {said}; numbers in {chosen.output}", flush=True)


def _gaps(matched: Matched) -> str:
    """Both lists, which ids are in both, and how many lines were of no concern."""
    lists = {"missing": matched.missing, "extra": matched.extra}
    if matched.differing:
        lists["of these, another question is answered"] = matched.differing
    lines = [f"\n{listed(name, values)}" for name, values in lists.items()]
    if matched.elsewhere:
        lines.append(f"\n  {matched.elsewhere} lines are of other subsets")
    return "".join(lines)
