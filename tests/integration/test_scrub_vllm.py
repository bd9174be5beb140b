"""A language model in vLLM inside the scrubbing worker: many threads ask it, the rules audit what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rlhf.config import ModelConfig
from rlhf.data.json_stream import plan_spans
from rlhf.data.processor import Processor
from rlhf.errors import PromptTooLongError, WorkerLostError
from rlhf.models.tiny import TinyConfig, build
from rlhf.rollout.base import RolloutConfig
from rlhf.rollout.vllm_chat import VllmChat
from rlhf.rollout.vllm_engine import cpu_environment
from rlhf.scrub import engines
from rlhf.scrub.engines import EngineConfig
from rlhf.scrub.files import Scrubber, Unit, assemble
from rlhf.scrub.model_engine import PROMPTS
from tests.fakes import CORPUS
from tests.unit.scrub.test_files import turns

pytestmark = pytest.mark.slow

TOKENS = 8
CONTEXT = 1024


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Untrained, with room for the scrubber's rules in words that its tokenizer knows."""
    folder = tmp_path_factory.mktemp("writer")
    sizes = TinyConfig(hidden=32, layers=2, heads=1, image_size=24, context=CONTEXT)
    build(sizes, [*CORPUS, *PROMPTS] * 4, folder)
    return ModelConfig(path=str(folder), dtype="float32", max_length=CONTEXT, template="llava_hf")


@pytest.fixture(scope="module")
def chat(model: ModelConfig) -> Iterator[VllmChat]:
    config = RolloutConfig(dtype="float32", max_length=CONTEXT, max_sequences=8, kv_cache_mb=64)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        yield VllmChat(model.path, config, TOKENS)


def test_safe03_replies_are_those_of_transformers_whoever_else_is_asking(chat: VllmChat, model: ModelConfig) -> None:
    talks = [[{"role": "user", "content": f"Say {'it ' * number}again, number {number}."}] for number in range(12)]
    talks.append([*talks[3], {"role": "assistant", "content": "yes"}, {"role": "user", "content": "And now?"}])
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(chat.reply, talks))
    processor = Processor.load(model)
    network = AutoModelForImageTextToText.from_pretrained(model.path).eval()
    for talk, reply in zip(talks, together, strict=True):
        text = processor.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
        said = network.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.shape[1] :]
        assert reply == processor.tokenizer.decode(said, skip_special_tokens=True), text
    assert len(set(together)) > 1  # else it would not matter who asked


def test_safe03_a_turn_beyond_the_context_is_refused_alone(chat: VllmChat) -> None:
    with pytest.raises(PromptTooLongError, match=rf"a reply of {TOKENS} do not fit into a context of {CONTEXT}"):
        chat.reply([{"role": "user", "content": "word " * 2000}])
    assert isinstance(chat.reply([{"role": "user", "content": "Hello?"}]), str)


def test_safe03_what_a_model_without_sense_writes_is_never_published(
    chat: VllmChat, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained weights write rubbish: every row that asked the model is named, rows without a cue go through."""
    monkeypatch.setattr(engines, "_chat", lambda config: chat)  # the engine of this module; starting one takes 20 s
    config = EngineConfig(
        kind="vllm", model=model.path, dtype="float32", max_length=CONTEXT, max_tokens=TOKENS, concurrency=4, tries=2
    )
    rows = [{"id": number, "conversations": turns("Who?", f"A man with {number + 2} dogs.")} for number in range(6)]
    rows += [{"id": 10, "conversations": turns("What?", "Two eggs.")}]
    rows += [{"id": 11, "conversations": turns("Who?", "A man. " + "A dog. " * 500)}]
    source = tmp_path / "chat.json"
    source.write_text(json.dumps(rows))
    units = [Unit(place, "chat.json", str(source), **asdict(one)) for place, one in enumerate(plan_spans(source, 100))]
    worker = Scrubber(tmp_path / "parts", None, False, config, tmp_path / "answers")
    for unit in units:
        worker(asdict(unit))
    manifest = assemble(tmp_path / "out", {"engine": config.identity}, units, tmp_path / "parts", 1.0, config)
    assert [row["id"] for row in json.loads((tmp_path / "out" / "chat.json").read_text())] == [10]
    assert manifest["rejected"] == {"LeakError": 6, "PromptTooLongError": 1}
    assert manifest["engine"]["weights"]  # other weights in the same folder are another engine


def test_an_engine_that_fails_tells_everybody_who_waits_and_who_comes_later(
    chat: VllmChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this file: the engine is not used again."""

    def fails() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat._llm.llm_engine, "step", fails)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(chat.reply, [{"role": "user", "content": f"Hello {number}?"}]) for number in range(3)]
        for one in asked:
            with pytest.raises(WorkerLostError, match="RuntimeError: out of memory"):
                one.result(timeout=30)
    with pytest.raises(WorkerLostError, match="out of memory"):
        chat.reply([{"role": "user", "content": "Still there?"}])
