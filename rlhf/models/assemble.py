"""The model that LLaVA's stage 1 begins with: a Llama decoder, a CLIP tower, and a projector that knows nothing yet.

Decoder and tower are copied tensor by tensor into the hub layout, as `native.py` does; only the projector is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.models.conversion import find, read_json
from rlhf.models.native import tower_config, write_hub_layout

FEATURE_LAYER = -2  # of the tower (seed page 2.2)
PROJECTOR_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def assemble(decoder: str, vision_tower: str, target: Path, seed: int = 0) -> None:
    """Write a transformers directory of `decoder` (Vicuna) and `vision_tower` with a random projector.

    Nothing is left at `target` if it fails. Raises ConfigError for a decoder that is no plain Llama, a target that
    exists or a model that cannot be found, CheckpointError for unknown, missing or misshapen tensors.
    """
    folder, tower = find(decoder, "source"), find(vision_tower, "vision_tower")
    content = read_json(folder / "config.json")
    kind = content.get("model_type")
    if kind != "llama" or content.get("tie_word_embeddings") or content.get("rope_scaling"):
        raise ConfigError(
            [f"source: {folder} is a {kind} model; stage 1 needs a Llama with its own LM head and plain positions"]
        )
    vision = tower_config(tower)
    native = content | {"mm_vision_select_layer": FEATURE_LAYER}
    dtype = PROJECTOR_DTYPES[str(content.get("torch_dtype") or content.get("dtype") or "float16")]
    write_hub_layout(folder, native, tower, target, list(_projector(vision, content["hidden_size"], dtype, seed)))


def _projector(vision: Any, width: int, dtype: torch.dtype, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Names in the hub layout and tensors, with torch's own start for linear layers, which is LLaVA's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linears = (nn.Linear(vision.hidden_size, width), nn.Linear(width, width))
    for number, linear in enumerate(linears, start=1):
        for name, tensor in linear.state_dict().items():
            yield f"multi_modal_projector.linear_{number}.{name}", tensor.to(dtype)
