"""Measuring what tensors take, without a GPU: the peak of all storages alive, and what autograd keeps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf.batch import TokenBatch
from rlhf.config import LoraConfig, ModelConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.memory import Kind, Load
from rlhf.models.heads import PolicyModel, ScalarModel
from rlhf.models.llava import load
from rlhf.models.tiny import TinyConfig, build
from tests.fakes import CORPUS, draw_images, make_prompts

ANSWER = "The ball is red and so is the other one. " * 4


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages under some tensors."""
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())


class PeakOfNew(TorchDispatchMode):
    """Bytes of the storages that operations make inside: alive now, and at the worst moment."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or storage.data_ptr() in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def kept_for_backward(module: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps after a forward pass, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    total = storage_bytes(kept.values())
    del loss
    return total


class Subject:
    """A random model with one padded batch, ready to be measured."""

    def __init__(
        self,
        folder: Path,
        sizes: TinyConfig,
        kind: Kind = "policy",
        dtype: str = "float32",
        rows: int = 2,
        attention: str = "sdpa",
        checkpointing: bool = False,
        lora: LoraConfig | None = None,
        trains: bool = True,
    ) -> None:
        if not (folder / "config.json").exists():
            build(sizes, CORPUS * 4, folder)
        self.config = ModelConfig.model_validate(
            {
                "path": str(folder),
                "dtype": dtype,
                "max_length": sizes.context,
                "template": "llava_hf",
                "attention": attention,
                "feature_cache_mb": 64,
                "pad_to_square": sizes.kind in ("llava", "llava_interleave"),
            }
        )
        self.trainable = TrainableConfig(gradient_checkpointing=checkpointing, lora=lora) if trains else None
        processor = Processor.load(self.config)
        images = draw_images(folder / "images")
        answers = [ANSWER + "No. " * row for row in range(rows)]
        encoded = [processor.encode(p, a) for p, a in zip(make_prompts(images, rows), answers, strict=True)]
        self.batch: TokenBatch = processor.collate(encoded)
        backbone = load(self.config, self.trainable, processor)
        self.module: nn.Module = PolicyModel(backbone) if kind == "policy" else ScalarModel(backbone)
        self.module.train(trains)
        with torch.no_grad():
            self.loss()  # encodes the images, which is not part of a step
        answered = int(self.batch.response_mask.sum()) if kind == "policy" else 0
        self.load = Load(rows, self.batch.input_ids.shape[1], -(-answered // rows), attention, rows)

    def loss(self) -> Tensor:
        """Something that depends on every output."""
        result = self.module(self.batch)
        return result.sum() if isinstance(result, Tensor) else result[0].sum() + result[1].sum()

    def peak(self) -> int:
        """Bytes at the worst moment of forward and backward, beside weights and gradients."""
        parameters = list(self.module.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        known = [*parameters, *(parameter.grad for parameter in parameters if parameter.grad is not None)]
        with PeakOfNew(known) as meter:
            if self.trainable is None:
                with torch.no_grad():
                    self.loss()
            else:
                self.loss().backward()
        return meter.peak

    def kept(self) -> int:
        """Bytes that a forward pass keeps."""
        return kept_for_backward(self.module, self.loss)
