"""The length filters (seed 1.3) at their borders, and the count of what they drop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlavaConfig

from rlhf.batch import PreferencePair, Prompt
from rlhf.config import ModelConfig
from rlhf.data.compact import encode_all
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError, PromptTooLongError
from rlhf.models.families import family_of

IMAGE_TOKENS = 576  # a 336-pixel tower with patches of 14
CONTEXT = 2048
TEXT_LIMIT = 1472  # 2048 - 576: what the seed leaves for text


@pytest.fixture(scope="module")
def processor(tiny: ModelConfig) -> Processor:
    """The tiny tokenizer with the context and the image tokens of LLaVA-1.5-7B."""
    small = Processor.load(tiny)
    config = tiny.model_copy(update={"max_length": CONTEXT})
    processor = Processor(small.tokenizer, small.image_processor, family_of(LlavaConfig()), config)
    assert processor.tokens_per_image == IMAGE_TOKENS
    return processor


def text_tokens(processor: Processor, text: str) -> int:
    """Tokens of a text, the image tag not counted."""
    return len([one for one in processor.tokenizer(text)["input_ids"] if one != processor.image_id])


def question_of(processor: Processor, tokens: int) -> str:
    """A question whose whole prompt has exactly so many text tokens."""
    size = tokens - text_tokens(processor, "USER: <image>\n ASSISTANT:")
    for count in range(max(1, size - 3), size + 4):
        question = "7" * count  # digits are one token each: no merge of the tiny corpus has one
        if text_tokens(processor, f"USER: <image>\n{question} ASSISTANT:") == tokens:
            return question
    raise AssertionError(f"no question of {tokens} tokens")


def filtered(processor: Processor, lengths: list[int], image: str, budget: int = 0) -> tuple[list[str], RejectedRows]:
    """Ids of the prompts that the filter keeps; an id is the number of text tokens."""
    prompts = [Prompt(f"p:{length}", question_of(processor, length), image) for length in lengths]
    rejected = RejectedRows()
    kept = rejected.survivors(prompts, lambda prompt: processor.prompt_ids(prompt, budget))
    return [prompt.id for prompt, _ in kept], rejected


def test_row06_the_prompt_filter_at_its_border(processor: Processor, pictures: list[str]) -> None:
    lengths = [TEXT_LIMIT - 1, TEXT_LIMIT, TEXT_LIMIT + 1]
    kept, rejected = filtered(processor, lengths, pictures[0])
    assert kept == ["p:1471", "p:1472"]
    assert rejected.kinds == {"PromptTooLongError": 1}
    assert rejected.errors[0].source == "p:1473"
    assert "2049 prompt tokens (of which 576 for the image)" in rejected.errors[0].reason


def test_row06_without_an_image_nothing_is_reserved(processor: Processor) -> None:
    size = CONTEXT - text_tokens(processor, "USER:  ASSISTANT:")
    fits = next(n for n in range(size + 3, 0, -1) if text_tokens(processor, f"USER: {'7' * n} ASSISTANT:") == CONTEXT)
    assert len(processor.prompt_ids(Prompt("p", "7" * fits))) == CONTEXT
    with pytest.raises(PromptTooLongError, match="0 for the image"):
        processor.prompt_ids(Prompt("p", "7" * (fits + 1)))


def test_row06_the_pair_filter_counts_both_sides(processor: Processor, pictures: list[str], tmp_path: Path) -> None:
    prompt = Prompt("p", "What is it?", pictures[0])

    def answer(tokens: int) -> str:
        """An answer with which the row has so many text tokens, EOS included."""
        frame = "USER: <image>\nWhat is it? ASSISTANT: {}</s>"
        return next("7" * n for n in range(tokens) if text_tokens(processor, frame.format("7" * n)) == tokens)

    rejected = RejectedRows(tmp_path / "rejected.jsonl")
    pairs = [
        PreferencePair(prompt, answer(size), "no") if chosen else PreferencePair(prompt, "no", answer(size))
        for chosen in (True, False)
        for size in (TEXT_LIMIT - 1, TEXT_LIMIT, TEXT_LIMIT + 1)
    ]
    kept = encode_all(
        pairs,
        lambda pair: (processor.encode(prompt, pair.chosen), processor.encode(prompt, pair.rejected)),
        rejected,
    )
    assert [max(len(row.ids) for row in rows) for _, rows in kept] == [CONTEXT - 1, CONTEXT] * 2
    assert rejected.kinds == {"PromptTooLongError": 2}
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["PromptTooLongError"] * 2
    with pytest.raises(DataError, match=r"2 of 6 rows were rejected \(PromptTooLongError: 2\)"):
        rejected.check(6)


def test_row06_reasons_are_counted_apart(processor: Processor, pictures: list[str]) -> None:
    prompts = [
        Prompt("fits", "What is it?", pictures[0]),
        Prompt("long", question_of(processor, TEXT_LIMIT + 1), pictures[0]),
        Prompt("tag", "What is </s> it?", pictures[0]),
        Prompt("longer", question_of(processor, TEXT_LIMIT + 2), pictures[0]),
    ]
    rejected = RejectedRows()
    assert [one.id for one, _ in rejected.survivors(prompts, processor.prompt_ids)] == ["fits"]
    assert rejected.kinds == {"PromptTooLongError": 2, "RowError": 1}


@pytest.mark.parametrize("budget", [1, 64, 512])
def test_row33_prompt_image_and_answer_budget_fit_the_context(
    processor: Processor, pictures: list[str], budget: int
) -> None:
    limit = TEXT_LIMIT - budget
    kept, rejected = filtered(processor, [limit - 1, limit, limit + 1], pictures[0], budget)
    assert kept == [f"p:{limit - 1}", f"p:{limit}"]
    assert rejected.kinds == {"PromptTooLongError": 1}
    longest = processor.prompt_ids(Prompt("p", question_of(processor, limit), pictures[0]), budget)
    assert len(longest) + budget == CONTEXT  # nothing is cut: the longest prompt and answer fill the context exactly


def test_row33_a_shorter_engine_context_counts(processor: Processor, pictures: list[str]) -> None:
    prompt = Prompt("p", question_of(processor, 400), pictures[0])
    assert len(processor.prompt_ids(prompt, 24, context=1000)) == 976
    with pytest.raises(PromptTooLongError, match="no room for 25 new tokens in a context of 1000"):
        processor.prompt_ids(prompt, 25, context=1000)
