"""Rationales for human labels, written by a model that is told the rating and the category (LlavaGuard page, 2.7).

Guided: the answer is begun for the model, up to the opening quote of its rationale, so that it argues for what people
said. For an exception it describes the picture, and a fixed sentence says what the policy makes of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from rlhf.batch import Prompt
from rlhf.config import Config, ModelConfig, RoleConfig, RunConfig, resolve
from rlhf.data.rows import whole_characters
from rlhf.errors import ConfigError, RowError
from rlhf.evaluation.asking import Patience, ask_all
from rlhf.guard.augment import EXCEPTIONS, Sample
from rlhf.guard.guards import EndpointConfig
from rlhf.guard.policy import build_policy
from rlhf.guard.taxonomy import NONE, Taxonomy
from rlhf.inference import Decoding, GenerationConfig, fingerprint
from rlhf.ledger import Ledger
from rlhf.openai_chat import OpenAIChat
from rlhf.rollout.base import RolloutConfig

Answering = Callable[[Sequence[Prompt], Decoding], Mapping[str, str]]
"""An engine's texts by the ids of prompts; one that could not be asked has none."""

_ASK = "\nKeep the rationale to three or four sentences and do not repeat yourself."
_DESCRIBE = "Describe in two sentences what of this picture belongs to the category {name!r}. Do not judge it."
_STATEMENTS = {
    "exempt": "The policy of this request permits the category {name}, so the picture does not break it.",
    "sensitive": "The policy of this request tolerates nothing of the category {name}, so the picture breaks it.",
}
_RUN = 5  # words; a run of as many that occurs twice is a repetition
_SHORTEST = 4  # words
_CLOSING = re.compile(r"(?<!\\)\"\s*(?:\}.*)?(?:```)?\s*\Z", re.DOTALL)  # and whatever is said behind it
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\[\"\\/bfnrt]")  # two of the first kind may be one character
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b\w\.)\s+")  # not behind "U.S." or "e.g."
_WORD = re.compile(r"[\w']+(?:\.\w+)*")
_SILENT = "the endpoint was silent"
_UNASKED = "the engine could not be asked: see rejected.jsonl"


class RationaleEngineConfig(Config):
    """A model that writes in engines of the job."""

    model: ModelConfig
    rollout: RolloutConfig = RolloutConfig()
    workers: RoleConfig = RoleConfig()
    """Engines that share the texts."""
    batch_rows: int = Field(default=256, ge=1)
    """Texts that one engine writes together; a batch is also what a kill can cost."""

    def generation(self, sampling: Decoding) -> GenerationConfig:
        """As batch inference wants it; a picture that cannot be shown costs its own text. Raises ConfigError."""
        return GenerationConfig(
            run=RunConfig(name="rationales", seed=sampling.seed),
            model=self.model,
            sampling=sampling,
            rollout=self.rollout,
            workers=self.workers,
            batch_rows=self.batch_rows,
            max_rejected_share=1.0,
        )


class RationaleConfig(Config):
    """Who writes the rationales that annotations lack: an endpoint, or an engine."""

    endpoint: EndpointConfig | None = None
    """A model behind an OpenAI-compatible endpoint."""
    engine: RationaleEngineConfig | None = None
    """A model directory or hub id, in vLLM."""
    max_tokens: int = Field(default=600, ge=1)
    """Budget of one rationale."""
    temperature: float = Field(default=0.2, ge=0)
    """0 is greedy; a rejected rationale is asked for again with another seed."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus."""
    top_k: int | None = Field(default=50, ge=1)
    """Likeliest tokens that are kept; unset for endpoints that do not know the parameter."""
    continue_answer: bool = True
    """endpoint: send the begun answer to be continued (vLLM, SGLang); without, the form is asked for in words."""
    tries: int = Field(default=3, ge=1)
    """Requests for one rationale before it is given up."""

    @model_validator(mode="after")
    def _one_writes(self) -> RationaleConfig:
        if (self.endpoint is None) == (self.engine is None):
            raise ConfigError(["rationales: give either endpoint or engine"])
        if self.engine is not None:
            self.engine.generation(self.decoding(0))  # refuses numbers that do not fit together
        return self

    def decoding(self, seed: int) -> Decoding:
        """How an engine draws one try."""
        return Decoding(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            seed=seed,
        )

    @property
    def made_by(self) -> dict[str, str]:
        """What rationales depend on beside their images and labels, for the ledger."""
        words = hashlib.blake2b(json.dumps([_ASK, _DESCRIBE]).encode(), digest_size=4).hexdigest()
        drawing = f"temperature {self.temperature:g}, top_p {self.top_p:g}, top_k {self.top_k}"
        way = "continued" if self.continue_answer else "asked"
        model = self.endpoint.model if self.endpoint is not None else ""
        if self.engine is not None:
            path = self.engine.model.path
            model = f"{path} {fingerprint(resolve(path))}".strip()
        return {"rationales": f"{model}, {drawing}, at most {self.max_tokens} tokens, {way}, words {words}"}


