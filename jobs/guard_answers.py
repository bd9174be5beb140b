"""A guard's numbers for answers that exist already: `python jobs/evaluate.py judge --benchmark guard --meta ...`.

No model of ours: answers of any guard, of moderation endpoints or of Llama Guards are read and scored. Rows without an
answer, and answers without a row, stop it. Beside the numbers stand, if asked for, the votes of people on the verdicts
and the grades that a model gives to their rationales.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from jobs.benchmark import listed
from jobs.command_line import claim_output, refusals
from jobs.guard import GuardFiles, read_cases, show_gaps
from rlhf.config import resolve
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import decoded, read_json
from rlhf.errors import DataError
from rlhf.guard.agreement import agreement_of, read_votes, write_ballot
from rlhf.guard.baselines import READERS, Kind
from rlhf.guard.guards import EndpointConfig
from rlhf.guard.metrics import align, evaluate
from rlhf.guard.policy import KEYS
from rlhf.guard.predictions import read_predictions, repetitions
from rlhf.guard.rationale_judge import Explained, grade, grades_of, win_rate
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import Verdict
from rlhf.ledger import write_whole

_GRADE_TOKENS = 64


class Cases:
    """A test set, and answers to it with the keys that its own have. Without `image_root`, images are not checked."""

    def __init__(self, meta: Path, names: str, image_root: Path | None = None) -> None:
        """Raises DataError for a file that is none, or has a bad row or, with `image_root`, a broken image."""
        rejected, root = RejectedRows(), image_root or meta.parent
        files = GuardFiles(test=str(meta), image_root=str(root), taxonomy=names, keys=_keys(meta))
        self.requests, self.truths = read_cases(files, rejected, check_images=image_root is not None)
        rejected.check(len(self.requests) + rejected.count)
        self._names, self._meta = taxonomy(resolve(names)), meta

    def read(self, path: Path, kind: Kind, partial: bool = False) -> dict[str, Verdict]:
        """Verdicts by id. Raises DataError for an unusable line and, unless `partial`, for missing or extra ones."""
        rejected = RejectedRows()
        read = READERS[kind]
        found = read_predictions(path, self.requests, rejected, lambda said, policy: read(said, policy, self._names))
        rejected.check(len(found) + rejected.count)
        aligned = align(self.truths, found)
        if (aligned.missing or aligned.extra) and not partial:
            remedy = f"these are not the answers to {self._meta}; --partial scores what is there"
            gaps = f"{listed('missing', aligned.missing)}\n{listed('extra', aligned.extra)}"
            raise DataError(f"{remedy}\n{gaps}", source=str(path))
        if len(aligned.missing) == len(self.truths):
            raise DataError(f"not one of its answers is to {self._meta}", source=str(path))
        return found

    def score(self, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
        """All numbers: of all rows (lenient, strict, coverage), then of parts; `missing` and `extra` are ids."""
        aligned = align(self.truths, verdicts)
        found = evaluate(aligned)
        gaps = {"missing": list(aligned.missing), "extra": list(aligned.extra)}
        return {**found.pop("all"), **found, **gaps, **repetitions(self.requests, self.truths)}

    def grades(self, verdicts: Mapping[str, Verdict], judge: EndpointConfig) -> dict[str, int | None]:
        """The judge's grade of every rationale by the id of its row. Raises EndpointError, ImageError."""
        chat = judge.chat(_GRADE_TOKENS)
        told = {
            one.id: Explained(one.image, one.policy, said.rating, said.category or "none", said.rationale)
            for one in self.requests
            if (said := verdicts.get(one.id)) is not None and said.rating is not None and said.rationale
        }
        with ThreadPoolExecutor(max_workers=judge.concurrency) as pool:
            return dict(zip(told, pool.map(partial(grade, chat), told.values()), strict=True))

    def ballot(self, path: Path, verdicts: Mapping[str, Verdict]) -> int:
        """Write verdicts as a CSV to vote on, by the rater whom the file is named after; returns the lines."""
        shown = {one.id: (one.image, verdicts[one.id]) for one in self.requests if one.id in verdicts}
        return write_ballot(path, shown, path.stem)


