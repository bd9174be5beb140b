"""A guard on a test set: `python jobs/evaluate.py --benchmark guard --config jobs/configs/tiny/guard_evaluate.yaml`.

Asks about every image under its own policy, a model in engines of this job or another guard behind an `endpoint`.
Writes `predictions.jsonl` (from engines as answers come; `evaluate.py judge --benchmark guard` reads it),
`evaluation/guard.json` (all numbers) and `.jsonl` (verdicts beside the truth), `summary.json` and `report.html`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import model_validator

from jobs.benchmark import about, listed, run_benchmark, write_evaluation
from rlhf.config import Config, ModelConfig, resolve
from rlhf.data.images import load_image
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import read_json
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.asking import Patience, ask_all
from rlhf.guard.asking import GuardGenerationConfig, batch_prompt, held_to, require_room_for
from rlhf.guard.baselines import GUARDS, READERS, BaselineConfig
from rlhf.guard.guards import EndpointGuard
from rlhf.guard.metrics import Truth, align, evaluate, read_truths
from rlhf.guard.policy import KEYS, build_policy
from rlhf.guard.policy_config import mistakes
from rlhf.guard.predictions import prediction_line, read_requests, repetitions, write_predictions
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.report import write_guard_report
from rlhf.guard.taxonomy import taxonomy, taxonomy_file
from rlhf.guard.verdict import Verdict, parse_verdict, silent_verdict
from rlhf.inference import Answer, fingerprint
from rlhf.ledger import Ledger, write_whole
from rlhf.metrics import Progress

Ask = Callable[[Sequence[GuardRequest]], tuple[dict[str, Verdict], dict[str, Any]]]
"""Verdicts by id, and what stands beside their numbers."""
PREDICTIONS, SUMMARY = "predictions.jsonl", "summary.json"
_SUMMARISED = ("balanced_accuracy", "recall", "specificity", "policy_exception_rate", "policy_exception_score")


class GuardFiles(Config):
    """The test set."""

    test: str
    """Rows that `jobs/build_guard_data.py` or the tiny world wrote (test.json)."""
    image_root: str
    """Folder that image paths are relative to."""
    taxonomy: str = "default"
    """What the rows were made with: a packaged one (default, eu, tiny, tiny_answers) or a YAML file ("./mine.yaml")."""
    keys: tuple[str, ...] = KEYS
    """Keys of an answer, as in the rows."""

    @model_validator(mode="after")
    def _policy_can_be_built(self) -> GuardFiles:
        file = taxonomy_file(resolve(self.taxonomy))
        if problems := mistakes("guard", lambda: build_policy(taxonomy(str(file)), keys=self.keys), [file]):
            raise ConfigError(problems)
        return self


class GuardConfig(GuardGenerationConfig):
    """Which guard, which test set."""

    guard: GuardFiles
    model: ModelConfig = ModelConfig(path="")
    """The guard; leave it out where there is an endpoint."""
    endpoint: BaselineConfig | None = None
    """Ask this guard instead; nothing of this job's engines is used then."""
    label: str = ""
    """What the data are, if not a published test set; stands above every result."""

    @model_validator(mode="after")
    def _one_guard(self) -> GuardConfig:
        if bool(self.model.path) == (self.endpoint is not None):
            raise ConfigError(["the guard's benchmark needs either model or endpoint"])
        return self


def run(config: GuardConfig) -> dict[str, Any]:
    """Ask, score, write and print, or go on where an earlier process was stopped; returns the results."""
    weights = _weights(config)
    return run_benchmark(config, "guard", partial(_run, config), _show, lambda found: found["model_hash"] == weights)


def _run(config: GuardConfig, folder: Path, target: Path) -> None:
    rejected = RejectedRows(folder / "rejected.jsonl")
    if config.endpoint is None:
        ask = _engines(config, folder, rejected)
    else:
        ask = _endpoint(config, config.endpoint, folder, rejected)
    requests, truths = read_cases(config.guard, rejected)
    if not requests:
        rejected.check(rejected.count, config.max_rejected_share)
        raise DataError("no usable row", source=config.guard.test)
    verdicts, facts = ask(requests)
    write_predictions(folder / PREDICTIONS, verdicts)  # whole, and in the order of the test set
    results = {
        **about(config, config.label, rejected.count),
        **facts,
        "model_hash": _weights(config),
        "taxonomy": config.guard.taxonomy,
        "keys": list(config.guard.keys),
        **repetitions(requests, truths),
        **evaluate(align(truths, verdicts)),
    }
    lines = [_line(truth, one, verdicts) for truth, one in _beside(truths, requests)]
    write_evaluation(target, results, lines)
    write_whole(folder / SUMMARY, json.dumps(summary(results), indent=2, ensure_ascii=False) + "\n")
    write_guard_report(folder, results, lines)


