"""Weights as buckets of bytes: packed by the policy, unpacked by an engine, fingerprinted on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlhf.errors import WeightSyncError


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Named tensors laid end to end in one buffer. `digest` is xxh3-128 of names, shapes, types and bytes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]  # torch names, e.g. "bfloat16"
    data: np.ndarray  # [bytes] uint8
    digest: str


def pack(named: Iterable[tuple[str, Tensor]]) -> WeightBucket:
    """Copy tensors (any device) into one host buffer."""
    items = [(name, tensor.detach().cpu().contiguous()) for name, tensor in named]
    sizes = [tensor.numel() * tensor.element_size() for _, tensor in items]
    data = np.empty(sum(sizes), dtype=np.uint8)
    start = 0
    for (_, tensor), size in zip(items, sizes, strict=True):
        data[start : start + size] = tensor.reshape(-1).view(torch.uint8).numpy()
        start += size
    names = tuple(name for name, _ in items)
    shapes = tuple(tuple(tensor.shape) for _, tensor in items)
    dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in items)
    return WeightBucket(names, shapes, dtypes, data, _digest(names, shapes, dtypes, data))


def unpack(bucket: WeightBucket) -> Iterator[tuple[str, Tensor]]:
    """Views into the bucket's buffer; raises WeightSyncError if the bytes are not those that were packed."""
    if _digest(bucket.names, bucket.shapes, bucket.dtypes, bucket.data) != bucket.digest:
        raise WeightSyncError(f"a weight bucket of {len(bucket.names)} tensors changed on its way")
    writable = bucket.data if bucket.data.flags.writeable else bucket.data.copy()
    start = 0
    for name, shape, dtype_name in zip(bucket.names, bucket.shapes, bucket.dtypes, strict=True):
        dtype: torch.dtype = getattr(torch, dtype_name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        yield name, torch.from_numpy(writable[start : start + size]).view(dtype).reshape(shape)
        start += size


def fingerprint(digests: Iterable[str]) -> str:
    """One fingerprint of an ordered series of bucket digests."""
    return xxhash.xxh3_128_hexdigest("".join(digests).encode())


def _digest(names: tuple[str, ...], shapes: object, dtypes: tuple[str, ...], data: np.ndarray) -> str:
    state = xxhash.xxh3_128(repr((names, shapes, dtypes)).encode())
    state.update(data.data)
    return state.hexdigest()
