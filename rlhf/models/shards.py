"""Checkpoints tensor by tensor: reading shards of either format and writing new ones, with one shard in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash
from torch import Tensor

from rlhf.errors import CheckpointError

INDEX = "model.safetensors.index.json"
INDICES = (INDEX, "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_DECISIVE = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # weights, settings, tokenizer, template


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a transformers directory, safetensors preferred. Raises CheckpointError if one is missing."""
    for index, single in zip(INDICES, _SINGLE, strict=True):
        if (folder / index).exists():
            try:
                names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{folder / index} is no index of weight files: {error!r}") from error
            if missing := [name for name in names if not (folder / name).exists()]:
                raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {index} names")
            return [folder / name for name in names]
        if (folder / single).exists():
            return [folder / single]
    raise CheckpointError(f"{folder} holds neither safetensors nor pytorch_model.bin weights")


def directory_digest(folder: Path) -> str:
    """A hash of the files of a model or adapter directory that decide what it computes, in either format of weights."""
    state = xxhash.xxh3_128()
    for file in sorted(file for file in folder.iterdir() if file.suffix in _DECISIVE):
        state.update(file.name.encode())
        with file.open("rb") as content:
            while chunk := content.read(2**22):
                state.update(chunk)
    return state.hexdigest()


def read_tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
    """Every tensor whose name is wanted, shard after shard. `.bin` files are read as data only, never as code."""
    for path in shard_files(folder):
        try:
            if path.suffix == ".safetensors":
                yield from _safetensors(path, wanted)
            else:
                yield from ((name, tensor) for name, tensor in _pickled(path) if wanted(name))
        except CheckpointError:
            raise
        except Exception as error:  # both libraries raise many kinds for a damaged file
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def _safetensors(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in filter(wanted, file.keys()):
            yield name, file.get_tensor(name)


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name in list(content):
        tensor = content.pop(name)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name} is {type(tensor).__name__}, not a tensor")
        yield name, tensor


class ShardWriter:
    """Writes tensors into safetensors shards of about `limit` bytes; the index comes last. Use as a context."""

    def __init__(self, folder: Path, limit: int = 5 * 10**9) -> None:
        self._folder, self._limit = folder, limit
        self._held: dict[str, Tensor] = {}
        self._size = self._total = 0
        self._shards: list[list[str]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it may be written at once or later."""
        if self._held and self._size + tensor.nbytes > self._limit:
            self._flush()
        self._held[name] = tensor.contiguous()
        self._size += tensor.nbytes

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self._held, self._folder / f"part-{len(self._shards)}", metadata={"format": "pt"})
        self._shards.append(list(self._held))
        self._total += self._size
        self._held, self._size = {}, 0

    def _close(self) -> None:
        if self._held:
            self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            os.replace(self._folder / f"part-{number}", self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