def read_cases(
    files: GuardFiles, rejected: RejectedRows, check_images: bool = True
) -> tuple[list[GuardRequest], list[Truth]]:
    """Requests and truths of the test set; a row that lacks a truth is not asked, one that cannot be asked is missing.

    Raises DataError for a file that is no list of rows.
    """
    path, chosen = Path(resolve(files.test)), taxonomy(resolve(files.taxonomy))
    requests = read_requests(path, Path(resolve(files.image_root)), chosen, rejected, files.keys, check_images)
    known = {error.row for error in rejected.errors}
    refused = RejectedRows()
    truths = read_truths(path, refused)
    for error in refused.errors:
        if error.row not in known:
            rejected.add(error)
    told = {truth.id for truth in truths}
    return [one for one in requests if one.id in told], truths


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The headline numbers, lenient (what cannot be read is left out, as published) and strict (it is wrong)."""
    found = results["all"]
    kept = {way: {name: found[way][name] for name in _SUMMARISED} for way in ("lenient", "strict")}
    named = {"label": results["label"], "model": results["model"], "rows": found["rows"], "invalid": found["invalid"]}
    accuracy = {way: results["category_accuracy"][way] for way in kept}
    return {
        **named,
        "coverage": found["coverage"],
        **{way: {**numbers, "category_accuracy": accuracy[way]} for way, numbers in kept.items()},
    }


def _engines(config: GuardConfig, folder: Path, rejected: RejectedRows) -> Ask:
    """A guard in engines of this job."""
    from rlhf.data.processor import Processor

    processor = Processor.load(config.model)  # a missing model is refused before anything starts

    def ask(requests: Sequence[GuardRequest]) -> tuple[dict[str, Verdict], dict[str, Any]]:
        require_room_for(config, requests, processor)
        answers = _answers(config, requests, folder, rejected)
        seconds = sum(one.seconds for one in answers.values()) / len(answers) if answers else None
        return (
            {one.id: parse_verdict(answers[one.id].response, one.policy) for one in requests if one.id in answers},
            {"truncated": sum(answer.truncated for answer in answers.values()), "seconds_per_image": seconds},
        )

    return ask


def _endpoint(config: GuardConfig, endpoint: BaselineConfig, folder: Path, rejected: RejectedRows) -> Ask:
    """A guard behind an endpoint: it is not asked twice what it answered, and its silence on a question is invalid."""
    names = taxonomy(resolve(config.guard.taxonomy))
    guard, read = GUARDS[endpoint.kind](endpoint, config.sampling, names), READERS[endpoint.kind]
    who = f"{endpoint.kind}: {endpoint.model} at {endpoint.chat(1).host}"
    decoding = config.sampling.words if endpoint.kind == "guard" else "the endpoint's own"

    def ask(requests: Sequence[GuardRequest]) -> tuple[dict[str, Verdict], dict[str, Any]]:
        total = len(requests) + rejected.count
        usable = [one for one, _ in rejected.survivors(requests, lambda one: load_image(one.image))]
        rejected.check(total, config.max_rejected_share)
        keys = {one.id: json.dumps([one.id, one.image, one.policy.sha256, one.asked, one.said]) for one in usable}
        with (
            Ledger(folder / "verdicts", {"guard": who, "decoding": decoding}) as ledger,
            Progress("judged", len(usable)) as progress,
        ):
            todo = {keys[one.id]: partial(_raw, guard, one) for one in usable if keys[one.id] not in ledger.entries}
            tell = partial(progress.advance, values={})
            lost = ask_all(todo, ledger.add, endpoint.concurrency, Patience(settled=len(usable) - len(todo)), tell)
        verdicts = {
            one.id: silent_verdict(lost[keys[one.id]])
            if keys[one.id] in lost
            else read(ledger.entries[keys[one.id]]["raw"], one.policy, names)
            for one in usable
        }
        facts = {"model": who, "decoding": decoding, "engine": "an endpoint", "truncated": 0, "seconds_per_image": None}
        return verdicts, facts

    return ask


def _raw(guard: EndpointGuard, request: GuardRequest) -> dict[str, str]:
    return {"raw": guard.ask(request).raw}


def _answers(
    config: GuardConfig, requests: Sequence[GuardRequest], folder: Path, rejected: RejectedRows
) -> dict[str, Answer]:
    """Answers by the id of their request; each stands in the file of predictions as soon as it is safe."""
    from jobs.generation import answer_prompts

    path = Path(resolve(config.guard.test))
    places = _places(path)
    prompts = [batch_prompt(one, path.stem, places[one.id]) for one in requests]
    by_prompt = {prompt.id: request for prompt, request in zip(prompts, requests, strict=True)}
    asked = held_to(config, requests[0])
    with _predictions(folder / PREDICTIONS, by_prompt) as tell:
        models = {"guard": (config.model, prompts)}
        # by weights: a guard that was trained anew under the same name is asked again
        kept = folder / "generation" / (_weights(config)[:12] or "hub")
        answers = answer_prompts(asked, models, kept, rejected, tell)["guard"]
    return {by_prompt[name].id: answer for name, answer in answers.items()}


def _places(path: Path) -> dict[str, int]:
    """Rows by id; of several with one id the first, which is the one that is asked."""
    ids = [str(row.get("id")).strip() if isinstance(row, dict) else "" for row in read_json(path)]
    return {name: place for place, name in reversed(list(enumerate(ids)))}


@contextmanager
def _predictions(path: Path, asked: Mapping[str, GuardRequest]) -> Iterator[Callable[[Sequence[Answer]], None]]:
    """Hears of answers and appends their lines; what was there is told again by the ledger."""
    with path.open("w", encoding="utf-8") as file:

        def tell(answers: Sequence[Answer]) -> None:
            for answer in answers:
                request = asked[answer.prompt_id]
                line = prediction_line(request.id, parse_verdict(answer.response, request.policy))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        yield tell


def _weights(config: GuardConfig) -> str:
    return fingerprint(resolve(config.model.path)) if config.endpoint is None else ""


def _beside(truths: Sequence[Truth], requests: Sequence[GuardRequest]) -> Iterator[tuple[Truth, GuardRequest]]:
    by_id = {one.id: one for one in requests}
    return ((truth, by_id[truth.id]) for truth in truths if truth.id in by_id)


def _line(truth: Truth, request: GuardRequest, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    verdict = verdicts.get(truth.id)
    return {
        "id": truth.id,
        "image": request.image,
        "asked": request.asked,
        "said": request.said,
        "augmentation": truth.augmentation,
        "overrides": dict(request.policy.overrides),
        "wanted": {"rating": truth.rating, "category": truth.category},
        "status": verdict.status if verdict else "missing",
        "rating": verdict.rating if verdict else None,
        "categories": list(verdict.categories) if verdict else [],
        "rationale": verdict.rationale if verdict else "",
        "raw": verdict.raw if verdict else "",
        "reason": verdict.reason if verdict else "the row was rejected: see rejected.jsonl",
    }


def _show(results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    title = " - ".join(part for part in ("guard", results["label"]) if part)
    heads = ("rows", "way", "balanced accuracy", "recall", "specificity", "exceptions seen", "PES", "coverage")
    table = Table("policies", *heads, title=title)
    for name in ("all", "default_policy"):
        found = results[name]
        for way in ("lenient", "strict"):
            numbers = [_number(found[way][key]) for key in _SUMMARISED]
            table.add_row(name.replace("_", " "), str(found["rows"]), way, *numbers, _number(found["coverage"]))
    table.caption, table.caption_justify = f"model: {results['model']}\ndecoding: {results['decoding']}", "left"
    console.print(table)
    category = results["category_accuracy"]
    print(
        f"category right: {_number(category['lenient'])} lenient, {_number(category['strict'])} strict; "
        f"{results['all']['invalid']} invalid, {results['truncated']} truncated",
        flush=True,
    )
    show_gaps(results["missing"]["ids"], results["extra"]["ids"], results)


def show_gaps(missing: Sequence[str], extra: Sequence[str], results: Mapping[str, Any]) -> None:
    """Print rows without prediction, predictions without row, and rows of the test set that ask the same."""
    if missing or extra:
        print(f"{listed('missing', missing)}\n{listed('extra', extra)}", flush=True)
    if results["repeated"]:
        print(f"{listed('asked again, counted twice', results['repeated'])}", flush=True)
    for ids in results["contradictions"]:
        print(f"  same image and policy, another truth: {', '.join(ids)}", flush=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
