"""Qwen2-VL and Qwen2.5-VL.

Their tower, `model.visual`, reads the patches of an image of any size and ends in the projector: `merger` makes one
token of each square of patches. The decoder counts positions in three dimensions, of which text has three equal ones.
Pixels are [patches, numbers of one], states [tokens, patches of one, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.models.families.base import Family, ImageSize, TowerSizes
from rlhf.models.keys import QWEN


class Qwen2VL(Family):
    """Qwen2-VL: every patch sees all others."""

    architecture = "Qwen2VLForConditionalGeneration"
    names = QWEN
    tower_path, projector_path = "model.visual", "model.visual.merger"
    keeps_proportions = True
    image_tag, placeholder = "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"

    def __init__(self, config: Any, image_processor: Any) -> None:
        """Raises ConfigError for an image processor that cuts other patches than the tower reads."""
        self.config, self._images = config, image_processor
        self.vision = config.vision_config
        self._merge: int = self.vision.spatial_merge_size
        reads = (self.vision.patch_size, self._merge, self.vision.temporal_patch_size)
        cuts = _cuts(image_processor) if image_processor is not None else reads
        if cuts != reads:
            raise ConfigError(
                [
                    f"model.path: the image processor has patch, merge and temporal patch sizes of {cuts}, the tower "
                    f"{reads}: preprocessor_config.json does not fit config.json"
                ]
            )

    @property
    def tokens_per_image(self) -> int | None:
        """Depends on the image."""
        return None

    @property
    def tower_sizes(self) -> TowerSizes:
        """A square of patches becomes a token."""
        width = self.vision.embed_dim
        return TowerSizes(width, self.vision.depth, int(width * self.vision.mlp_ratio), self._merge**2)

    @property
    def tower_settings(self) -> tuple[Any, ...]:
        """The shapes of the weights do not tell how many heads there are."""
        return (self.vision.num_heads,)

    @property
    def blank(self) -> ImageSize:
        """As small as images can be."""
        return self.vision.patch_size * self._merge, self.vision.patch_size * self._merge

    @property
    def blank_pixels(self) -> tuple[int, ...]:
        """The smallest image is scaled up to the fewest pixels allowed."""
        height, width = self._patches(self.blank)
        numbers = self.vision.in_channels * self.vision.temporal_patch_size * self.vision.patch_size**2
        return height * width, numbers

    @property
    def blank_states(self) -> tuple[int, ...]:
        """Of the same image."""
        return self.image_tokens(self.blank), self._merge**2, self.tower_sizes.width

    def image_tokens(self, size: ImageSize) -> int:
        """One per square of patches. Raises ValueError for a strip of more than 200 times its width."""
        height, width = self._grid(size)
        return height * width

    def pixels(self, processed: Any) -> Tensor:
        """[patches, numbers of one]: those that become one token stand together."""
        return processed["pixel_values"]

    def stack(self, pixels: Sequence[Tensor]) -> Tensor:
        """The patches of all images."""
        return torch.cat(list(pixels))

    def inputs(self, pixels: Tensor, size: ImageSize) -> dict[str, Tensor]:
        """With the grid of patches."""
        return {"pixel_values": pixels, "image_grid_thw": self._grids([size])}

    def take_tower(self, model: Any, tower: Any) -> None:
        """The merger stays, under its name; a tower without it gives what the merger takes."""
        model.visual = _MergerAlone(model.visual.merger)
        tower.merger = _Squares(self._merge**2)

    def shorten(self, tower: Any) -> None:
        """Every layer is used."""

    def states(self, tower: nn.Module, stacked: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        """[tokens, patches of one, width], row by row whatever windows the tower has."""
        return tower(stacked, grid_thw=self._grids(sizes).to(stacked.device)).pooler_output

    def see(self, model: Any, stacked: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        """[tokens, H]: the tower ends in the merger."""
        return model.visual(stacked, grid_thw=self._grids(sizes).to(stacked.device)).pooler_output

    def packer(self, model: Any) -> nn.Module:
        """Nothing to arrange."""
        return _AsTheyAre()

    def positions(self, plain: Tensor | None, places: Tensor, sizes: Sequence[ImageSize | None]) -> Tensor | None:
        """[3, B, T] (M-RoPE, Wang et al. 2024, arXiv 2409.12191, section 2.1).

        An image's tokens begin where the text before it ends and count time, row and column; the text behind it goes on
        after the largest of these. So it makes no difference for text how rows branch behind their image.
        """
        if plain is None:
            plain = torch.arange(places.shape[1], device=places.device).expand(places.shape)
        grids = torch.tensor([(0, 0) if size is None else self._grid(size) for size in sizes], device=places.device)
        height, width = grids[:, :1], grids[:, 1:]  # [B, 1] each, 0 without an image
        start = plain.gather(1, places.int().argmax(dim=1, keepdim=True))  # [B, 1]
        inside = plain - start
        text = plain - torch.where(inside >= height * width, height * width - torch.maximum(height, width), 0)
        row, column = start + inside // width.clamp(min=1), start + inside % width.clamp(min=1)
        image = torch.stack([start.expand(plain.shape), row, column])
        return torch.where(places, image, text)

    def _grid(self, size: ImageSize) -> tuple[int, int]:
        """Rows and columns of an image's tokens."""
        height, width = self._patches(size)
        return height // self._merge, width // self._merge

    def _patches(self, size: ImageSize) -> tuple[int, int]:
        """Rows and columns of its patches, after the image processor's own scaling."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        patch, bounds = self.vision.patch_size, self._images.size
        height, width = smart_resize(
            *size, factor=patch * self._merge, min_pixels=bounds["shortest_edge"], max_pixels=bounds["longest_edge"]
        )
        return height // patch, width // patch

    def _grids(self, sizes: Sequence[ImageSize]) -> Tensor:
        """[images, 3] long: frames, rows and columns of patches."""
        return torch.tensor([(1, *self._patches(size)) for size in sizes])


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL: in most layers a patch sees those of its window, and the tower has the patches in their order."""

    architecture = "Qwen2_5_VLForConditionalGeneration"

    @property
    def tower_sizes(self) -> TowerSizes:
        """A square of patches becomes a token."""
        vision = self.vision
        return TowerSizes(vision.hidden_size, vision.depth, vision.intermediate_size, self._merge**2)

    @property
    def tower_settings(self) -> tuple[Any, ...]:
        """Windows, too."""
        return self.vision.num_heads, self.vision.window_size, tuple(self.vision.fullatt_block_indexes)


def _cuts(image_processor: Any) -> tuple[int, int, int]:
    return image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size


class _AsTheyAre(nn.Module):
    def forward(self, tokens: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        return tokens


class _MergerAlone(nn.Module):
    def __init__(self, merger: nn.Module) -> None:
        super().__init__()
        self.merger = merger


class _Squares(nn.Module):
    """In the place of a merger: it groups what that would merge."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self._patches = patches

    def forward(self, states: Tensor) -> Tensor:
        return states.unflatten(0, (-1, self._patches))
