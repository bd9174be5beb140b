"""LLaVA-1.5, LLaVA-Interleave, LLaVA-NeXT and LLaVA-OneVision.

They have `model.vision_tower` (CLIP or SigLIP) and `model.multi_modal_projector`, and differ in how many placeholders
an image needs and in how its crops become embeddings. Pixels are [crops, 3, H, W], states [crops, tokens, width].
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.models.families.base import Family, ImageSize, TowerSizes
from rlhf.models.keys import LLAVA

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Vision towers, and the tokens that each puts before those of its patches."""


class _LlavaLike(Family):
    """Images as crops, each as large as the tower's input."""

    names = LLAVA
    tower_path, projector_path = "model.vision_tower", "model.multi_modal_projector"
    image_tag = placeholder = "<image>"

    def __init__(self, config: Any, image_processor: Any) -> None:
        """Raises ConfigError for a tower that is not known or does not fit the selection of features."""
        self.config = config
        vision = config.vision_config
        if vision.model_type not in CLASS_TOKENS:
            known = ", ".join(CLASS_TOKENS)
            raise ConfigError([f"model.path: its vision tower is a {vision.model_type}; known towers are {known}"])
        layers, depth = config.vision_feature_layer, vision.num_hidden_layers
        # counted from the embeddings, which are state 0
        self._layers = [one % (depth + 1) for one in ([layers] if isinstance(layers, int) else layers)]
        extra = CLASS_TOKENS[vision.model_type] - (config.vision_feature_select_strategy == "default")
        self.side: int = vision.image_size // vision.patch_size  # patches along a crop's side
        self.crop_tokens = self.side**2 + extra
        if extra < 0 or (self.keeps_proportions and extra):
            raise ConfigError(
                [
                    f"model.path: vision_feature_select_strategy={config.vision_feature_select_strategy} leaves "
                    f"{self.crop_tokens} tokens of {self.side**2} patches of a {vision.model_type}: this model's "
                    "config.json does not fit its tower"
                ]
            )

    @abstractmethod
    def crops(self, size: ImageSize) -> int:
        """Crops of an image."""

    @property
    def tower_sizes(self) -> TowerSizes:
        """One token per patch."""
        vision = self.config.vision_config
        return TowerSizes(vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size, patches=1)

    @property
    def tower_settings(self) -> tuple[Any, ...]:
        """Which layers and tokens are looked at."""
        return self.config.vision_feature_layer, self.config.vision_feature_select_strategy

    @property
    def blank(self) -> ImageSize:
        """One crop."""
        return self.config.vision_config.image_size, self.config.vision_config.image_size

    @property
    def blank_pixels(self) -> tuple[int, ...]:
        """All crops."""
        return (self.crops(self.blank), 3, *self.blank)

    @property
    def blank_states(self) -> tuple[int, ...]:
        """Several layers stand side by side."""
        width = self.config.vision_config.hidden_size * len(self._layers)
        return self.crops(self.blank), self.crop_tokens, width

    def pixels(self, processed: Any) -> Tensor:
        """[3, H, W] or, of a family that crops images, [crops, 3, H, W]."""
        return processed["pixel_values"][0]

    def take_tower(self, model: Any, tower: Any) -> None:
        """The projector is outside."""
        model.vision_tower = None

    def shorten(self, tower: Any) -> None:
        """Layers above those that `states` looks at are of no use (of CLIP the last one)."""
        del tower.encoder.layers[max(self._layers) :]

    def see(self, model: Any, stacked: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        """Tower, then projector."""
        return model.multi_modal_projector(self.states(model.vision_tower, stacked, sizes))

    def states(self, tower: nn.Module, stacked: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        """[crops, tokens, width]."""
        states = tower(stacked, output_hidden_states=True).hidden_states
        chosen = [states[layer] for layer in self._layers]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]  # drop the class token
        return torch.cat(chosen, dim=-1)


class Llava(_LlavaLike):
    """LLaVA-1.5 and LLaVA-Interleave: an image is one square, and each of its tokens one placeholder."""

    architecture = "LlavaForConditionalGeneration"
    keeps_proportions = False

    @property
    def tokens_per_image(self) -> int | None:
        """The same for every image."""
        return self.crop_tokens

    def image_tokens(self, size: ImageSize) -> int:
        """The same for every image."""
        return self.crop_tokens

    def crops(self, size: ImageSize) -> int:
        """One."""
        return 1

    def stack(self, pixels: Sequence[Tensor]) -> Tensor:
        """One crop each."""
        return torch.stack(list(pixels))

    def inputs(self, pixels: Tensor, size: ImageSize) -> dict[str, Tensor]:
        """From [3, H, W]."""
        return {"pixel_values": pixels[None]}

    def packer(self, model: Any) -> nn.Module:
        """Nothing to arrange."""
        return _OneCropEach()


class LlavaNext(_LlavaLike):
    """LLaVA-NeXT: the whole image, then its crops as one grid without padding, a newline embedding after each row."""

    architecture = "LlavaNextForConditionalGeneration"
    keeps_proportions = True

    @property
    def tokens_per_image(self) -> int | None:
        """Depends on the image."""
        return None

    def image_tokens(self, size: ImageSize) -> int:
        """Whole image, grid and newlines."""
        height, width = self._grid(size)
        return self.crop_tokens + height * (width + 1)

    def crops(self, size: ImageSize) -> int:
        """The whole image and the tiles of the grid."""
        rows, columns = self._tiles(size)
        return 1 + rows * columns

    def stack(self, pixels: Sequence[Tensor]) -> Tensor:
        """All crops."""
        return torch.cat(list(pixels))

    def inputs(self, pixels: Tensor, size: ImageSize) -> dict[str, Tensor]:
        """From [crops, 3, H, W]."""
        return {"pixel_values": pixels[None], "image_sizes": torch.tensor([size])}

    def packer(self, model: Any) -> nn.Module:
        """Transformers' own arrangement, with the model's newline embedding."""
        return _Crops(self, model)

    def arguments(self) -> dict[str, Any]:
        """What transformers' arrangement takes beside crops, sizes and newline."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}

    def _tiles(self, size: ImageSize) -> tuple[int, int]:
        from transformers.image_processing_utils import select_best_resolution

        height, width = select_best_resolution(size, self.config.image_grid_pinpoints)
        return height // self.config.vision_config.image_size, width // self.config.vision_config.image_size

    def _grid(self, size: ImageSize) -> tuple[int, int]:
        """Rows and columns of the grid's tokens after the padding around the image is cut off."""
        rows, columns = (self.side * tiles for tiles in self._tiles(size))
        height, width = size
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return rows, columns


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: as LLaVA-NeXT, but a grid of more tokens than so many crops have is scaled down to that."""

    architecture = "LlavaOnevisionForConditionalGeneration"

    def arguments(self) -> dict[str, Any]:
        """The limit on tokens."""
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}

    def _grid(self, size: ImageSize) -> tuple[int, int]:
        rows, columns = super()._grid(size)
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * self.side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


class _OneCropEach(nn.Module):
    def forward(self, crops: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        return crops.flatten(0, 1)


class _Crops(nn.Module):
    """A module, because under ZeRO-3 the newline embedding is whole only inside the forward pass of its owner."""

    def __init__(self, family: LlavaNext, model: Any) -> None:
        super().__init__()
        self.newline = model.image_newline
        self._family, self._pack = family, model.pack_image_features

    def forward(self, crops: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        pieces = torch.split(crops, [self._family.crops(size) for size in sizes])
        packed, _ = self._pack(pieces, sizes, image_newline=self.newline, **self._family.arguments())
        return torch.cat(packed)
