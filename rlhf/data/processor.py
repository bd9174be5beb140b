"""Text and images into tensors: the only tokeniser of the project.

The image tag becomes one placeholder id per visual token here, so positions in a batch equal positions of logits. A
rollout engine that expands placeholders itself gets the collapsed form (`collapse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.batch import Example, Prompt, TokenBatch
from rlhf.config import ModelConfig, resolve
from rlhf.data.images import CLIP_MEAN_COLOUR, load_image, pad_to_square
from rlhf.data.template import IMAGE_TAG, TEMPLATES, render
from rlhf.errors import ConfigError, PromptTooLongError, RowError


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One sequence: ids with expanded placeholders, and which of them count as response."""

    ids: Sequence[int] | np.ndarray
    response: Sequence[bool] | np.ndarray
    image: str | None


def check_architecture(config: ModelConfig) -> None:
    """Raise ConfigError unless `config.path` is a LLaVA in transformers' layout, naming what it is instead."""
    from transformers import PretrainedConfig

    path = resolve(config.path)
    if Path(path).is_absolute() and not (Path(path) / "config.json").exists():
        raise ConfigError([f"model.path: {path} holds no model; run the stage that writes it first"])
    content, _ = PretrainedConfig.get_config_dict(path)
    kind = content.get("model_type", "")
    if kind == "llava":
        return
    found = " ".join(content.get("architectures") or ["no named class"])
    remedy = "name a directory whose config.json says model_type llava"
    if kind.startswith("llava_"):  # llava_llama: written by the original LLaVA code, as SPA-VL's checkpoints are
        remedy = f"convert it first: jobs/convert_llava.py direction=to_hub source={path} target=<new folder>"
    raise ConfigError([f"model.path: {path} is a {kind or 'nameless'} model ({found}), not a LLaVA: {remedy}"])


