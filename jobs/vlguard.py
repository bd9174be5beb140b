"""VLGuard on a model: `python jobs/evaluate.py --benchmark vlguard --config jobs/configs/7b/vlguard_evaluate.yaml`.

Asks the three subsets of test.json, greedily with 256 tokens as published. Writes `evaluation/vlguard.json` (numbers),
`evaluation/vlguard.jsonl` (answers, which `evaluate.py judge --benchmark vlguard` reads), the published answer files
`results/<subset>/<name>.json`, and `report.html`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from jobs.benchmark import about, run_benchmark, write_evaluation
from rlhf.config import Config, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, read_json
from rlhf.data.vlguard import read_vlguard
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.judges import Case, JudgeConfig, build_judge, judge_all
from rlhf.evaluation.vlguard import (
    ATTACKS,
    SUBSETS,
    Question,
    Subset,
    mean_harmfulness,
    questions_of,
    score,
    seed_results,
    success_rates,
)
from rlhf.evaluation.vlguard_answers import answer_line
from rlhf.evaluation.vlguard_refusal import RefusalConfig, RefusalMatcher
from rlhf.evaluation.vlguard_win_rate import Comparison, WinRateConfig, WinRateJudge, choose, win_rate
from rlhf.inference import Answer, Decoding, GenerationConfig
from rlhf.ledger import Ledger, write_whole
from rlhf.metrics import Progress
from rlhf.vlguard_report import write_vlguard_report


class VLGuardFiles(Config):
    """Where the questions are."""

    meta: str
    """VLGuard's test.json."""
    image_root: str
    """Folder that image paths are relative to (the unpacked test.zip)."""
    subsets: tuple[Subset, ...] = Field(default=SUBSETS, min_length=1)
    """unsafes: unsafe images. safe_unsafes, safe_safes: safe images with an unsafe or a safe question."""

    @field_validator("subsets")
    @classmethod
    def _once_each(cls, subsets: tuple[Subset, ...]) -> tuple[Subset, ...]:
        return tuple(dict.fromkeys(subsets))


class VLGuardDecoding(Decoding):
    """How answers are drawn: as published, greedily and briefly."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Budget of one answer; published: 256."""


class VLGuardConfig(GenerationConfig):
    """Which questions, who answers, who judges."""

    vlguard: VLGuardFiles
    sampling: VLGuardDecoding = VLGuardDecoding()
    refusals: RefusalConfig = RefusalConfig()
    judges: tuple[JudgeConfig, ...] = ()
    """Second opinions on the two attack subsets beside the keyword rule, for example a guard model."""
    win_rate: WinRateConfig | None = None
    """Compare the answers to safe questions with the references; unset: not measured."""
    label: str = ""
    """What the data are, if not the published benchmark; stands above every result."""


@dataclass(frozen=True)
class Asked:
    """The questions of a subset that were answered, in file order, and how many were not."""

    questions: list[Question]
    answers: list[Answer]
    unanswered: int

    @property
    def texts(self) -> list[str]:
        """What was said."""
        return [answer.response for answer in self.answers]


def run(config: VLGuardConfig) -> dict[str, Any]:
    """Answer, judge, write and print, or go on where an earlier process was stopped; returns the results."""
    return run_benchmark(config, "vlguard", partial(_run, config), _show)


def _run(config: VLGuardConfig, folder: Path, target: Path) -> None:
    from jobs.generation import answer_prompts
    from rlhf.data.processor import Processor

    rejected = RejectedRows(folder / "rejected.jsonl")
    Processor.load(config.model)  # a missing model is refused before anything starts
    questions = read_questions(config.vlguard, rejected)
    images = ImageFolder(Path(resolve(config.vlguard.image_root)), check=False)
    prompts = [one.prompt(images) for found in questions.values() for one in found]
    made = answer_prompts(config, {"all": (config.model, prompts)}, folder / "generation", rejected)["all"]
    asked = {subset: _answered(found, made, images) for subset, found in questions.items()}
    write_results(config, asked, target, rejected.count)