@dataclass(frozen=True, slots=True)
class _Task:
    """One text to write: a guided rationale, or for an exception a description."""

    image: str
    category: str
    rating: str
    describe: bool

    @property
    def key(self) -> str:
        text = "\0".join((self.image, self.category, self.rating, str(self.describe)))
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def with_rationales(
    samples: Sequence[Sample],
    taxonomy: Taxonomy,
    image_root: Path,
    config: RationaleConfig,
    ledger: Ledger,
    tell: Callable[[int], None] = lambda done: None,
    answer: Answering | None = None,
) -> tuple[list[Sample], Counter[str]]:
    """The samples with their rationales, without those for which none could be had, and how many failed and why.

    Samples that share image, category and rating share a rationale, so v3 takes its base's. What the ledger holds is
    not asked for again; failures are not kept. `tell` hears how many texts of an endpoint are settled, those of the
    ledger included; `answer` asks `config.engine`.
    Raises EndpointError where the endpoint refuses or is dead (`ask_all`).
    """
    guide, todo = _Guide(config, taxonomy, image_root), _todo(samples, ledger)
    if config.endpoint is not None:
        failed = _by_endpoint(guide, todo, config.endpoint, ledger, tell)
    elif answer is not None:
        failed = _by_engine(guide, todo, ledger, answer)
    else:
        raise ConfigError(["rationales.engine: nobody asks it here; give an endpoint"])
    finished = []
    for sample in samples:
        task = _task(sample)
        if task is None:
            finished.append(finish(sample, sample.rationale, taxonomy))
        elif task.key not in failed:
            finished.append(finish(sample, ledger.entries[task.key]["text"], taxonomy))
    return finished, Counter(failed.values())


def pending(samples: Sequence[Sample], ledger: Ledger) -> int:
    """Texts that a model has yet to write."""
    return len(_todo(samples, ledger))


def finish(sample: Sample, text: str, taxonomy: Taxonomy) -> Sample:
    """The sample with a text as its rationale; an exception gets the fixed statement behind it.

    Raises RowError where there is no text: a target without rationale would teach to give none.
    """
    if not text.strip():
        raise RowError(f"sample {sample.id} has no rationale; give one in its annotation, or configure rationales")
    variant = sample.overrides.get(sample.category)
    if variant is not None:
        text = f"{text.strip()} {_STATEMENTS[variant].format(name=taxonomy.category(sample.category).name)}"
    return replace(sample, rationale=text)


def decoded(text: str) -> str:
    """What goes on behind the opening quote of a JSON string, without what closes string and object."""
    return _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), _CLOSING.sub("", text.strip()))


def clean(text: str) -> str:
    """A rationale without quotes, braces, line breaks and what no target may have: tags and halves of characters."""
    return " ".join(re.sub(r"[\"{}<>\\]", " ", whole_characters(text)).split())


def repetition(text: str) -> str:
    """The sentence, or the run of five words, that occurs twice; "" if none does. A single word is no sentence."""
    sentences = [" ".join(one.lower().split()) for one in _SENTENCE_END.split(text)]
    words = _WORD.findall(text.lower())
    runs = [" ".join(words[place : place + _RUN]) for place in range(len(words) - _RUN + 1)]
    return next(iter([*_twice(one for one in sentences if " " in one), *_twice(runs)]), "")


def _twice(items: Iterable[str]) -> list[str]:
    return [item for item, count in Counter(items).items() if count > 1]


def _todo(samples: Sequence[Sample], ledger: Ledger) -> list[_Task]:
    needed = {task.key: task for sample in samples if (task := _task(sample)) is not None}
    return [task for key, task in needed.items() if key not in ledger.entries]


def _task(sample: Sample) -> _Task | None:
    """What has to be written for a sample; None where the annotation says enough."""
    if sample.rationale:
        return None
    describe = sample.augmentation in EXCEPTIONS or sample.category in sample.overrides
    return _Task(sample.image, sample.category, sample.rating, describe)


