"""From prompts to tensors: placeholders, counted tokens, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.batch import Example, Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor, TokenRow
from rlhf.errors import ConfigError, ImageError, PromptTooLongError, RowError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<" not in text)


@pytest.fixture(scope="module")
def processor(tiny: ModelConfig) -> Processor:
    return Processor.load(tiny)


@pytest.fixture
def prompt(pictures: list[str]) -> Prompt:
    return Prompt("p:1", "What colour is the ball?", pictures[0])


def _counted(row: TokenRow) -> list[int]:
    return [token for token, inside in zip(row.ids, row.response, strict=True) if inside]


def test_ids_are_those_of_the_models_own_processor(
    tiny: ModelConfig, processor: Processor, pictures: list[str]
) -> None:
    from transformers import AutoProcessor

    theirs = AutoProcessor.from_pretrained(tiny.path)
    for path in pictures:
        text = "USER: <image>\nHow many people? ASSISTANT:"
        expected = theirs(text=text, images=processor.image(path), return_tensors="pt")
        assert processor.prompt_ids(Prompt("x", "How many people?", path)) == expected["input_ids"][0].tolist()
        assert torch.equal(processor.pixels(path), expected["pixel_values"][0])
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many people?"}]}]
        assert theirs.apply_chat_template(messages, add_generation_prompt=True) == text


@pytest.mark.parametrize("template", ["v1", "llava_hf"])
def test_a_prompt_ends_at_the_assistant_and_begins_its_row(tiny: ModelConfig, prompt: Prompt, template: str) -> None:
    config = tiny.model_copy(update={"template": template, "max_length": 512})
    processor = Processor.load(config)
    ids = processor.prompt_ids(prompt)
    assert processor.tokenizer.decode(ids).endswith("What colour is the ball? ASSISTANT:")
    row = processor.encode(prompt, "The ball is red.")
    assert list(row.ids[: len(ids)]) == ids
    assert not any(row.response[: len(ids)])
    assert all(row.response[len(ids) :])
    assert row.ids[-1] == processor.eos_id
    assert processor.tokenizer.decode(_counted(row)) == " The ball is red.</s>"
    assert ids.count(processor.image_id) == processor.tokens_per_image == 9


@pytest.mark.parametrize("template", ["v1", "llava_hf", "qwen"])
def test_a_begun_answer_is_seen_as_it_was_learned(tiny: ModelConfig, prompt: Prompt, template: str) -> None:
    processor = Processor.load(tiny.model_copy(update={"template": template, "max_length": 512}))
    answer = '{\n    "rating": "Safe",\n    "rationale": "'
    row = processor.encode(prompt, answer)
    assert processor.prompt_ids(replace(prompt, begun=answer)) == list(row.ids[:-1])  # all but the end
    assert row.ids[-1] == processor.eos_id
    with pytest.raises(RowError, match="reserved token '<image>'"):
        processor.prompt_ids(replace(prompt, begun="an <image> of"))


@given(question=TEXT, answer=TEXT)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_keeps_prompt_and_answer_apart(processor: Processor, question: str, answer: str) -> None:
    prompt = Prompt("p", question)
    ids = processor.prompt_ids(prompt)
    row = processor.encode(prompt, answer)
    assert list(row.ids[: len(ids)]) == ids
    assert processor.tokenizer.decode(row.ids[len(ids) :]) == f" {answer}</s>"
    assert _counted(row) == list(row.ids[len(ids) :])


def test_every_answer_of_a_conversation_counts(processor: Processor, pictures: list[str]) -> None:
    turns = (("How many people?", "Three."), ("And birds?", "One small bird."))
    row = processor.encode_example(Example("c:1", pictures[1], turns))
    assert processor.tokenizer.decode(_counted(row)) == " Three.</s> One small bird.</s>"
    assert _counted(row).count(processor.eos_id) == 2
    single = processor.encode_example(Example("c:2", pictures[1], turns[:1]))
    assert single == replace(processor.encode(Prompt("x", *turns[0][:1], pictures[1]), "Three."))


def test_a_caption_row_counts_the_caption(tiny: ModelConfig, pictures: list[str]) -> None:
    processor = Processor.load(tiny.model_copy(update={"template": "plain"}))
    row = processor.encode_example(Example("c", pictures[0], (("Describe it.", "A red ball"),)))
    assert processor.tokenizer.decode(_counted(row)) == "A red ball\n"
    assert list(row.ids).count(processor.image_id) == processor.tokens_per_image


def test_collapse_leaves_one_placeholder(processor: Processor, prompt: Prompt) -> None:
    ids = processor.prompt_ids(prompt)
    collapsed = processor.collapse(ids)
    assert collapsed.count(processor.image_id) == 1
    assert len(ids) - len(collapsed) == processor.tokens_per_image - 1
    assert [t for t in ids if t != processor.image_id] == [t for t in collapsed if t != processor.image_id]
    text_only = processor.prompt_ids(replace(prompt, image=None))
    assert processor.collapse(text_only) == text_only


def test_join_takes_generated_ids_as_they_are(processor: Processor, prompt: Prompt) -> None:
    odd = [processor.eos_id, 9, 9, 300]  # no tokeniser would produce these
    other = replace(prompt, image=None)
    batch = processor.join([prompt, other], [odd, [7]])
    for index, (asked, response) in enumerate([(prompt, odd), (other, [7])]):
        head, length = processor.prompt_ids(asked), int(batch.lengths[index])
        assert batch.input_ids[index, :length].tolist() == [*head, *response]
        assert batch.input_ids[index][batch.response_mask[index]].tolist() == response
        assert set(batch.input_ids[index, length:].tolist()) <= {processor.pad_id}
        assert batch.attention_mask[index].sum() == length
    assert batch.images == (prompt.image, None)
    row = processor.encode(prompt, "The ball is red.")
    same = processor.join([prompt], [_counted(row)])
    assert same.input_ids[0].tolist() == list(row.ids)
    assert same.response_mask[0].tolist() == list(row.response)


def test_a_prompt_that_does_not_fit_is_refused_with_numbers(tiny: ModelConfig, prompt: Prompt) -> None:
    processor = Processor.load(tiny)
    length = len(processor.prompt_ids(prompt))
    assert processor.prompt_ids(prompt, tiny.max_length - length)  # fits exactly
    with pytest.raises(PromptTooLongError) as caught:
        processor.prompt_ids(prompt, tiny.max_length - length + 1)
    for part in (f"{length} prompt tokens", "9 for the image", f"{257 - length} new tokens", "context of 256", "p:1"):
        assert part in str(caught.value)
    with pytest.raises(PromptTooLongError, match="context of 50"):
        processor.prompt_ids(prompt, 50 - length + 1, context=50)
    with pytest.raises(PromptTooLongError, match="exceed the context of 256"):
        processor.encode(prompt, "ball " * 300)


@pytest.mark.parametrize("text", ["see <image>", "<pad>", "end</s> of", "<s>", "<unk>"])
def test_reserved_tokens_in_a_text_are_refused(processor: Processor, prompt: Prompt, text: str) -> None:
    with pytest.raises(RowError, match="reserved token"):
        processor.prompt_ids(replace(prompt, question=text))
    with pytest.raises(RowError, match="reserved token"):
        processor.encode(prompt, text)


def test_images_are_padded_to_a_square_if_so_configured(tiny: ModelConfig, pictures: list[str]) -> None:
    wide = pictures[1]
    squared, cropped = Processor.load(tiny), Processor.load(tiny.model_copy(update={"pad_to_square": False}))
    assert squared.image(wide).size[0] == squared.image(wide).size[1]
    assert squared.image(pictures[2]).size == (64, 64)
    assert cropped.image(pictures[2]).size == (64, 48)
    assert squared.pixels(pictures[2]).shape == cropped.pixels(pictures[2]).shape == (3, 24, 24)
    assert not torch.equal(squared.pixels(pictures[2]), cropped.pixels(pictures[2]))


def test_missing_files_are_named(tiny: ModelConfig, processor: Processor) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        processor.pixels("/tmp/nowhere.png")
    with pytest.raises(ConfigError, match="run the stage that writes it first"):
        Processor.load(tiny.model_copy(update={"path": "./runs/not/there"}))