def read_questions(files: VLGuardFiles, rejected: RejectedRows) -> dict[Subset, list[Question]]:
    """The questions by subset in file order. Raises DataError where a chosen subset has none."""
    rows = read_vlguard(Path(resolve(files.meta)), rejected)
    found = {subset: questions_of(rows, subset) for subset in files.subsets}
    if empty := [subset for subset, questions in found.items() if not questions]:
        raise DataError(f"no usable row for {', '.join(empty)}; leave them out of vlguard.subsets", source=files.meta)
    return found


def write_results(config: VLGuardConfig, asked: Mapping[Subset, Asked], target: Path, rejected: int) -> dict[str, Any]:
    """Judge what was answered; write numbers, lines, published answer files and the page. Returns the numbers."""
    folder, matcher = target.parent, RefusalMatcher(config.refusals)
    subsets: dict[str, list[dict[str, Any]]] = {}
    lines: list[dict[str, Any]] = []
    for subset, found in asked.items():
        numbers = score(found.questions, found.texts, matcher)
        more, verdicts = _second_opinions(config, subset, found, folder / "verdicts")
        kept = {key: numbers[key] for key in ("subset", "complete", "empty", "duplicate_images")}
        subsets[subset] = [{**kept, **one, "unanswered": found.unanswered} for one in (numbers, *more)]
        for place, (one, answer) in enumerate(zip(found.questions, found.answers, strict=True)):
            phrase = matcher.phrase(answer.response)
            judged = {"verdict": "answered" if phrase is None else "refused", "phrase": phrase}
            opinions = {judge: made[place] for judge, made in verdicts.items()}
            lines.append({**answer_line(one, answer.response, answer.truncated), **judged, "verdicts": opinions})
        write_seed_file(folder.parent / "results" / subset / f"{Path(config.run.name).name}.json", found)
    wins = _win_rate(config, asked["safe_safes"], folder) if config.win_rate and "safe_safes" in asked else None
    results = {
        **about(config, config.label, rejected),
        "images": "padded to a square" if config.model.pad_to_square else "as the model's own processor takes them",
        "subsets": subsets,
        "win_rate": wins,
        "silent": sum(
            one.get("silent", 0) for one in (wins or {}, *(one for found in subsets.values() for one in found))
        ),
        "summary": summary(subsets, wins),
    }
    write_evaluation(target, results, lines)
    write_vlguard_report(folder.parent, results, lines, Path(resolve(config.vlguard.image_root)))
    return results


def summary(subsets: Mapping[str, Sequence[Mapping[str, Any]]], wins: Mapping[str, Any] | None) -> dict[str, Any]:
    """The benchmark's headline numbers by the keyword rule, in percent; None where something was not asked."""
    asr = {subset: judges[0]["asr"]["overall"] for subset, judges in subsets.items()}
    return {
        "safe_safes_win_rate": wins["win_rate"] if wins else None,
        "safe_unsafes_asr": asr.get("safe_unsafes"),
        "unsafes_asr": asr.get("unsafes"),
        "mean_harmfulness": mean_harmfulness(asr),
        "over_refusal": subsets["safe_safes"][0]["refusal_rate"] if "safe_safes" in subsets else None,
    }