class Processor:
    """Tokeniser, image processor and template of one model directory."""

    def __init__(self, tokenizer: Any, image_processor: Any, tokens_per_image: int, config: ModelConfig) -> None:
        self.tokenizer, self.image_processor, self.config = tokenizer, image_processor, config
        self.tokens_per_image = tokens_per_image
        self.template = TEMPLATES[config.template]
        self.image_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._reserved = tuple(dict.fromkeys([IMAGE_TAG, *tokenizer.all_special_tokens]))

    @classmethod
    def load(cls, config: ModelConfig) -> Processor:
        """Read tokenizer and image processor of `config.path` (nothing else of the model is loaded)."""
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

        check_architecture(config)
        path = resolve(config.path)
        model = AutoConfig.from_pretrained(path)
        vision = model.vision_config
        per_image = (vision.image_size // vision.patch_size) ** 2
        if model.vision_feature_select_strategy == "full":
            per_image += 1
        tokenizer = AutoTokenizer.from_pretrained(path)
        return cls(tokenizer, AutoImageProcessor.from_pretrained(path), per_image, config)

    def prompt_ids(self, prompt: Prompt, max_new_tokens: int = 0, context: int | None = None) -> list[int]:
        """Ids of an open prompt. Raises PromptTooLongError if they and `max_new_tokens` exceed the context.

        `context` is the engine's where that is shorter than the model's.
        """
        rendered = self._render([(prompt.question, None)], prompt.image)
        ids, _ = self._encode(rendered.text, (), prompt.image is not None)
        limit = min(context or self.config.max_length, self.config.max_length)
        if len(ids) > limit - max_new_tokens:
            raise PromptTooLongError(
                f"{len(ids)} prompt tokens (of which {self._image_tokens(prompt.image)} for the image) leave no room "
                f"for {max_new_tokens} new tokens in a context of {limit}",
                source=prompt.id,
            )
        return ids

    def encode(self, prompt: Prompt, answer: str) -> TokenRow:
        """Prompt and answer with EOS as one row, the answer counted."""
        return self._row([(prompt.question, answer)], prompt.image, prompt.id)

    def encode_example(self, example: Example) -> TokenRow:
        """A conversation as one row, every answer counted."""
        return self._row(list(example.turns), example.image, example.id)

    def join(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> TokenBatch:
        """Prompts with generated ids (which are never re-tokenised), the response counted."""
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            head = self.prompt_ids(prompt)
            counted = [False] * len(head) + [True] * len(response)
            rows.append(TokenRow([*head, *response], counted, prompt.image))
        return self.collate(rows)

    def collate(self, rows: Sequence[TokenRow]) -> TokenBatch:
        """Pad rows on the right into one batch."""
        width = max(len(row.ids) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)  # [B, T]
        response_mask = torch.zeros((len(rows), width), dtype=torch.bool)  # [B, T]
        for index, row in enumerate(rows):
            input_ids[index, : len(row.ids)] = torch.as_tensor(row.ids)
            response_mask[index, : len(row.ids)] = torch.as_tensor(row.response)
        lengths = torch.tensor([len(row.ids) for row in rows])
        return TokenBatch(input_ids, lengths, response_mask, tuple(row.image for row in rows))

    def collapse(self, ids: Sequence[int]) -> list[int]:
        """One placeholder per image instead of one per visual token (what vLLM expects)."""
        return [token for index, token in enumerate(ids) if token != self.image_id or ids[index - 1] != self.image_id]

    def image(self, path: str) -> Any:
        """The PIL image as every role must see it: RGB, padded to a square if so configured."""
        image = load_image(path)
        return pad_to_square(image, CLIP_MEAN_COLOUR) if self.config.pad_to_square else image

    def pixels(self, path: str) -> Tensor:
        """[3, H, W] float32, normalised."""
        return self.image_processor(self.image(path), return_tensors="pt")["pixel_values"][0]

    def image_settings(self) -> str:
        """Everything that decides an image's pixels, as one line."""
        return f"{self.image_processor.to_json_string()} pad_to_square={self.config.pad_to_square}"

    @property
    def feature_store(self) -> Path | None:
        """Where features of a frozen tower are kept, if anywhere."""
        return Path(resolve(self.config.feature_store)) if self.config.feature_store else None

    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and chat template beside a model, as transformers and vLLM expect them."""
        from transformers import AutoProcessor

        AutoProcessor.from_pretrained(resolve(self.config.path)).save_pretrained(folder)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and surrounding blanks."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _image_tokens(self, image: str | None) -> int:
        return self.tokens_per_image if image is not None else 0

    def _render(self, turns: Sequence[tuple[str, str | None]], image: str | None) -> Any:
        eos = self.tokenizer.eos_token
        return render(self.template, turns, has_image=image is not None, eos=eos, reserved=self._reserved)

    def _row(self, turns: Sequence[tuple[str, str | None]], image: str | None, source: str) -> TokenRow:
        rendered = self._render(turns, image)
        ids, counted = self._encode(rendered.text, rendered.answer_spans, image is not None)
        if len(ids) > self.config.max_length:
            raise PromptTooLongError(
                f"{len(ids)} tokens (of which {self._image_tokens(image)} for the image) exceed the context of "
                f"{self.config.max_length}",
                source=source,
            )
        return TokenRow(ids, counted, image)

    def _encode(self, text: str, spans: Sequence[tuple[int, int]], has_image: bool) -> tuple[list[int], list[bool]]:
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids: list[int] = []
        counted: list[bool] = []
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            inside = any(start >= low and end <= high and end > start for low, high in spans)
            if not inside and any(start < low < end or start < high < end for low, high in spans):
                raise RowError(f"a token straddles the border of an answer in {text[max(0, start - 20) : end + 20]!r}")
            repeat = self.tokens_per_image if token == self.image_id else 1
            ids.extend([token] * repeat)
            counted.extend([inside] * repeat)
        if has_image != (self.image_id in ids):
            raise RowError("the text and the image disagree about the image tag")
        return ids, counted
