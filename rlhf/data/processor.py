"""Text and images into tensors: the only tokeniser of the project.

The image tag becomes one placeholder id per visual token here, so positions in a batch equal positions of logits. A
rollout engine that expands placeholders itself gets the collapsed form (`collapse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rlhf.batch import Example, Prompt, TokenBatch
from rlhf.config import ModelConfig, resolve
from rlhf.data.images import image_size, load_image, pad_to_square
from rlhf.data.template import IMAGE_TAG, TEMPLATES, render
from rlhf.errors import ConfigError, ImageError, MaskedRowError, PromptTooLongError, RowError
from rlhf.models.adapters import check_adapter
from rlhf.models.families import FAMILIES, Family, ImageSize, family_of


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One sequence: ids with expanded placeholders, and which of them count as response."""

    ids: Sequence[int] | np.ndarray
    response: Sequence[bool] | np.ndarray
    image: str | None


def check_architecture(config: ModelConfig, key: str = "model") -> None:
    """Raise ConfigError unless `config.path` is of a known family in transformers' layout, naming what it is.

    `key` is what `config` is called in the configuration.
    """
    from transformers import PretrainedConfig

    path = resolve(config.path)
    if Path(path).is_absolute() and not (Path(path) / "config.json").exists():
        raise ConfigError([f"{key}.path: {path} holds no model; run the stage that writes it first"])
    content, _ = PretrainedConfig.get_config_dict(path)
    kind = content.get("model_type", "")
    if kind in FAMILIES:
        return
    found = " ".join(content.get("architectures") or ["no named class"])
    remedy = f"name a directory whose config.json has a model_type of {', '.join(FAMILIES)}"
    if kind == "llava_llama":  # written by the original LLaVA code, as SPA-VL's checkpoints are
        remedy = f"convert it first: jobs/convert_llava.py direction=to_hub source={path} target=<new folder>"
    raise ConfigError(
        [f"{key}.path: {path} is a {kind or 'nameless'} model ({found}), which is not supported: {remedy}"]
    )


