"""The reference's log-probabilities of every pair, computed once and stored beside the pairs' ids.

The reference never changes, so two numbers per pair replace it: a run with complete columns starts no reference at all.
Columns live in a folder named by a hash of all that they depend on, in parts of fixed rows; a part that is there is
whole, so an interrupted computation goes on with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config import ModelConfig, resolve
from rlhf.data.pairs import EncodedPairs
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.shards import directory_digest

ROWS_PER_PART = 1024
ABOUT_FILE = "about.json"


class ReferenceColumns:
    """`chosen` and `rejected` summed log-probabilities (nats, float32) of `pairs`, stored below `folder`."""

    def __init__(self, folder: Path, model: ModelConfig, pairs: EncodedPairs) -> None:
        about: dict[str, Any] = {"model": _digest(model.path), "pairs": pairs.digest(), "count": len(pairs)}
        about |= {"adapter": _digest(model.adapter) if model.adapter else None, "quantise": model.quantise}
        about |= {"dtype": model.dtype, "attention": model.attention, "pad_to_square": model.pad_to_square}
        key = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=12).hexdigest()
        self.folder, self._pairs, self._about = folder / key, pairs, about

    def missing(self) -> list[range]:
        """The rows of every part that is not there yet."""
        starts = range(0, len(self._pairs), ROWS_PER_PART)
        parts = [range(start, min(start + ROWS_PER_PART, len(self._pairs))) for start in starts]
        return [part for part in parts if not self._file(part).exists()]

    def write(self, part: range, logprobs: Tensor) -> None:
        """Store the rows of one part, [len(part), 2]; either whole or not at all."""
        import pyarrow
        import pyarrow.parquet

        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / ABOUT_FILE, json.dumps(self._about, indent=2).encode())
        table = pyarrow.table({
            "id": self._pairs.ids()[part.start : part.stop],
            "chosen": pyarrow.array(logprobs[:, 0].float().numpy()),
            "rejected": pyarrow.array(logprobs[:, 1].float().numpy()),
        })  # fmt: skip
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer)
        _replace(self._file(part), buffer.getvalue().to_pybytes())

    def read(self) -> Tensor:
        """[pairs, 2]. Raises CheckpointError naming the file that is missing, damaged or of other pairs."""
        import pyarrow
        import pyarrow.parquet

        pieces, names = [], self._pairs.ids()
        for start in range(0, len(self._pairs), ROWS_PER_PART):
            file = self._file(range(start, start))
            try:
                table = pyarrow.parquet.read_table(file)
            except (OSError, pyarrow.ArrowInvalid) as error:
                raise CheckpointError(f"{file}: {error}; remove it, and the run computes it again") from None
            if table["id"].to_pylist() != names[start : start + ROWS_PER_PART]:
                raise CheckpointError(f"{file} holds other pairs; remove it, and the run computes it again")
            columns = [torch.tensor(table[name].to_pylist(), dtype=torch.float32) for name in ("chosen", "rejected")]
            pieces.append(torch.stack(columns, dim=1))
        return torch.cat(pieces)

    def _file(self, part: range) -> Path:
        return self.folder / f"part-{part.start:08d}.parquet"


def _digest(path: str) -> str:
    """Of a model or adapter directory, or a hub id's commit. Raises ConfigError if neither can be found out."""
    folder = Path(resolve(path))
    return directory_digest(folder) if folder.is_dir() else _commit(path)


def _commit(name: str) -> str:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(name)
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        raise ConfigError([f"model.path: the version of {name} is unknown; set reference.source=prefetch"])
    return f"{name}@{commit}"


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)  # a crash must not leave half a part under the final name
