"""Preference pairs ready to train on: encoded once, so that what does not fit is found before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash
from pydantic import Field

from rlhf.batch import PairBatch, PreferencePair
from rlhf.config import Config, resolve
from rlhf.data.compact import encode_all
from rlhf.data.processor import Processor, TokenRow
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_pairs


class PairDataConfig(Config):
    """Preference pairs in SPA-VL's format."""

    train: str
    """Keyword configuration: a JSON map from keyword to file (seed page 1.1)."""
    validation: str
    """The same for held-out pairs."""
    keywords: tuple[str, ...]
    """Which files of both, in this order."""
    validation_keywords: tuple[str, ...] | None = None
    """Which files of `validation` instead, for example [all], which is what the hub's validation split becomes."""
    image_root: str
    """Folder that the training rows' image paths are relative to."""
    validation_image_root: str | None = None
    """Folder of the validation images; image_root if unset."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of rows is unusable."""


def load_both(data: PairDataConfig, rejected: RejectedRows) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs; errors as in `load_pairs`."""
    root = Path(resolve(data.image_root))
    held_out_root = Path(resolve(data.validation_image_root)) if data.validation_image_root else root
    held_out_keywords = data.keywords if data.validation_keywords is None else data.validation_keywords
    return (
        load_pairs(resolve(data.train), data.keywords, root, rejected),
        load_pairs(resolve(data.validation), held_out_keywords, held_out_root, rejected),
    )


class EncodedPairs:
    """Pairs as token rows, addressed by number; a pair that does not fit the context goes to `rejected`."""

    def __init__(
        self, processor: Processor, pairs: Sequence[PreferencePair], rejected: RejectedRows, train_eos: bool = True
    ) -> None:
        self._processor, self._train_eos = processor, train_eos
        self._kept = encode_all(pairs, self._encode, rejected)

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """The given pairs as two aligned batches."""
        chosen, refused = zip(*(self._kept[row][1] for row in rows), strict=True)
        return PairBatch(self._processor.collate(chosen), self._processor.collate(refused))

    def length(self, row: int) -> int:
        """Tokens of the longer of the two sequences."""
        return max(len(one.ids) for one in self._kept[row][1])

    def pair(self, row: int) -> PreferencePair:
        """What was encoded."""
        return self._kept[row][0]

    def ids(self) -> list[str]:
        """The prompt's id of every pair."""
        return [pair.prompt.id for pair, _ in self._kept]

    def digest(self) -> str:
        """A hash of everything that a model sees of these pairs: tokens (hence template), and the images' bytes."""
        state = xxhash.xxh3_128()
        images: dict[str | None, int] = {}
        for _, rows in self._kept:
            for row in rows:
                for numbers in (row.ids, row.response, [images.setdefault(row.image, len(images))]):
                    state.update(np.asarray(numbers, dtype=np.int32).tobytes())
        for image in images:
            state.update(Path(image).read_bytes() if image is not None else b"")
        return state.hexdigest()

    def _encode(self, pair: PreferencePair) -> tuple[TokenRow, ...]:
        rows = (self._processor.encode(pair.prompt, pair.chosen), self._processor.encode(pair.prompt, pair.rejected))
        return rows if self._train_eos else tuple(self._without_eos(row) for row in rows)

    def _without_eos(self, row: TokenRow) -> TokenRow:
        if row.ids[-1] != self._processor.eos_id:  # a template may end its answers otherwise
            return row
        return replace(row, ids=row.ids[:-1], response=row.response[:-1])