class Processor:
    """Tokeniser, image processor and template of one model directory."""

    kept_images = 512
    """Decoded images that an engine may keep, because training asks about the same ones again."""

    def __init__(self, tokenizer: Any, image_processor: Any, family: Family, config: ModelConfig) -> None:
        """Raises ConfigError for squares where the family sees images in their own proportions."""
        if family.keeps_proportions and config.pad_to_square:
            raise ConfigError(
                [f"model.pad_to_square: {family.architecture} sees images in their own proportions; set it to false"]
            )
        self.tokenizer, self.image_processor, self.family, self.config = tokenizer, image_processor, family, config
        red, green, blue = (int(255 * mean) for mean in image_processor.image_mean)
        self.mean_colour = (red, green, blue)
        self._sizes: dict[str, ImageSize] = {}
        self.template = TEMPLATES[config.template]
        self.image_id: int = tokenizer.convert_tokens_to_ids(family.placeholder)
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._reserved = tuple(dict.fromkeys([IMAGE_TAG, family.placeholder, *tokenizer.all_special_tokens]))

    @classmethod
    def load(cls, config: ModelConfig, key: str = "model") -> Self:
        """Read tokenizer and image processor of `config.path` (nothing else of the model is loaded).

        Raises ConfigError for a model or an adapter that cannot be used; `key` is what `config` is called in the
        configuration.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

        check_architecture(config, key)
        check_adapter(config, f"{key}.adapter")
        path = resolve(config.path)
        image_processor = AutoImageProcessor.from_pretrained(path)
        family = family_of(AutoConfig.from_pretrained(path), image_processor)
        return cls(AutoTokenizer.from_pretrained(path), image_processor, family, config)

    @property
    def tokens_per_image(self) -> int | None:
        """Placeholders of an image; None where they depend on its size."""
        return self.family.tokens_per_image

    def prompt_ids(self, prompt: Prompt, max_new_tokens: int = 0, context: int | None = None) -> list[int]:
        """Ids of an open prompt. Raises PromptTooLongError if they and `max_new_tokens` exceed the context.

        `context` is the engine's where that is shorter than the model's.
        """
        rendered = self._render([*prompt.history, (prompt.question, None)], prompt.image, prompt.begun)
        ids, _ = self._encode(rendered.text, (), prompt.image)
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
        return self._row([*prompt.history, (prompt.question, answer)], prompt.image, prompt.id)

    def encode_example(self, example: Example, cut: bool = False) -> TokenRow:
        """A conversation as one row, every answer counted.

        One that is longer than the context raises PromptTooLongError or, with `cut`, loses what is too much on its
        right. Image tokens are never cut: PromptTooLongError if they do not fit. MaskedRowError if no answer is left.
        """
        if not cut:
            return self._row(list(example.turns), example.image, example.id)
        ids, counted = self._tokens(list(example.turns), example.image, example.id)
        limit, needed = self.config.max_length, len(ids)
        lost = ids[limit:].count(self.image_id)  # texts hold no placeholder: these are the image's
        if lost:
            raise PromptTooLongError(
                f"{lost} of {self._image_tokens(example.image)} image tokens lie beyond the context of {limit}",
                source=example.id,
            )
        if not any(counted[:limit]):
            raise MaskedRowError(
                f"nothing is left to learn of {needed} tokens in a context of {limit}", source=example.id
            )
        return TokenRow(ids[:limit], counted[:limit], example.image)

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
        before = [None, *ids]
        return [token for token, last in zip(ids, before, strict=False) if not token == last == self.image_id]

    def open(self, path: str) -> Any:
        """The PIL image that a prompt names: RGB and upright, in its own proportions."""
        return load_image(path)

    def image(self, path: str) -> Any:
        """The PIL image as every role must see it: RGB, padded to a square if so configured."""
        image = self.open(path)
        return pad_to_square(image, self.mean_colour) if self.config.pad_to_square else image

    def image_size(self, path: str) -> ImageSize:
        """Height and width of `image(path)`; not looked at where it changes nothing."""
        if self.tokens_per_image is not None:
            return self.family.blank
        if path not in self._sizes:
            self._sizes[path] = image_size(path)
        return self._sizes[path]

    def pixels(self, path: str) -> Tensor:
        """Those of one image, float32, normalised, in the shape that `Family.pixels` says."""
        return self.family.pixels(self.image_processor(self.image(path), return_tensors="pt"))

    def model_inputs(self, path: str) -> dict[str, Tensor]:
        """An image as transformers' own forward takes it beside ids, as a batch of one."""
        return self.family.inputs(self.pixels(path), self.image_size(path))

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
        if image is None:
            return 0
        try:
            return self.family.image_tokens(self.image_size(image))
        except ValueError as error:
            raise ImageError(str(error), source=image) from error

    def _render(self, turns: Sequence[tuple[str, str | None]], image: str | None, begun: str = "") -> Any:
        eos, tag = self.tokenizer.eos_token, "" if image is None else self.family.image_tag
        return render(self.template, turns, image_tag=tag, eos=eos, reserved=self._reserved, begun=begun)

    def _row(self, turns: Sequence[tuple[str, str | None]], image: str | None, source: str) -> TokenRow:
        ids, counted = self._tokens(turns, image, source)
        if len(ids) > self.config.max_length:
            raise PromptTooLongError(
                f"{len(ids)} tokens (of which {self._image_tokens(image)} for the image) exceed the context of "
                f"{self.config.max_length}",
                source=source,
            )
        return TokenRow(ids, counted, image)

    def _tokens(
        self, turns: Sequence[tuple[str, str | None]], image: str | None, source: str
    ) -> tuple[list[int], list[bool]]:
        try:
            rendered = self._render(turns, image)
            return self._encode(rendered.text, rendered.answer_spans, image)
        except RowError as error:  # texts do not know which row they are of
            raise RowError(error.reason, source=source) from None

    def _encode(self, text: str, spans: Sequence[tuple[int, int]], image: str | None) -> tuple[list[int], list[bool]]:
        image_tokens = self._image_tokens(image)
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids: list[int] = []
        counted: list[bool] = []
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            inside = any(start >= low and end <= high and end > start for low, high in spans)
            if not inside and any(start < low < end or start < high < end for low, high in spans):
                raise RowError(f"a token straddles the border of an answer in {text[max(0, start - 20) : end + 20]!r}")
            repeat = image_tokens if token == self.image_id else 1
            ids.extend([token] * repeat)
            counted.extend([inside] * repeat)
        if (image is not None) != (self.image_id in encoding["input_ids"]):
            raise RowError("the text and the image disagree about the image tag")
        return ids, counted
