"""The one template: exact texts, spans, and what may not be in a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.data.template import IMAGE_TAG, TEMPLATES, render
from rlhf.errors import RowError

RESERVED = ("<image>", "</s>", "<s>")


def _render(name: str, turns: list[tuple[str, str | None]], has_image: bool = True) -> tuple[str, list[str]]:
    tag = IMAGE_TAG if has_image else ""
    out = render(TEMPLATES[name], turns, image_tag=tag, eos="</s>", reserved=RESERVED)
    return out.text, [out.text[start:end] for start, end in out.answer_spans]


def test_exact_texts() -> None:
    system = (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    )
    assert _render("v1", [("Why?", None)]) == (f"{system}USER: <image>\nWhy? ASSISTANT:", [])
    assert _render("v1", [("Why?", "So.")], has_image=False) == (f"{system}USER: Why? ASSISTANT: So.</s>", [" So.</s>"])
    assert _render("llava_hf", [("Why?", "So.")]) == ("USER: <image>\nWhy? ASSISTANT: So.</s>", [" So.</s>"])
    qwen = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhy?<|im_end|>\n"
    second = "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    assert _render("qwen", [("Why?", "So."), ("Sure?", None)]) == (
        f"{qwen}<|im_start|>assistant\nSo.</s>{second}",
        ["So.</s>"],
    )
    assert _render("qwen_vl", [("Why?", "So.")])[0] == f"{qwen}<|im_start|>assistant\nSo.</s>".replace(
        "<image>\n", "<image>"
    )
    assert _render("plain", [("ignored", "A cat.")]) == ("<image>A cat.\n", ["A cat.\n"])


def test_turns_show_the_image_once_and_count_every_answer() -> None:
    text, answers = _render("llava_hf", [("One?", "1"), ("Two?", "2"), ("Three?", None)])
    assert text == "USER: <image>\nOne? ASSISTANT: 1</s>USER: Two? ASSISTANT: 2</s>USER: Three? ASSISTANT:"
    assert answers == [" 1</s>", " 2</s>"]


@pytest.mark.parametrize("name", ["v1", "llava_hf"])
def test_a_prompt_is_a_prefix_of_its_answered_form(name: str) -> None:
    prompt, _ = _render(name, [("Why?", None)])
    answered, _ = _render(name, [("Why?", "So.")])
    assert prompt.endswith("ASSISTANT:")
    assert answered.startswith(prompt)


@pytest.mark.parametrize("token", RESERVED)
@pytest.mark.parametrize("place", [0, 1])
def test_reserved_tokens_are_refused(token: str, place: int) -> None:
    turn = ["Why?", "So."]
    turn[place] += token
    with pytest.raises(RowError, match="reserved token"):
        _render("v1", [("First?", "Fine."), (turn[0], turn[1])])


def test_nobody_else_writes_prompts() -> None:
    root = Path(__file__).parents[3]
    files = [path for folder in ("rlhf", "actors", "jobs") for path in (root / folder).rglob("*.py")]
    assert len(files) > 20
    writers = {path.name for path in files if "ASSISTANT:" in path.read_text()}
    assert writers == {"template.py", "tiny.py"}  # tiny.py ships the same text as the model's chat template
