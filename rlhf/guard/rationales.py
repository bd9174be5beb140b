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
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from rlhf.config import Config
from rlhf.errors import EndpointError, RowError
from rlhf.guard.augment import EXCEPTIONS, Sample
from rlhf.guard.guards import EndpointConfig
from rlhf.guard.policy import build_policy
from rlhf.guard.taxonomy import NONE, Taxonomy
from rlhf.guard.verdict import whole_characters
from rlhf.ledger import Ledger
from rlhf.openai_chat import OpenAIChat

_ASK = "\nKeep the rationale to three or four sentences and do not repeat yourself."
_DESCRIBE = "Describe in two sentences what of this picture belongs to the category {name!r}. Do not judge it."
_STATEMENTS = {
    "exempt": "The policy of this request permits the category {name}, so the picture does not break it.",
    "sensitive": "The policy of this request tolerates nothing of the category {name}, so the picture breaks it.",
}
_RUN = 5  # words; a run of as many that occurs twice is a repetition
_SHORTEST = 4  # words
_CLOSING = re.compile(r"\"\s*\}?\s*(?:```)?\s*\Z")


class RationaleConfig(Config):
    """Who writes the rationales that annotations lack."""

    endpoint: EndpointConfig
    max_tokens: int = Field(default=600, ge=1)
    """Budget of one rationale."""
    temperature: float = Field(default=0.2, ge=0)
    """0 is greedy; a rejected rationale is asked for again with another seed."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus."""
    top_k: int | None = Field(default=50, ge=1)
    """Likeliest tokens that are kept; unset for endpoints that do not know the parameter."""
    continue_answer: bool = True
    """Send the begun answer to be continued (vLLM and SGLang can); without, the form is asked for in words."""
    tries: int = Field(default=3, ge=1)
    """Requests for one rationale before it is given up."""

    @property
    def made_by(self) -> dict[str, str]:
        """What rationales depend on beside their images and labels, for the ledger."""
        words = hashlib.blake2b(json.dumps([_ASK, _DESCRIBE]).encode(), digest_size=4).hexdigest()
        drawing = f"temperature {self.temperature:g}, top_p {self.top_p:g}, top_k {self.top_k}"
        way = "continued" if self.continue_answer else "asked"
        return {
            "rationales": f"{self.endpoint.model}, {drawing}, at most {self.max_tokens} tokens, {way}, words {words}"
        }


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
) -> tuple[list[Sample], Counter[str]]:
    """The samples with their rationales, without those for which none could be had, and how many failed and why.

    Samples that share image, category and rating share a rationale, so v3 takes its base's. What the ledger holds is
    not asked for again; failures are not kept. Raises EndpointError where the endpoint refuses or stays away.
    """
    todo = _todo(samples, ledger)
    failed: dict[str, str] = {}
    writer = _Writer(config, taxonomy, image_root)
    with ThreadPoolExecutor(max_workers=config.endpoint.concurrency) as pool:
        asked = {pool.submit(writer.write, task): task for task in todo}
        try:
            for number, future in enumerate(as_completed(asked), start=1):
                text, problem = future.result()
                if problem:
                    failed[asked[future].key] = problem
                else:
                    ledger.add(asked[future].key, {"text": text})
                tell(number)
        except EndpointError:
            pool.shutdown(cancel_futures=True)  # an endpoint that is gone need not be asked for the rest
            raise
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


def clean(text: str) -> str:
    """A generated rationale without the end of its JSON, quotes, braces, line breaks and halves of characters."""
    text = whole_characters(_CLOSING.sub("", text.strip()))
    return " ".join(re.sub(r"[\"{}]|\\n|\\", " ", text).split())


def repetition(text: str) -> str:
    """The sentence, or the run of five words, that occurs twice; "" if none does."""
    sentences = [" ".join(one.lower().split()) for one in re.split(r"(?<=[.!?])\s+", text) if one.strip()]
    words = re.findall(r"[\w']+", text.lower())
    runs = [" ".join(words[place : place + _RUN]) for place in range(len(words) - _RUN + 1)]
    return next(iter([*_twice(sentences), *_twice(runs)]), "")


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


class _Writer:
    """Asks a model, and again with another seed where it repeats itself or contradicts the label."""

    def __init__(self, config: RationaleConfig, taxonomy: Taxonomy, image_root: Path) -> None:
        self._config, self._taxonomy, self._root = config, taxonomy, image_root
        self._chat: OpenAIChat = config.endpoint.chat(config.max_tokens)
        self._policy = build_policy(taxonomy).text

    def write(self, task: _Task) -> tuple[str, str]:
        """The text and "", or "" and why there is none. Raises EndpointError."""
        problem = ""
        for seed in range(self._config.tries):
            messages, extra = self._request(task, seed)
            path = str(self._root / task.image)
            reply = self._chat.reply(messages, [path], self._config.temperature, extra, images_first=True)
            text, problem = _rationale_of(reply, task, self._name(task))
            if not problem:
                return text, ""
        return "", problem

    def _request(self, task: _Task, seed: int) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
        extra: dict[str, Any] = {"seed": seed, "top_p": self._config.top_p}
        if self._config.top_k is not None:
            extra["top_k"] = self._config.top_k
        if task.describe:
            return [{"role": "user", "content": _DESCRIBE.format(name=self._name(task))}], extra
        begun = prefill(task.rating, self._name(task))
        user = {"role": "user", "content": self._policy + _ASK}
        if self._config.continue_answer:
            more = {"continue_final_message": True, "add_generation_prompt": False, "stop": ["}"]}
            return [user, {"role": "assistant", "content": begun}], extra | more
        user["content"] += f"\nThe right answer begins like this; repeat it and go on:\n{begun}"
        return [user], extra

    def _name(self, task: _Task) -> str:
        return self._taxonomy.none.name if task.category == NONE else self._taxonomy.category(task.category).name


def prefill(rating: str, category: str) -> str:
    """The begun answer: human rating and category, and the opening quote of the rationale."""
    return json.dumps({"rating": rating, "category": category, "rationale": ""}, indent=4, ensure_ascii=False)[:-3]


def _rationale_of(reply: str, task: _Task, name: str) -> tuple[str, str]:
    """The rationale in a reply that goes on or begins anew, and why it cannot be used."""
    start = reply.find("{")
    if start >= 0 and '"rating"' in reply:  # the endpoint did not continue but answered on its own
        try:
            said, _ = json.JSONDecoder().raw_decode(reply, start)
        except (ValueError, RecursionError):
            return "", "the reply is broken JSON"
        if (said.get("rating"), said.get("category")) != (task.rating, name):
            return "", "the reply argues for another label"
        reply = str(said.get("rationale", ""))
    text = clean(reply)
    if len(text.split()) < _SHORTEST:
        return "", "the rationale is empty or a few words"
    if repetition(text):
        return "", "the rationale repeats itself"
    return text, ""
