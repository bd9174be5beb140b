"""What a model is made of, without its weights: shapes of all parameters and the sizes that activations depend on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import resolve
from rlhf.errors import ConfigError
from rlhf.models.families import FAMILIES, family_of
from rlhf.models.keys import Names, Part, part_of
from rlhf.models.known import known_config, known_names


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model by its name in memory."""

    name: str
    part: Part
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a vision-language model. Widths are in elements, nothing in bytes."""

    name: str
    parameters: tuple[Parameter, ...]
    hidden: int
    layers: int
    heads: int
    query_width: int  # heads x head size
    key_width: int  # key-value heads x head size
    intermediate: int
    vocabulary: int
    image_tokens: int | None  # visual tokens of an image; None where they depend on the image
    tower_width: int
    tower_layers: int
    tower_intermediate: int
    tower_patches: int  # that become one visual token
    names: Names  # of parameters, in memory and on disk

    def count(self, *parts: Part) -> int:
        """Elements of these parts, of the whole model if none is named."""
        return sum(parameter.elements for parameter in self.parameters if not parts or parameter.part in parts)

    def of(self, parts: Iterable[Part]) -> list[Parameter]:
        """The parameters of these parts."""
        wanted = set(parts)
        return [parameter for parameter in self.parameters if parameter.part in wanted]


def read_architecture(path: str) -> Architecture:
    """Architecture of a model directory, of a cached hub model, or of one that `known` describes; never downloads.

    Raises ConfigError if the model is none of these, or of a kind whose sizes are not understood.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    config = _read_config(path)
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        return _describe(path, config, [(name, tuple(tensor.shape)) for name, tensor in model.named_parameters()])
    except (ValueError, AttributeError) as error:
        kind = getattr(config, "model_type", "unknown")
        raise ConfigError([f"model.path: {path} is a {kind} model, whose size is not understood: {error}"]) from error


def _read_config(path: str) -> Any:
    from transformers import AutoConfig

    local = resolve(path)
    if Path(local).is_absolute():
        if not (Path(local) / "config.json").exists():
            raise ConfigError([f"model.path: {local} holds no model; run the stage that writes it first"])
        return AutoConfig.from_pretrained(local)
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError):
        content = known_config(path)
    if content is None:
        raise ConfigError(
            [
                f"model.path: {path} is neither in the hub's cache on this machine nor one of "
                f"{', '.join(known_names())}: download it first, or name a local directory"
            ]
        )
    return AutoConfig.for_model(content.pop("model_type"), **content)


def _describe(name: str, config: Any, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> Architecture:
    if config.model_type not in FAMILIES:
        raise ValueError(f"known kinds are {', '.join(FAMILIES)}")
    text, family = config.text_config, family_of(config)
    tower = family.tower_sizes
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Architecture(
        name=name,
        parameters=tuple(Parameter(key, part_of(key), shape) for key, shape in shapes),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        query_width=text.num_attention_heads * head,
        key_width=text.num_key_value_heads * head,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        image_tokens=family.tokens_per_image,
        tower_width=tower.width,
        tower_layers=tower.layers,
        tower_intermediate=tower.intermediate,
        tower_patches=tower.patches,
        names=family.names,
    )
