"""Batch inference, apart from machines: prompts in, batches, answers, the answer file (seed page, section 5).

The unit of work is a batch of consecutive prompts. Its rows depend on the input alone, not on the number of workers
and not on what an earlier process finished, so an engine meets the same batches in every run and greedy float32
answers are the same file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from rlhf.batch import Prompt
from rlhf.config import Config, ModelConfig, RoleConfig, RunConfig, resolve
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import read_json
from rlhf.data.spa_vl import load_prompts, read_prompts
from rlhf.data.template import IMAGE_TAG, render
from rlhf.errors import ConfigError, DataError, ImageError, PromptTooLongError, RowError
from rlhf.ledger import write_whole
from rlhf.models.shards import directory_digest
from rlhf.rollout.base import RolloutConfig, RolloutEngine, Sampling, devices_missing, ignored_by_engines

ANSWERS_FILE = "answers.json"
_KINDS = {kind.__name__: kind for kind in (DataError, RowError, ImageError, PromptTooLongError)}


class Decoding(Sampling):
    """How answers are drawn: greedy unless a temperature is set."""

    max_new_tokens: int = Field(default=512, ge=1)
    """Budget of one answer; an answer that fills it without EOS is flagged as truncated."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""

    @property
    def words(self) -> str:
        """What stands beside every number that depends on it."""
        budget = f"at most {self.max_new_tokens} new tokens"
        if self.json_schema is not None:
            digest = hashlib.blake2b(self.json_schema.encode(), digest_size=4).hexdigest()
            budget += f", held to JSON schema {digest}"
        if self.temperature == 0:
            return f"greedy, {budget}"
        nucleus = f"top_p {self.top_p:g}, top_k {self.top_k}, seed {self.seed}"
        return f"temperature {self.temperature:g}, {nucleus}, {budget}"


class GenerationConfig(Config):
    """What answering many prompts needs; inference and evaluation add where the prompts come from."""

    run: RunConfig
    model: ModelConfig
    """The policy that answers."""
    sampling: Decoding = Decoding()
    rollout: RolloutConfig = RolloutConfig()
    workers: RoleConfig = RoleConfig()
    """Engines that share the batches."""
    batch_rows: int = Field(default=256, ge=1)
    """Prompts that one engine answers together; a batch is also what a kill can cost."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of rows is unusable."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> GenerationConfig:
        if problems := misfits(self.model, self.sampling, self.rollout, self.workers):
            raise ConfigError(problems)
        return self


def misfits(
    model: ModelConfig,
    sampling: Sampling,
    rollout: RolloutConfig,
    engines: RoleConfig,
    keys: tuple[str, str] = ("sampling", "workers"),
) -> list[str]:
    """What does not fit together in a configuration that answers prompts; `keys` are its names of two sections."""
    asking, working = keys
    problems = ignored_by_engines(model)
    context = min(rollout.max_length, model.max_length)
    if sampling.max_new_tokens >= context:
        problems.append(
            f"{asking}.max_new_tokens={sampling.max_new_tokens} leaves no room for a prompt in a context of "
            f"{context} (rollout.max_length, model.max_length)"
        )
    problems += devices_missing("rollout", rollout, working, engines)
    if engines.colocate_with is not None:
        problems.append(f"{working}.colocate_with: there is no other role here")
    return problems


class PromptFileConfig(Config):
    """Prompts in the seed's JSON: id, question, optional image; answers are not needed."""

    prompts: str
    """A JSON list of rows, or a keyword configuration (a JSON map from keyword to such a file)."""
    keywords: tuple[str, ...] = ()
    """Which files of a keyword configuration, in this order; empty takes all of them."""
    image_root: str
    """Folder that the rows' image paths are relative to."""


class InferenceConfig(GenerationConfig):
    """One inference run."""

    data: PromptFileConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy said to one prompt; `truncated` means that the budget ended before the answer did.

    `seconds` is its share of the time of its batch, and no part of what makes two answers equal.
    """

    prompt_id: str
    response: str
    tokens: int
    truncated: bool
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive prompts that one engine answers together."""

    index: int
    prompts: tuple[Prompt, ...]

    @property
    def key(self) -> str:
        """Changes with any prompt of the batch, so that an edited input file is answered again."""
        asked = json.dumps([[one.id, one.question, one.image, one.begun, *one.history] for one in self.prompts])
        return f"{self.index}:{hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()}"


def read_inputs(data: PromptFileConfig, rejected: RejectedRows) -> list[Prompt]:
    """The prompts in input order; the source of a row is its keyword, or the name of its file without ".json".

    Images are not opened here: the workers do. Bad rows, repeated ids of one source among them, go to `rejected`; the
    same id in two sources is two rows (seed trap T23). Raises ConfigError for keywords that do not fit, DataError for
    an unusable file.
    """
    path, root = Path(resolve(data.prompts)), Path(resolve(data.image_root))
    content = read_json(path)
    if isinstance(content, dict):
        return load_prompts(str(path), data.keywords or tuple(content), root, rejected, check_images=False)
    if data.keywords:
        raise ConfigError([f"data.keywords: {path} is a list of rows and has no keywords; leave the key out"])
    return read_prompts(path, root, rejected=rejected, check_images=False)


