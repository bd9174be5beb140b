"""Features of a vision tower that never learns: computed once per image, shared by roles, stages and runs."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf.data.processor import Processor


class TensorCache:
    """Tensors by key, kept on the CPU, least recently used dropped beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._items: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str, make: Callable[[str], Tensor]) -> Tensor:
        """The tensor of `key`, made if it is not there."""
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        value = make(key).cpu()
        self._items[key] = value
        self._size += value.nbytes
        while self._size > self._limit and self._items:
            self._size -= self._items.popitem(last=False)[1].nbytes
        return value


class FeatureStore:
    """Tensors in files below a folder, one per image, found by what they were computed from.

    Many processes may read and write at once: a file appears whole or not at all, and all writers of one name write
    the same features. A file that cannot be read counts as absent.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        self._folder = folder / origin

    def get(self, path: str, make: Callable[[str], Tensor]) -> Tensor:
        """The features of the image file at `path`, made and written if they are not there."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        try:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            return make(path)  # which names the file and the reason
        target = self._folder / digest[:2] / f"{digest}.safetensors"
        try:
            return load_file(target)["features"]
        except (OSError, SafetensorError, KeyError):
            features = make(path).cpu()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.part")
        partial.write_bytes(save({"features": features.contiguous()}))
        partial.replace(target)
        return features


class FrozenTower:
    """A vision tower that never learns, with a memory of what it saw.

    Images are encoded one at a time, all crops of one together: a batched kernel rounds differently for different
    batch sizes, and then a resumed run would not equal an undisturbed one.
    """

    def __init__(self, tower: nn.Module, processor: Processor) -> None:
        self._tower = tower.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
        self._weights = self._tower.state_dict()  # whole, for export
        self._family, self._processor = processor.family, processor
        self._family.shorten(self._tower)
        self._cache = TensorCache(processor.config.feature_cache_mb * 2**20)
        folder = processor.feature_store
        self._store = FeatureStore(folder, self._origin()) if folder is not None else None
        self.forwards = 0

    def features(self, paths: Sequence[str]) -> Tensor:
        """Hidden states of all images on the tower's device, as the projector expects them (`Family.states`)."""
        device = next(self._tower.parameters()).device
        return torch.cat([self._cache.get(path, self._find).to(device) for path in paths])

    def state_dict(self) -> dict[str, Tensor]:
        """Weights under their full names in the model."""
        return {f"{self._family.tower_path}.{name}": tensor for name, tensor in self._weights.items()}

    def _find(self, path: str) -> Tensor:
        return self._store.get(path, self._one) if self._store is not None else self._one(path)

    @torch.no_grad()
    def _one(self, path: str) -> Tensor:
        parameter = next(self._tower.parameters())
        stacked = self._family.stack([self._processor.pixels(path)]).to(parameter.device, parameter.dtype)
        self.forwards += 1
        return self._family.states(self._tower, stacked, [self._processor.image_size(path)])

    def _origin(self) -> str:
        """Digest of everything but the image that decides the features: weights, layers, preprocessing, device."""
        parameter = next(self._tower.parameters())
        settings = (
            self._family.architecture,
            *self._family.tower_settings,
            self._processor.image_settings(),
            parameter.device.type,
        )
        return _digest(repr(settings), self._tower.state_dict().items())


def _digest(settings: str, weights: Iterable[tuple[str, Tensor]]) -> str:
    state = hashlib.sha256(settings.encode())
    for name, tensor in weights:
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()[:32]
