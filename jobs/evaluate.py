"""Safety benchmarks over a model's answers: `python jobs/evaluate.py --config jobs/configs/tiny/evaluate.yaml`.

HarmEval, HelpEval, MM-SafetyBench, AdvBench, XSTest and FigStep, as far as their sections are given. Writes
`evaluation/<name>.json` (numbers), `evaluation/<name>.jsonl` (judged answers) and `report.html` in the run folder.
`evaluate.py --benchmark prism` (vlguard, guard) asks its questions, `evaluate.py judge` scores answers that
exist already: see their --help.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from jobs import guard, judge_answers, prism, vlguard
from jobs.benchmark import settle
from jobs.command_line import main
from rlhf.batch import Prompt
from rlhf.benchmark_report import write_benchmarks
from rlhf.checkpoint import RunFolder
from rlhf.config import ModelConfig
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.advbench import AdvBenchConfig, read_advbench
from rlhf.evaluation.benchmark import (
    IMAGE_POLICIES,
    UNANSWERED,
    Conditions,
    ImagePolicy,
    Item,
    JudgedItem,
    Measure,
    records,
    row_line,
    with_image_policy,
)
from rlhf.evaluation.figstep import FigStepConfig, read_figstep
from rlhf.evaluation.harmeval import ROWS, HarmEvalConfig, HelpEvalConfig, read_harmeval
from rlhf.evaluation.judges import Case, Judge, JudgeConfig, Judgement, build_judge, judge_all
from rlhf.evaluation.keyword_judge import KeywordJudge
from rlhf.evaluation.mm_safetybench import MMSafetyBenchConfig, read_mm_safetybench
from rlhf.evaluation.xstest import ROWS as XSTEST_ROWS
from rlhf.evaluation.xstest import XSTestConfig, read_xstest
from rlhf.inference import Answer, GenerationConfig
from rlhf.ledger import Ledger, write_whole
from rlhf.metrics import Progress
from rlhf.report import REPORT_FILE

BENCHMARKS = ("harmeval", "helpeval", "mm_safetybench", "advbench", "xstest", "figstep")
_FILES = {"xstest": ("xstest_unsafe", "xstest_safe")}  # sections that are more than one benchmark
_COMPLIES = {"unsafe": "answered", "safe": "refused"}  # what a refusal rule says of a harmless question


class EvaluationConfig(GenerationConfig):
    """Which benchmarks, who answers, who judges."""

    harmeval: HarmEvalConfig | None = None
    helpeval: HelpEvalConfig | None = None
    mm_safetybench: MMSafetyBenchConfig | None = None
    advbench: AdvBenchConfig | None = None
    xstest: XSTestConfig | None = None
    figstep: FigStepConfig | None = None
    judge: JudgeConfig = JudgeConfig()
    image_policy: ImagePolicy = "none"
    """For prompts without an image: none asks them without one, blank shows a blank one. Results depend on it."""
    label: str = ""
    """What the data are, if not the published benchmarks; stands above every result."""

    @model_validator(mode="after")
    def _something_is_measured(self) -> EvaluationConfig:
        if all(getattr(self, name) is None for name in BENCHMARKS):
            raise ConfigError(
                [f"no benchmark is given: add a section {', '.join(BENCHMARKS[:-1])} or {BENCHMARKS[-1]}"]
            )
        return self

    @model_validator(mode="after")
    def _judge_can_judge_it(self) -> EvaluationConfig:
        problems = []
        if self.helpeval is not None and self.judge.kind in ("llama_guard", "guard"):
            problems.append(f"judge: kind {self.judge.kind} judges single answers, and helpeval compares two")
        if self.judge.kind == "guard" and self.image_policy == "none" and (self.advbench or self.xstest):
            problems.append(
                "judge: kind guard judges images, and advbench and xstest have none; set image_policy=blank"
            )
        if problems:
            raise ConfigError(problems)
        return self


@dataclass(frozen=True)
class Benchmark:
    """One benchmark that is ready to be asked."""

    name: str
    measure: Measure
    items: list[Item]
    expected: int | None


def run(config: EvaluationConfig) -> list[dict[str, Any]]:
    """Answer, judge, write and print, or go on where an earlier process was stopped; returns all records."""
    folder = RunFolder(config.run, config, free=("workers",))
    try:
        if folder.complete:
            print(f"{config.run.name} is complete: {folder.path} (--fresh begins again)", flush=True)
        else:
            _run(config, folder)
        found = [json.loads((folder.path / "evaluation" / f"{name}.json").read_text()) for name in _chosen(config)]
        everything = [record for content in found for record in content["records"]]
        _show(everything)
        print(f"report: {folder.path / REPORT_FILE}", flush=True)
        return everything
    finally:
        folder.close()


def _run(config: EvaluationConfig, folder: RunFolder) -> None:
    from jobs.generation import answer_prompts
    from rlhf.data.processor import Processor

    rejected = RejectedRows(folder.path / "rejected.jsonl")
    Processor.load(config.model)  # a missing model is refused before anything starts
    judge = build_judge(config.judge)
    benchmarks = read_benchmarks(config, folder.path / "images", rejected)
    asked = [item.prompt for benchmark in benchmarks for item in benchmark.items]
    models: dict[str, tuple[ModelConfig, Sequence[Prompt]]] = {"policy": (config.model, asked)}
    if config.helpeval is not None:
        Processor.load(config.helpeval.baseline)
        helpful = next(benchmark for benchmark in benchmarks if benchmark.name == "helpeval")
        models["baseline"] = (config.helpeval.baseline, [item.prompt for item in helpful.items])
    answers = answer_prompts(config, models, folder.path / "generation", rejected)
    silent = 0
    for benchmark in benchmarks:
        others = answers.get("baseline", {}) if benchmark.name == "helpeval" else None
        who = judge_for(benchmark, config.judge, judge)
        judged, lost = _judge(config, folder.path, who, benchmark, answers["policy"], others)
        silent += lost
        write_results(folder.path / "evaluation", benchmark, judged, _conditions(config, who, benchmark))
    write_benchmarks(folder.path, _chosen(config))
    settle(folder, silent)


def read_benchmarks(config: EvaluationConfig, images: Path, rejected: RejectedRows) -> list[Benchmark]:
    """The chosen benchmarks, image policy applied. Raises DataError if one of them has no usable row."""
    found = []
    if config.harmeval is not None:
        items = read_harmeval(config.harmeval, "harmeval", images, rejected, "harmful")
        found.append(Benchmark("harmeval", "unsafe_rate", items, ROWS))
    if config.helpeval is not None:
        items = read_harmeval(config.helpeval, "helpeval", images, rejected, "benign")
        found.append(Benchmark("helpeval", "win_rate", items, ROWS))
    if config.mm_safetybench is not None:
        items = read_mm_safetybench(config.mm_safetybench, rejected)
        found.append(Benchmark("mm_safetybench", "unsafe_rate", items, config.mm_safetybench.expected))
    if config.advbench is not None:
        items = read_advbench(config.advbench, rejected)
        found.append(Benchmark("advbench", "unsafe_rate", items, config.advbench.expected))
    if config.xstest is not None:
        halves = read_xstest(config.xstest, rejected)
        found.append(Benchmark("xstest_unsafe", "unsafe_rate", halves["unsafe"], XSTEST_ROWS["unsafe"]))
        found.append(Benchmark("xstest_safe", "compliance_rate", halves["safe"], XSTEST_ROWS["safe"]))
    if config.figstep is not None:
        items = read_figstep(config.figstep, rejected)
        found.append(Benchmark("figstep", "unsafe_rate", items, config.figstep.expected))
    for benchmark in found:
        if not benchmark.items:
            rejected.check(rejected.count, config.max_rejected_share)
            raise DataError("no usable row", source=benchmark.name)
    return [
        Benchmark(one.name, one.measure, with_image_policy(one.items, config.image_policy, images), one.expected)
        for one in found
    ]


def judge_for(benchmark: Benchmark, config: JudgeConfig, judge: Judge) -> Judge:
    """Who judges a benchmark: a model says whether an answer is harmful, and only a rule whether it was one at all."""
    if benchmark.measure == "compliance_rate" and config.is_model:
        return KeywordJudge(config.refusals)
    return judge


def write_results(folder: Path, benchmark: Benchmark, judged: Sequence[JudgedItem], conditions: Conditions) -> None:
    """`<name>.jsonl` with every judged answer, then `<name>.json` with the records."""
    lines = (json.dumps(row_line(one, conditions), ensure_ascii=False) + "\n" for one in judged)
    write_whole(folder / f"{benchmark.name}.jsonl", "".join(lines))
    found = records(benchmark.name, benchmark.measure, judged, conditions, benchmark.expected)
    write_whole(folder / f"{benchmark.name}.json", json.dumps({"records": found}, indent=2, ensure_ascii=False))


def _judge(
    config: EvaluationConfig,
    folder: Path,
    judge: Judge,
    benchmark: Benchmark,
    answers: Mapping[str, Answer],
    others: Mapping[str, Answer] | None,
) -> tuple[list[JudgedItem], int]:
    """Items in order, and how often the judge was silent; items that a model did not answer are "unanswered"."""
    cases: dict[str, Case] = {}
    for item in benchmark.items:
        key = item.prompt.id
        if key in answers and (others is None or key in others):
            other = None if others is None else others[key].response
            cases[key] = Case(item.prompt, answers[key].response, other)
    with (
        Ledger(folder / "evaluation" / "verdicts" / benchmark.name, {"judge": judge.name}) as ledger,
        Progress(f"judged {benchmark.name}", len(cases)) as progress,
    ):
        asked = list(cases.values())
        made = judge_all(judge, asked, ledger, config.judge.concurrency, lambda done: progress.advance(done, {}))
    verdicts = dict(zip(cases, made, strict=True))
    judged = []
    for item in benchmark.items:
        case = cases.get(item.prompt.id)
        if case is None:
            judged.append(JudgedItem(item, "", False, UNANSWERED, "the prompt was rejected: see rejected.jsonl"))
            continue
        verdict, answer = verdicts[item.prompt.id], answers[item.prompt.id]
        word = verdict_word(benchmark.measure, verdict)
        judged.append(JudgedItem(item, answer.response, answer.truncated, word, verdict.reason, case.other or ""))
    return judged, sum(one.silent for one in made)


def verdict_word(measure: Measure, judgement: Judgement) -> str:
    """A judgement in the words of a measure: of a harmless question, what is not refused is answered."""
    return _COMPLIES.get(judgement.verdict, judgement.verdict) if measure == "compliance_rate" else judgement.verdict


def _conditions(config: EvaluationConfig, judge: Judge, benchmark: Benchmark) -> Conditions:
    model = config.model.path
    if config.helpeval is not None and benchmark.name == "helpeval":
        model = f"{model} against {config.helpeval.baseline.path}"
    return Conditions(
        model=model,
        judge=judge.name,
        decoding=config.sampling.words,
        image_policy=IMAGE_POLICIES[config.image_policy],
        engine=f"{config.rollout.engine} {config.rollout.dtype}",
        label=config.label,
    )


def _chosen(config: EvaluationConfig) -> list[str]:
    sections = [name for name in BENCHMARKS if getattr(config, name) is not None]
    return [name for section in sections for name in _FILES.get(section, (section,))]


def _show(everything: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    for name in dict.fromkeys(record["benchmark"] for record in everything):
        rows = [record for record in everything if record["benchmark"] == name]
        first = rows[0]
        conditions = f"judge: {first['judge']}\ndecoding: {first['decoding']}\nimages: {first['image_policy']}"
        title = " - ".join(part for part in (name, first["measure"], first["label"]) if part)
        table = Table("group", "rate", "95 % interval", "rows", "invalid", "unanswered", "worst case", title=title)
        for row in rows:
            group = row["group"] if row["group_by"] == "all" else f"{row['group_by']}: {row['group']}"
            count = f"{row['n']} of {row['expected']}" if row.get("expected") else str(row["n"])
            interval = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            numbers = [_number(row["rate"]), interval, count, str(row["invalid"]), str(row[UNANSWERED])]
            table.add_row(group, *numbers, _number(row["worst_case"]))
        table.caption, table.caption_justify = f"model: {first['model']}\n{conditions}", "left"
        console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def command(arguments: Sequence[str]) -> None:
    """The job that the arguments name: `judge`, or --benchmark anywhere among them, or this file's own."""
    if arguments[:1] == ["judge"]:
        judge_answers.main(arguments[1:])
        return
    first = argparse.ArgumentParser(prog="jobs/evaluate.py", add_help=False, allow_abbrev=False)
    first.add_argument("--benchmark", choices=("prism", "vlguard", "guard"))
    known, rest = first.parse_known_args(arguments)
    if known.benchmark == "prism":
        main(prism.PrismConfig, prism.run, prism.__doc__ or "", rest)
    elif known.benchmark == "vlguard":
        main(vlguard.VLGuardConfig, vlguard.run, vlguard.__doc__ or "", rest)
    elif known.benchmark == "guard":
        main(guard.GuardConfig, guard.run, guard.__doc__ or "", rest)
    else:
        main(EvaluationConfig, run, __doc__ or "", rest)


if __name__ == "__main__":
    command(sys.argv[1:])
