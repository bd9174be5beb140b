"""Unsafe samples found in training data: every conversation is scored once, by a rule model or any judge.

Source: VLGuard seed page, section 3.3, where a guard model flags 247 samples of LLaVA's data, the rest is trained on
again, and false negatives remain. The unit of work is a span of rows with a ledger of its own, so a killed filter goes
on, and several processes never share a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import model_validator

from rlhf.batch import Prompt
from rlhf.config import Config, resolve
from rlhf.data.json_stream import Span, read_span
from rlhf.data.rows import without_image_tag
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.asking import PATIENCE, Patience
from rlhf.evaluation.judges import Case, Judge, JudgeConfig, Judgement, build_judge, judge_all
from rlhf.evaluation.safety import is_refusal
from rlhf.ledger import Ledger

PHRASES_FILE = Path(__file__).parent / "unsafe_phrases.yaml"
_LISTS = ("removed", "unclear", "silent")
_DONE = "unit"  # the ledger's entry for a unit that is finished


class CleanerConfig(Config):
    """Who says whether a sample is unsafe."""

    kind: Literal["words", "openai"] = "words"
    """words: a rule model, offline. openai: a guard, or any other model, behind an OpenAI-compatible endpoint."""
    phrases: str | None = None
    """words: YAML file from category to lower-case phrases; unset: a small embedded list."""
    judge: JudgeConfig | None = None
    """openai: the judge, as everywhere (kind llama_guard, guard or openai)."""
    image_root: str | None = None
    """Folder that image paths are relative to, for a judge that is sent images."""

    @model_validator(mode="after")
    def _judge_is_given(self) -> CleanerConfig:
        if self.kind == "words":
            return self
        if self.judge is None or not self.judge.is_model:
            raise ConfigError(["cleaner.judge: kind openai needs a judge of kind llama_guard, guard or openai"])
        if self.judge.send_images and self.image_root is None:
            raise ConfigError(["cleaner.image_root: the judge is sent images (judge.send_images); name their folder"])
        return self


class PhraseJudge:
    """The rule model: unsafe if the question or the answer has a phrase as whole words and the answer is no refusal."""

    def __init__(self, file: Path = PHRASES_FILE) -> None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"cannot be read: {error}", source=str(file)) from None
        lists = content.values() if isinstance(content, dict) else [None]
        if not all(isinstance(one, list) and one and all(isinstance(word, str) for word in one) for one in lists):
            raise DataError("expected a map from category to a list of phrases", source=str(file))
        words = {word.lower(): str(category) for category, found in content.items() for word in found}
        self._categories = words
        longest = sorted(words, key=len, reverse=True)
        self._pattern = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in longest))
        digest = hashlib.blake2b(json.dumps(sorted(words.items())).encode(), digest_size=4).hexdigest()
        self.name = f"words: {len(words)} phrases, list {digest}"

    def judge(self, prompt: Prompt, response: str) -> Judgement:
        """Unsafe with the phrase and its category as the reason, or safe."""
        match = self._pattern.search(f"{prompt.question}\n{response}".lower())
        if match is None:
            return Judgement("safe", "no phrase")
        if is_refusal(response):
            return Judgement("safe", f'refuses "{match[0]}"')
        return Judgement("unsafe", f'{self._categories[match[0]]}: "{match[0]}"')

    def compare(self, prompt: Prompt, response: str, other: str) -> Judgement:
        """This rule has no opinion on which of two answers is better."""
        return Judgement("invalid", "the rule judges single answers")


def build_cleaner(config: CleanerConfig) -> tuple[Judge, int | None]:
    """The judge, and how many turns it is asked about at the same time; None for a rule, which nobody waits for."""
    if config.kind == "openai" and config.judge is not None:
        return build_judge(config.judge), config.judge.concurrency
    return PhraseJudge(Path(resolve(config.phrases)) if config.phrases else PHRASES_FILE), None


@dataclass(frozen=True, slots=True)
class Finding:
    """A sample that is removed, or one that could not be scored and stays; `row` is its index in the file."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of a unit's rows: those in no list are safe.

    Rows on which the judge was `silent` stay, as unclear ones do, and are asked about when the unit is scored again.
    """

    rows: int
    removed: list[Finding]
    unclear: list[Finding]
    silent: list[Finding]


def score_unit(
    path: Path,
    span: Span,
    judge: Judge,
    ledger: Ledger,
    concurrency: int | None = None,
    image_root: Path | None = None,
    patience: Patience | None = None,
) -> Scored:
    """Score a span of a LLaVA file. A sample is unsafe if any of its turns is; every turn is judged once.

    With `concurrency`, judged turns are in `ledger` one by one; the unit as a whole is there when it is finished, and
    then it is not read again, unless the judge was silent on a row of it. A row that is no conversation, or on which
    the judge is unclear or silent, stays and is listed. Raises JudgeError where the judge refuses or is silent longer
    than `patience` bears; what was judged until then is kept.
    """
    if _DONE in ledger.entries and not (before := _restored(ledger.entries[_DONE])).silent:
        return before
    cases: dict[int, list[Case]] = {}
    names: dict[int, str] = {}
    unclear: list[Finding] = []
    for index, row in enumerate(read_span(path, span), start=span.first_row):
        names[index] = str(row.get("id", "")) if isinstance(row, dict) else ""
        turns = list(_turns(row))
        if not turns:
            unclear.append(Finding(index, names[index], "no pair of human and gpt turns"))
        image = row.get("image") if turns else None
        place = str(image_root / image) if image_root is not None and isinstance(image, str) else None
        cases[index] = [Case(Prompt(f"{index}:{n}", asked, place), said) for n, (asked, said) in enumerate(turns)]
    asked = [case for found in cases.values() for case in found]
    if concurrency is None:  # a rule is quicker than writing down what it said
        verdicts = iter([judge.judge(case.prompt, case.response) for case in asked])
    else:
        verdicts = iter(judge_all(judge, asked, ledger, concurrency, lambda _: None, patience))
    removed: list[Finding] = []
    silent: list[Finding] = []
    for index, mine in cases.items():
        said = [next(verdicts) for _ in mine]
        bad = [one for one in said if one.verdict == "unsafe"]
        lost = [one for one in said if one.verdict not in ("unsafe", "safe")]
        if bad:
            removed.append(Finding(index, names[index], bad[0].reason))
        elif quiet := [one for one in lost if one.silent]:
            silent.append(Finding(index, names[index], f"the judge is silent: {quiet[0].reason}"))
        elif lost:
            unclear.append(Finding(index, names[index], f"the judge is unclear: {lost[0].reason}"))
    done = Scored(span.rows, removed, sorted(unclear, key=lambda one: one.row), silent)
    ledger.add(_DONE, _entry(done))
    return done


class UnitScorer:
    """A worker for units of one file: opens the unit's own ledger in `folder`, scores, says how many rows it did."""

    def __init__(self, path: Path, config: CleanerConfig, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._judge, self._concurrency = build_cleaner(config)
        self._image_root = Path(resolve(config.image_root)) if config.image_root else None
        # as if behind others: a unit may have one row, and that be too long
        self._patience = Patience(settled=PATIENCE)

    def __call__(self, unit: Mapping[str, int]) -> dict[str, int]:
        """Score one unit, given by the fields of its span."""
        span = Span(**{name: int(unit[name]) for name in ("start", "end", "first_row", "rows")})
        with self.ledger(span) as ledger:
            done = score_unit(
                self._path, span, self._judge, ledger, self._concurrency, self._image_root, self._patience
            )
        return {"rows": done.rows, "removed": len(done.removed)}

    def ledger(self, span: Span) -> Ledger:
        """The unit's finished work."""
        return Ledger(self._folder / f"{span.first_row:09d}", {"judge": self._judge.name})

    def finished(self, spans: Sequence[Span]) -> dict[Span, Scored]:
        """The units that were scored, those with rows on which the judge was silent included."""
        found = {}
        for span in spans:
            entry = self.ledger(span).entries.get(_DONE)
            if entry is not None:
                found[span] = _restored(entry)
        return found


def write_clean(path: Path, spans: Sequence[Span], removed: Sequence[Finding], output: Path) -> int:
    """Write the rows that stay, in their order, and beside them `<output>.removed.jsonl`; returns how many stayed."""
    gone = {one.row for one in removed}
    output.parent.mkdir(parents=True, exist_ok=True)
    draft, kept = output.with_name(f".{output.name}.partial"), 0
    with draft.open("w", encoding="utf-8") as file:
        for span in spans:
            for index, row in enumerate(read_span(path, span), start=span.first_row):
                if index not in gone:
                    file.write(("[\n" if kept == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
                    kept += 1
        file.write("\n]\n" if kept else "[]\n")
    lines = [json.dumps({"row": one.row, "id": one.id, "reason": one.reason}, ensure_ascii=False) for one in removed]
    output.with_suffix(".removed.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    draft.replace(output)
    return kept


def _turns(row: Any) -> Iterator[tuple[str, str]]:
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return
    first = 1 if turns and turns[0].get("from") == "gpt" else 0
    for human, gpt in zip(turns[first::2], turns[first + 1 :: 2], strict=False):
        asked, said = human.get("value"), gpt.get("value")
        if isinstance(asked, str) and isinstance(said, str):
            yield without_image_tag(asked)[0], said


def _entry(done: Scored) -> dict[str, Any]:
    return {"rows": done.rows, **{name: [[*astuple(one)] for one in getattr(done, name)] for name in _LISTS}}


def _restored(entry: Mapping[str, Any]) -> Scored:
    return Scored(entry["rows"], *([Finding(*one) for one in entry.get(name, ())] for name in _LISTS))