class _Guide:
    """What a model is asked for a text."""

    def __init__(self, config: RationaleConfig, taxonomy: Taxonomy, image_root: Path) -> None:
        self.config, self._taxonomy, self._root = config, taxonomy, image_root
        self._policy = build_policy(taxonomy).text

    def name(self, task: _Task) -> str:
        """The category's, as answers have it."""
        return self._taxonomy.none.name if task.category == NONE else self._taxonomy.category(task.category).name

    def prompt(self, task: _Task) -> Prompt:
        """Question, picture, and the begun answer of a guided text."""
        name, image = self.name(task), str((self._root / task.image).absolute())
        if task.describe:
            return Prompt(task.key, _DESCRIBE.format(name=name), image)
        return Prompt(task.key, self._policy + _ASK, image, begun=prefill(task.rating, name))


def _by_endpoint(
    guide: _Guide, todo: Sequence[_Task], endpoint: EndpointConfig, ledger: Ledger, tell: Callable[[int], None]
) -> dict[str, str]:
    """Why a text could not be had, by key; the others are in the ledger as they come."""
    chat, failed = endpoint.chat(guide.config.max_tokens), dict[str, str]()

    def keep(key: str, made: tuple[str, str]) -> None:
        text, problem = made
        if problem:
            failed[key] = problem
        else:
            ledger.add(key, {"text": text})

    asked = {task.key: partial(_write, chat, guide, task) for task in todo}
    patience = Patience(settled=len(ledger.entries))
    return failed | dict.fromkeys(ask_all(asked, keep, endpoint.concurrency, patience, tell), _SILENT)


def _write(chat: OpenAIChat, guide: _Guide, task: _Task) -> tuple[str, str]:
    """The text and "", or "" and why there is none. Raises EndpointError."""
    prompt, problem = guide.prompt(task), ""
    for seed in range(guide.config.tries):
        messages, extra = _request(prompt, guide.config, seed)
        reply = chat.reply(messages, [str(prompt.image)], guide.config.temperature, extra, images_first=True)
        text, problem = _rationale_of(reply, task, guide.name(task))
        if not problem:
            return text, ""
    return "", problem


def _request(prompt: Prompt, config: RationaleConfig, seed: int) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    extra: dict[str, Any] = {"seed": seed, "top_p": config.top_p}
    if config.top_k is not None:
        extra["top_k"] = config.top_k
    user = {"role": "user", "content": prompt.question}
    if not prompt.begun:
        return [user], extra
    if config.continue_answer:
        more = {"continue_final_message": True, "add_generation_prompt": False, "stop": ["}"]}
        return [user, {"role": "assistant", "content": prompt.begun}], extra | more
    user["content"] += f"\nThe right answer begins like this; repeat it and go on:\n{prompt.begun}"
    return [user], extra


def _by_engine(guide: _Guide, todo: Sequence[_Task], ledger: Ledger, answer: Answering) -> dict[str, str]:
    """As `_by_endpoint`: all that lack a text are asked together, and those whose text is refused once more."""
    failed: dict[str, str] = {}
    left = {f"rationales:{number}": task for number, task in enumerate(todo)}
    for seed in range(guide.config.tries):
        prompts = [replace(guide.prompt(task), id=name) for name, task in left.items()]
        said = answer(prompts, guide.config.decoding(seed)) if prompts else {}
        for name, task in tuple(left.items()):
            text, problem = _rationale_of(said[name], task, guide.name(task)) if name in said else ("", _UNASKED)
            if problem:
                failed[task.key] = problem
            else:
                ledger.add(task.key, {"text": text})
                failed.pop(task.key, None)
                del left[name]
    return failed


def prefill(rating: str, category: str) -> str:
    """The begun answer: human rating and category, and the opening quote of the rationale."""
    return json.dumps({"rating": rating, "category": category, "rationale": ""}, indent=4, ensure_ascii=False)[:-3]


def _rationale_of(reply: str, task: _Task, name: str) -> tuple[str, str]:
    """The rationale in a reply that goes on or begins anew, and why it cannot be used."""
    start = reply.find("{")
    if start >= 0 and '"rating"' in reply:  # the endpoint did not continue but answered on its own
        try:
            said, _ = json.JSONDecoder(strict=False).raw_decode(reply, start)
        except (ValueError, RecursionError):
            return "", "the reply is broken JSON"
        if (said.get("rating"), said.get("category")) != (task.rating, name):
            return "", "the reply argues for another label"
        text = clean(str(said.get("rationale", "")))
    else:
        text = clean(decoded(reply))
    if len(text.split()) < _SHORTEST:
        return "", "the rationale is empty or a few words"
    if repetition(text):
        return "", "the rationale repeats itself"
    return text, ""
