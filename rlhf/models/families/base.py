"""What an architecture has to say about itself: its parts and their names, its images, its positions.

All of them have a tower, a projector, `model.language_model` with any decoder that transformers knows, and `lm_head`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from rlhf.models.keys import Names

ImageSize = tuple[int, int]
"""Height and width in pixels, as the image processor gets the image."""


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """What a tower's memory depends on; widths in elements."""

    width: int
    layers: int
    intermediate: int
    patches: int  # that become one token


class Family(ABC):
    """One architecture, bound to the configuration of a model."""

    architecture: ClassVar[str]
    names: ClassVar[Names]
    tower_path: ClassVar[str]
    projector_path: ClassVar[str]
    keeps_proportions: ClassVar[bool]
    """Whether an image is seen in its own proportions."""
    image_tag: ClassVar[str]
    """The text that stands for an image in a prompt."""
    placeholder: ClassVar[str]
    """The token in it that is repeated, once per visual token."""

    @abstractmethod
    def __init__(self, config: Any, image_processor: Any) -> None:
        """Raises ConfigError where parts of the model do not fit together."""

    @property
    @abstractmethod
    def tokens_per_image(self) -> int | None:
        """Placeholders of every image; None where they depend on its size."""

    @property
    @abstractmethod
    def tower_sizes(self) -> TowerSizes:
        """For the arithmetic of `rlhf/memory.py`."""

    @property
    @abstractmethod
    def tower_settings(self) -> tuple[Any, ...]:
        """What decides a frozen tower's features beside weights and pixels."""

    @property
    @abstractmethod
    def blank(self) -> ImageSize:
        """Size of an image that stands in where a batch has none."""

    @property
    @abstractmethod
    def blank_pixels(self) -> tuple[int, ...]:
        """Shape of its pixels in a stack."""

    @property
    @abstractmethod
    def blank_states(self) -> tuple[int, ...]:
        """Shape of its hidden states."""

    @abstractmethod
    def image_tokens(self, size: ImageSize) -> int:
        """Placeholders of an image. Raises ValueError for one that the architecture cannot show."""

    @abstractmethod
    def pixels(self, processed: Any) -> Tensor:
        """What the image processor made of one image; float32, normalised."""

    @abstractmethod
    def stack(self, pixels: Sequence[Tensor]) -> Tensor:
        """The pixels of several images in the form that the tower takes."""

    @abstractmethod
    def inputs(self, pixels: Tensor, size: ImageSize) -> dict[str, Tensor]:
        """What transformers' forward takes for one image; `pixels` as `pixels` gives them."""

    @abstractmethod
    def take_tower(self, model: Any, tower: Any) -> None:
        """Leave of `model`'s tower only the projector, if that is inside, and of `tower` (or a copy) all but that."""

    @abstractmethod
    def shorten(self, tower: Any) -> None:
        """Take away what `states` does not use of a tower that was taken out."""

    @abstractmethod
    def states(self, tower: nn.Module, stacked: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        """Hidden states of the images by a tower that was taken out, as the projector expects them; dim 0 adds up."""

    @abstractmethod
    def see(self, model: Any, stacked: Tensor, sizes: Sequence[ImageSize]) -> Tensor:
        """Projected states of the images by a tower that is in the model, and learns."""

    @abstractmethod
    def packer(self, model: Any) -> nn.Module:
        """From projected states and sizes to [placeholders of all images, H].

        One tensor, not one per image: under ZeRO-3 the backward pass runs a hook per result of a module, and ranks
        with different numbers of images would lose step.
        """

    def positions(self, plain: Tensor | None, places: Tensor, sizes: Sequence[ImageSize | None]) -> Tensor | None:
        """Position ids for the decoder, None for its own.

        `plain` [B, T] counts the tokens of rows that are no plain sequences; `places` [B, T] bool are the placeholders
        of each row's image, of one of `sizes` [B].
        """
        return plain
