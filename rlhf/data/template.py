"""The one place where a conversation becomes text. Training, rollouts, rewards and evaluation all call `render`.

A prompt ends exactly at the assistant's mark ("ASSISTANT:"), or where a begun answer does, and every answer ends with
EOS, so that no role sees text that another would tokenise differently (seed page 7.1, trap T9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf.errors import RowError

IMAGE_TAG = "<image>"


@dataclass(frozen=True, slots=True)
class Template:
    """The fixed text around turns (seed page 1.4). `question_prefix` empty means that questions are left out."""

    system: str
    question_prefix: str
    answer_prefix: str
    answer_suffix: str  # "" stands for the tokenizer's EOS
    answer_space: str = ""  # between prefix and answer, learned with the answer
    between_turns: str = ""
    after_image: str = "\n"


_V1_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)

_CHATML = Template(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
    "",
    between_turns="\n",
)

TEMPLATES: dict[str, Template] = {
    "v1": Template(_V1_SYSTEM, "USER: ", " ASSISTANT:", "", answer_space=" "),
    "llava_hf": Template("", "USER: ", " ASSISTANT:", "", answer_space=" "),
    "qwen": _CHATML,
    "qwen_vl": replace(_CHATML, after_image=""),
    "plain": Template("", "", "", "\n"),
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text with the character spans of the answers; a prompt to be completed has no last span."""

    text: str
    answer_spans: tuple[tuple[int, int], ...]


def render(
    template: Template,
    turns: Sequence[tuple[str, str | None]],
    *,
    image_tag: str,
    eos: str,
    reserved: Sequence[str],
    begun: str = "",
) -> Rendered:
    """Render (question, answer) turns; an answer of None, allowed in the last turn, leaves the prompt open.

    `begun` is how that answer begins, `image_tag` stands for the image, "" if there is none. Raises RowError when a
    text carries a reserved token, which would add a placeholder or end the answer early; and for a template without
    questions unless there is one turn and an image, which is all that it can show.
    """
    if not template.question_prefix and (len(turns) != 1 or not image_tag):
        raise RowError(
            f"a template without questions (model.template=plain) needs exactly two turns and an image, found "
            f"{2 * len(turns)} turns and {'an' if image_tag else 'no'} image"
        )
    pieces = [template.system]
    spans = []
    position = len(template.system)
    for index, (question, answer) in enumerate(turns):
        for text in (question, begun if answer is None else answer):
            hit = next((token for token in reserved if token in text), None)
            if hit is not None:
                raise RowError(f"the text contains the reserved token {hit!r}")
        tag = "" if index else image_tag
        if template.question_prefix:
            asked = f"{tag}{template.after_image if tag else ''}{question}"
            gap = template.between_turns if index else ""
            head = f"{gap}{template.question_prefix}{asked}{template.answer_prefix}"
        else:
            head = tag
        pieces.append(head)
        position += len(head)
        if answer is None:
            pieces.append(f"{template.answer_space}{begun}" if begun else "")
            break
        body = f"{template.answer_space}{answer}{template.answer_suffix or eos}"
        pieces.append(body)
        spans.append((position, position + len(body)))
        position += len(body)
    return Rendered("".join(pieces), tuple(spans))