def write_seed_file(path: Path, found: Asked) -> None:
    """The published answer file, an object from image to text; images of several rows are said, as one answer goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = seed_results(found.questions, found.texts)
    if lost := len(found.questions) - len(content):
        print(f"{path.name}: {lost} answer(s) to images of several rows are in evaluation/vlguard.jsonl only")
    write_whole(path, json.dumps(content, indent=4, ensure_ascii=False))


def _answered(questions: Sequence[Question], made: Mapping[str, Answer], images: ImageFolder) -> Asked:
    pairs = [(one, made.get(one.prompt(images).id)) for one in questions]
    kept = [(one, answer) for one, answer in pairs if answer is not None]
    return Asked([one for one, _ in kept], [answer for _, answer in kept], len(pairs) - len(kept))


def _second_opinions(
    config: VLGuardConfig, subset: Subset, found: Asked, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Numbers of every further judge on an attack subset, and its verdicts by judge."""
    numbers: list[dict[str, Any]] = []
    verdicts: dict[str, list[str]] = {}
    if subset not in ATTACKS:
        return numbers, verdicts
    images = ImageFolder(Path(resolve(config.vlguard.image_root)), check=False)
    cases = [Case(one.prompt(images), text) for one, text in zip(found.questions, found.texts, strict=True)]
    for place, judge_config in enumerate(config.judges):
        judge = build_judge(judge_config)
        with (
            Ledger(folder / f"judge-{place}", {"judge": judge.name}) as ledger,
            Progress(f"judged {subset} by {judge.name[:40]}", len(cases)) as progress,
        ):
            tell = partial(progress.advance, values={})
            made = judge_all(judge, cases, ledger, judge_config.concurrency, tell)
        verdicts[judge.name] = [one.verdict for one in made]
        opinions = {"unsafe": True, "safe": False}
        rates = success_rates(found.questions, [opinions.get(one.verdict) for one in made])
        numbers.append({"judge": judge.name, **rates, "silent": sum(one.silent for one in made)})
    return numbers, verdicts


def _win_rate(config: VLGuardConfig, found: Asked, folder: Path) -> dict[str, Any]:
    """The win rate, and the judged list as the published script writes it."""
    judge = WinRateJudge(config.win_rate) if config.win_rate else None
    if judge is None:
        raise ConfigError(["win_rate: the section is missing"])
    references = _references(judge.config.references, found.questions)
    images = ImageFolder(Path(resolve(config.vlguard.image_root)), check=False)
    compared = [
        Comparison(f"{one.row.index}", one.text, images.locate(one.row.image), text, reference)
        for one, text, reference in zip(found.questions, found.texts, references, strict=True)
    ]
    with (
        Ledger(folder / "verdicts" / "win_rate", {"judge": judge.name}) as ledger,
        Progress(f"compared by {judge.config.model}", len(compared) * (1 + judge.config.swap)) as progress,
    ):
        choices = choose(judge, compared, ledger, lambda done: progress.advance(done, {}))
    rows = [
        {
            "id": one.row.id,
            "image": one.row.image,
            "safe": True,
            "instruction": one.text,
            "output_1": pair.ours,
            "output_2": pair.reference,
            "choice": None if choice.lost else choice.first,
            **({"choice_swapped": choice.second, "outcome": choice.outcome} if judge.config.swap else {}),
        }
        for one, pair, choice in zip(found.questions, compared, choices, strict=True)
    ]
    write_whole(folder / "win_rate.json", json.dumps(rows, indent=4, ensure_ascii=False))
    return {"judge": judge.name, **win_rate(compared, choices)}


def _references(file: str | None, questions: Sequence[Question]) -> list[str]:
    """The data's own safe answers, or those of a file with id and output. Raises DataError for one that is missing."""
    if file is None:
        return [one.reference for one in questions]
    content = read_json(Path(resolve(file)))
    try:
        outputs = {(row["id"], row["image"]): row["output"] for row in content}
    except (KeyError, TypeError):
        raise DataError("expected a list of objects with id, image and output", source=file) from None
    keys = [(one.row.id, one.row.image) for one in questions]
    if missing := [key[0] for key in keys if not isinstance(outputs.get(key), str)]:
        raise DataError(f"no output for {', '.join(missing)}; give the references of this test file", source=file)
    return [outputs[key] for key in keys]


def _show(results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    title = " - ".join(part for part in ("VLGuard", results["label"]) if part)
    table = Table("subset", "judge", "not refused, %", "95 % interval", "rows", "refused, %", title=title)
    for subset, judges in results["subsets"].items():
        for one in judges:
            low_high = one["intervals"]["overall"]
            interval = f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else "-"
            table.add_row(
                subset, one["judge"], str(one["asr"]["overall"]), interval, str(one["rows"]), str(one["refusal_rate"])
            )
    table.caption, table.caption_justify = f"model: {results['model']}\ndecoding: {results['decoding']}", "left"
    console.print(table)
    for key, value in results["summary"].items():
        print(f"{key.replace('_', ' ')}: {'-' if value is None else f'{value:.2f} %'}", flush=True)
