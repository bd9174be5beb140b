"""PRISM on a model: `python jobs/evaluate.py --benchmark prism --config jobs/configs/tiny/safe_prism.yaml`.

Asks PRISM's questions, control questions that nobody has to refuse, and general ones. Writes answers in the seed's
format (`answers/<condition>/PRISM_<task>_Answer.jsonl`) as they come, `evaluation/prism.json` and `report.html`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from jobs.benchmark import about, run_benchmark, write_evaluation
from rlhf.config import Config, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError
from rlhf.evaluation import prism
from rlhf.evaluation.general import GeneralConfig, GeneralQuestion, read_general, score_general
from rlhf.evaluation.prism_questions import PrismFiles, Question, answer_row, read_controls, read_questions
from rlhf.evaluation.privacy import declines
from rlhf.evaluation.privacy_judges import Opinion, PrivacyJudgeConfig, build_privacy_judge, opinions_on
from rlhf.evaluation.statistics import wilson_interval
from rlhf.inference import Answer, GenerationConfig
from rlhf.ledger import Ledger
from rlhf.metrics import Progress
from rlhf.privacy_report import write_privacy_report

PLAIN, PROMPTED, SECOND_TURN = "plain", "privacy_prompt", "second_turn"


class ControlFiles(Config):
    """Questions that nobody has to refuse: the eyes of an animal, the weight of a parcel, the age of a house."""

    questions: str
    """JSON lines with question_id, image, text."""
    image_root: str
    """Folder that image paths are relative to."""


class PrismConfig(GenerationConfig):
    """Which questions, who answers, who judges."""

    prism: PrismFiles
    controls: ControlFiles | None = None
    general: GeneralConfig | None = None
    judges: tuple[PrivacyJudgeConfig, ...] = Field(default=(PrivacyJudgeConfig(),), min_length=1)
    """Who judges; of several, their agreement is shown."""
    privacy_prompt: str | None = None
    """Ask everything of PRISM once more with this text before the question: what a prompt alone achieves."""
    second_turn: bool = False
    """Ask the hard question once more as the second turn of a conversation, after the answer to the soft one."""
    label: str = ""
    """What the data are, if not the published benchmark; stands above every result."""


@dataclass(frozen=True)
class Asked:
    """Everything that is asked, by the condition it is asked under."""

    questions: dict[str, list[Question]]
    controls: list[Any]
    general: list[GeneralQuestion]


def run(config: PrismConfig) -> dict[str, Any]:
    """Answer, judge, write and print, or go on where an earlier process was stopped; returns the results."""
    return run_benchmark(config, "prism", partial(_run, config), _show)


def _run(config: PrismConfig, folder: Path, target: Path) -> None:
    from rlhf.data.processor import Processor

    rejected = RejectedRows(folder / "rejected.jsonl")
    Processor.load(config.model)  # a missing model is refused before anything starts
    asked = _read(config, rejected)
    answers = _answer(config, asked, folder, rejected)
    results = {
        **about(config, config.label, rejected.count),
        "published_prompts": sum(one.published for one in asked.questions[PLAIN]) / len(asked.questions[PLAIN]),
        "privacy_prompt": config.privacy_prompt,
    }
    lines, tables = [], {}
    for condition, questions in asked.questions.items():
        tables[condition], judged = _judged(config, questions, answers, folder / "evaluation" / "verdicts")
        lines += [{"condition": condition, **line} for line in judged]
    results["conditions"] = tables
    results["controls"] = _controls(asked, answers) if asked.controls else None
    said = {one.prompt.id: answers[one.prompt.id].response for one in asked.general if one.prompt.id in answers}
    results["general"] = score_general(asked.general, said) or None
    write_evaluation(target, results, lines)
    write_privacy_report(folder, results, lines)


def _read(config: PrismConfig, rejected: RejectedRows) -> Asked:
    plain = read_questions(config.prism, rejected)
    if not plain:
        raise DataError("no usable question", source=config.prism.folder)
    questions = {PLAIN: [_under(PLAIN, one) for one in plain]}
    if config.privacy_prompt is not None:
        questions[PROMPTED] = [_under(PROMPTED, one, config.privacy_prompt) for one in plain]
    controls: list[Any] = []
    if config.controls is not None:
        files = config.controls
        controls = read_controls(Path(resolve(files.questions)), Path(resolve(files.image_root)), rejected)
    return Asked(questions, controls, read_general(config.general, rejected) if config.general else [])


def _under(condition: str, question: Question, before: str | None = None) -> Question:
    prompt = question.prompt
    text = prompt.question if before is None else f"{before}\n{prompt.question}"
    return replace(question, prompt=replace(prompt, id=f"{condition}/{prompt.id}", question=text))


def _answer(config: PrismConfig, asked: Asked, folder: Path, rejected: RejectedRows) -> dict[str, Answer]:
    """Answers by prompt id; second turns are added to `asked` as soon as the first ones are known."""
    from jobs.generation import answer_prompts

    prompts = [one.prompt for questions in asked.questions.values() for one in questions]
    prompts += [*asked.controls, *(one.prompt for one in asked.general)]
    with _answer_files(folder, asked.questions, config.model.path) as tell:
        answers = answer_prompts(config, {"all": (config.model, prompts)}, folder / "generation", rejected, tell)["all"]
    if config.second_turn:
        second = {SECOND_TURN: _second_turns(asked.questions[PLAIN], answers)}
        models = {"second_turn": (config.model, [one.prompt for one in second[SECOND_TURN]])}
        with _answer_files(folder, second, config.model.path) as tell:
            answers |= answer_prompts(config, models, folder / "generation", rejected, tell)["second_turn"]
        asked.questions.update(second)
    return answers


def _second_turns(questions: Sequence[Question], answers: Mapping[str, Answer]) -> list[Question]:
    hard = {one.question_id: one for one in questions if one.task == "refusal_hard"}
    found = []
    for first in questions:
        if first.task == "refusal_soft" and first.question_id in hard and first.prompt.id in answers:
            later = hard[first.question_id]
            history = ((first.prompt.question, answers[first.prompt.id].response),)
            identifier = f"{SECOND_TURN}/{later.prompt.id.partition('/')[2]}"
            found.append(replace(later, prompt=replace(later.prompt, id=identifier, history=history)))
    return found


@contextmanager
def _answer_files(
    folder: Path, conditions: Mapping[str, Sequence[Question]], model: str
) -> Iterator[Callable[[Sequence[Answer]], None]]:
    """Hears of answers and appends them to the file of their condition and task; what was there is told again."""
    known = {one.prompt.id: (condition, one) for condition, questions in conditions.items() for one in questions}
    files: dict[tuple[str, str], IO[str]] = {}

    def tell(answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.prompt_id not in known:
                continue  # a control or general question
            condition, question = known[answer.prompt_id]
            key = (condition, question.task)
            if key not in files:
                path = folder / "answers" / condition / f"PRISM_{question.task}_Answer.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                files[key] = path.open("w", encoding="utf-8")
            row = answer_row(question, answer.response, model, answer.truncated)
            files[key].write(json.dumps(row, ensure_ascii=False) + "\n")
        for file in files.values():
            file.flush()

    try:
        yield tell
    finally:
        for file in files.values():
            file.close()


def _judged(
    config: PrismConfig, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers by task, and a line for each answer."""
    table: dict[str, Any] = {}
    lines = []
    for task in dict.fromkeys(one.task for one in questions):
        mine = [one for one in questions if one.task == task and one.prompt.id in answers]
        if not mine:
            continue
        given = [
            prism.Answer(
                one.question_id,
                task,
                one.attribute,
                answers[one.prompt.id].response,
                one.prompt.question,
                answers[one.prompt.id].truncated,
            )
            for one in mine
        ]
        opinions = {}
        for judge_config in config.judges:
            judge, made = _opinions(judge_config, given, folder)
            opinions[judge] = made
        table[task] = {
            "judges": [prism.judge(given, made, name) for name, made in opinions.items()],
            "agreement": [
                {"judges": list(pair), **prism.agreement(opinions[pair[0]], opinions[pair[1]], task)}
                for pair in combinations(opinions, 2)
            ],
        }
        first = next(iter(opinions.values()))
        lines += [_line(one, answer, opinion) for one, answer, opinion in zip(mine, given, first, strict=True)]
    return table, lines


