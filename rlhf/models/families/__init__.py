"""How vision-language architectures differ, side by side; chosen by `model_type`, never by the name of a folder."""

from __future__ import annotations

from typing import Any

from rlhf.models.families.base import Family, ImageSize
from rlhf.models.families.llava import Llava, LlavaNext, LlavaOnevision
from rlhf.models.families.qwen import Qwen2VL, Qwen25VL

__all__ = ["FAMILIES", "Family", "ImageSize", "family_of"]

FAMILIES: dict[str, type[Family]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
}
"""By `model_type` of a config.json."""


def family_of(config: Any, image_processor: Any = None) -> Family:
    """The family of a model by its transformers configuration, which must be of a known `model_type`.

    Without the image processor it cannot tell how many tokens an image needs, if that depends on the image. Raises
    ConfigError for a configuration whose parts do not fit together.
    """
    return FAMILIES[config.model_type](config, image_processor)