def source_and_row(prompt_id: str) -> tuple[str, int]:
    """The two parts of a prompt's id, which name a row together."""
    source, _, row = prompt_id.rpartition(":")
    return source, int(row)


def cut(prompts: Sequence[Prompt], rows: int) -> list[Batch]:
    """Batches of `rows` consecutive prompts; the last may be smaller."""
    starts = range(0, len(prompts), rows)
    return [Batch(index, tuple(prompts[start : start + rows])) for index, start in enumerate(starts)]


def answer_batch(
    engine: RolloutEngine, processor: Processor, prompts: Sequence[Prompt], sampling: Sampling, context: int
) -> tuple[list[Answer], list[DataError]]:
    """Greedy or sampled answers of one batch in order, and why the others have none (`source` and `row` are set).

    `context` is the engine's. A row is unusable if its prompt does not fit, its text carries a reserved token or its
    image is broken; engines refuse the whole batch then, and only in that case is every row looked at alone.
    """
    began = time.perf_counter()
    try:
        completions = engine.generate(prompts, sampling)
        errors: list[DataError] = []
    except DataError:
        usable, errors = _sort_out(processor, prompts, sampling.max_new_tokens, context)
        completions = engine.generate(usable, sampling) if usable else []
    seconds = (time.perf_counter() - began) / max(len(completions), 1)
    answers = [
        Answer(one.prompt_id, one.text, len(one.token_ids), one.finish_reason == "length", seconds)
        for one in completions
    ]
    return answers, errors


def packed(prompts: Sequence[Prompt]) -> str:
    """Prompts as JSON with every question once: a million images under one policy are not a million policies."""
    questions = {one.question: place for place, one in enumerate({one.question: one for one in prompts}.values())}
    rows = [{**asdict(one), "question": questions[one.question]} for one in prompts]
    return json.dumps({"questions": list(questions), "prompts": rows})


def unpacked(text: str) -> list[Prompt]:
    """The prompts that `packed` wrote."""
    content = json.loads(text)
    questions = content["questions"]
    return [
        Prompt(**{**row, "question": questions[row["question"]], "history": tuple(map(tuple, row["history"]))})
        for row in content["prompts"]
    ]


def entry(answers: Sequence[Answer], errors: Sequence[DataError]) -> dict[str, Any]:
    """A batch as the ledger keeps it."""
    refused = [
        {"kind": type(error).__name__, "source": error.source, "row": error.row, "reason": error.reason}
        for error in errors
    ]
    return {"answers": [asdict(answer) for answer in answers], "rejected": refused}


def answers_of(value: Mapping[str, Any]) -> list[Answer]:
    """The answers in a ledger's value."""
    return [Answer(**answer) for answer in value["answers"]]


def errors_of(value: Mapping[str, Any]) -> list[DataError]:
    """The refused rows in a ledger's value."""
    return [_KINDS[row["kind"]](row["reason"], source=row["source"], row=row["row"]) for row in value["rejected"]]


def is_finished(value: Mapping[str, Any] | None) -> bool:
    """Whether a batch needs no more work: one with refused rows is asked again, its images may have been mended."""
    return value is not None and not value["rejected"]


def made_by(model: ModelConfig, config: GenerationConfig) -> dict[str, str]:
    """What answers depend on beside their prompts, for the ledger."""
    return {
        "model": f"{model.path} {fingerprint(resolve(model.path))}".strip(),
        "template": f"{model.template}, pad to square: {model.pad_to_square}",
        "engine": f"{config.rollout.engine} {config.rollout.dtype}, context {config.rollout.max_length}",
        "decoding": config.sampling.words,
    }


def write_answers(path: Path, prompts: Sequence[Prompt], answers: Mapping[str, Answer], processor: Processor) -> int:
    """Write the seed's answer file: a JSON list of {source, id, query, response} in input order, whole or not at all.

    `query` is the text that the model saw without its image placeholder (seed page, section 5). Prompts without an
    answer were refused and are left out. Returns the number of rows.
    """
    rows = []
    for prompt in prompts:
        if prompt.id in answers:
            source, row = source_and_row(prompt.id)
            query = _query(prompt, processor)
            rows.append({"source": source, "id": row, "query": query, "response": answers[prompt.id].response})
    write_whole(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return len(rows)


def _query(prompt: Prompt, processor: Processor) -> str:
    tag = "" if prompt.image is None else IMAGE_TAG
    turns = [*prompt.history, (prompt.question, None)]
    return render(processor.template, turns, image_tag=tag, eos="", reserved=()).text.replace(tag, "", 1)


def _sort_out(
    processor: Processor, prompts: Sequence[Prompt], budget: int, context: int
) -> tuple[list[Prompt], list[DataError]]:
    usable, errors = [], []
    for prompt in prompts:
        try:
            processor.prompt_ids(prompt, budget, context)
            if prompt.image is not None:
                processor.image(prompt.image)
        except DataError as error:
            source, row = source_and_row(prompt.id)
            errors.append(type(error)(error.reason, source=source, row=row))
        else:
            usable.append(prompt)
    return usable, errors


def fingerprint(path: str) -> str:
    """A hash of a local model's weights and settings; "" for a hub id. `path` is resolved."""
    folder = Path(path)
    return directory_digest(folder) if folder.is_dir() else ""