def _keys(meta: Path) -> tuple[str, ...]:
    """Keys of the first row's own answer, in their order; every row's question is compared with them later."""
    try:
        return tuple(decoded(read_json(meta)[0]["conversations"][1]["value"]))
    except (ValueError, LookupError, TypeError):
        return KEYS


def votes_on(verdicts: Mapping[str, Verdict], ballots: Sequence[Path]) -> dict[str, Any]:
    """Agreement of people with these verdicts. Raises DataError for a vote on something else."""
    votes = [vote for path in ballots for vote in read_votes(path)]
    if strange := sorted({vote.id for vote in votes} - set(verdicts)):
        raise DataError(f"votes on what has no verdict: {', '.join(strange)}", source=str(ballots[0]))
    return agreement_of(votes)


def _judged(chosen: argparse.Namespace) -> dict[str, Any]:
    cases = Cases(chosen.meta, chosen.taxonomy, chosen.image_root)
    verdicts = cases.read(chosen.answers, chosen.kind, chosen.partial)
    found: dict[str, Any] = {"kind": chosen.kind, **cases.score(verdicts)}
    if chosen.ballot is not None:
        print(f"{cases.ballot(chosen.ballot, verdicts)} verdicts to vote on in {chosen.ballot}", flush=True)
    if chosen.votes:
        found["agreement"] = votes_on(verdicts, chosen.votes)
    if chosen.base_url is not None:
        judge = EndpointConfig(base_url=chosen.base_url, model=chosen.model)
        grades = cases.grades(verdicts, judge)
        found["rationales"] = {"judge": judge.model, **grades_of(list(grades.values()))}
        if chosen.against is not None:
            others = cases.grades(cases.read(chosen.against, chosen.kind, chosen.partial), judge)
            both = [name for name in grades if name in others]
            wins = win_rate([grades[name] for name in both], [others[name] for name in both])
            found["rationales"] |= {"against": grades_of(list(others.values())), "win_rate": wins}
    return found


def main(arguments: Sequence[str]) -> None:
    """Judge one file of answers and write the numbers. An unusable file or gaps end as errors do everywhere."""
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py judge --benchmark guard", description=__doc__)
    file = partial(parser.add_argument, type=Path)
    file("--meta", required=True, help="rows of jobs/build_guard_data.py or the tiny world (test.json)")
    file("--answers", "--predictions", required=True, help="JSON lines of id and response, as in predictions.jsonl")
    file("--output", required=True, help="JSON file for the numbers")
    file("--image-root", help="folder of the images: checks them, and knows equal files of other names")
    parser.add_argument("--taxonomy", default="default", help="what the rows were made with: a name, or a YAML file")
    kinds = "guard: what our prompt asks for; moderation: OpenAI's objects; llama_guard: safe, or unsafe and codes"
    parser.add_argument("--kind", choices=tuple(READERS), default="guard", help=f"whose answers: {kinds}")
    parser.add_argument("--partial", action="store_true", help="score what is there, and list what is not")
    file("--ballot", help="write the verdicts to this CSV, named after a rater, for votes of yes and no")
    file("--votes", nargs="+", help="such CSVs, filled in: how far people agree")
    parser.add_argument("--base-url", help="grade the rationales by a model at this OpenAI-compatible endpoint")
    parser.add_argument("--model", help="that model's name")
    file("--against", help="other answers of the same kind: how often the first ones' rationale has the higher grade")
    chosen = parser.parse_args(arguments)
    if (chosen.base_url is None) != (chosen.model is None) or (chosen.base_url and chosen.image_root is None):
        parser.error("grades of rationales need --base-url, --model and --image-root")
    if chosen.against is not None and chosen.base_url is None:
        parser.error("--against compares grades: it needs --base-url and --model")
    with refusals():
        claim_output(chosen.output, chosen.meta, chosen.answers)
        found = _judged(chosen)
        write_whole(chosen.output, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    show_gaps(found["missing"], found["extra"], found)
    balanced = " and ".join(f"{found[way]['balanced_accuracy']} {way}" for way in ("lenient", "strict"))
    print(f"{found['rows']} rows, balanced accuracy {balanced}; numbers in {chosen.output}", flush=True)