def _opinions(config: PrivacyJudgeConfig, answers: Sequence[prism.Answer], folder: Path) -> tuple[str, list[Opinion]]:
    judge = build_privacy_judge(config)
    if config.kind == "rules":
        return judge.name, opinions_on(judge, answers)
    with (
        Ledger(folder / str(config.model).replace("/", "_"), {"judge": judge.name}) as ledger,
        Progress(f"judged by {config.model}", len(answers)) as progress,
    ):
        return judge.name, opinions_on(
            judge, answers, ledger, config.concurrency, lambda done: progress.advance(done, {})
        )


def _line(question: Question, answer: prism.Answer, opinion: Opinion) -> dict[str, Any]:
    return {
        "id": question.prompt.id,
        "task": question.task,
        "attribute": question.attribute,
        "question": question.prompt.question,
        "image": question.prompt.image,
        "response": answer.text,
        "status": opinion.status,
        "refused": opinion.refused,
        "told": list(opinion.told),
    }


def _controls(asked: Asked, answers: Mapping[str, Answer]) -> dict[str, Any]:
    """How often a question that needs no refusal is refused, of all and by what it is about."""
    kinds: dict[str, list[bool]] = {}
    for prompt in asked.controls:
        if prompt.id in answers:
            kinds.setdefault(prompt.kind.split("/")[1], []).append(declines(answers[prompt.id].response))
    every = [one for found in kinds.values() for one in found]
    return {name: _share(found) for name, found in {"all": every, **kinds}.items()}


def _share(found: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(found), len(found)) if found else (None, None)
    return {"rows": len(found), "refused": sum(found) / len(found) if found else None, "interval": [low, high]}


def _show(results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    title = " - ".join(part for part in ("PRISM", results["label"]) if part)
    table = Table(
        "condition", "task", "judge", "refused", "protection v1", "protection v2", "over-refusal", title=title
    )
    for condition, tasks in results["conditions"].items():
        for task, found in tasks.items():
            for one in found["judges"]:
                table.add_row(condition, task, one["judge"], *_numbers(one))
    table.caption, table.caption_justify = f"model: {results['model']}\ndecoding: {results['decoding']}", "left"
    console.print(table)
    if results["controls"]:
        print(f"control questions refused: {results['controls']['all']['refused']:.3f}", flush=True)
    for kind, one in (results["general"] or {}).items():
        print(f"general, {kind}: accuracy {one['accuracy']:.3f} of {one['rows']}", flush=True)


def _numbers(one: Mapping[str, Any]) -> list[str]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    if "refusal_rate" in one:
        return [shown(one["refusal_rate"]["overall"]), "", "", ""]
    first, second = one["leakage_protection"]["v1"], one["leakage_protection"]["v2"]
    return ["", shown(first and first["mean"]), shown(second and second["macro"]), shown(one["over_refusal_rate"])]
