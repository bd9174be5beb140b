"""Memory of a reference: a second model, or the policy with its adapters off."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf.config import LoraConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from tests.bench.measure import Row
from tests.bench.world import SIZES, make_world, same
from tests.memory_meter import storage_bytes


def run(folder: Path, rows: int) -> list[Row]:
    """Bytes that the reference adds to the policy's; both give the same log-probabilities."""
    results = []
    for name in SIZES:
        world = make_world(name, folder / f"lora_{name}", rows)
        config = world.config("features")
        processor = Processor.load(config)
        lora = TrainableConfig(lora=LoraConfig(rank=16, alpha=32))
        policy = PolicyModel(load(config, lora, processor)).eval()
        before = _held(policy)
        with torch.no_grad():
            for parameter in policy.parameters():  # what training would do
                if parameter.requires_grad:
                    parameter.add_(0.01)
        tokens = processor.collate([processor.encode(pair.prompt, pair.chosen) for pair in world.pairs])
        with torch.no_grad(), policy.backbone.as_loaded():
            shared = policy(tokens)[0]
        added = _held(policy) - before
        reference = PolicyModel(load(config, None, processor)).eval()
        with torch.no_grad():
            own = reference(tokens)[0]
        same(shared.flatten().tolist(), own.flatten().tolist())
        first = storage_bytes(one for module in policy.backbone._first_projector for one in module.parameters())
        sizes = (added + first) / 2**20, _held(reference) / 2**20
        results.append(Row("LoRA, reference's weights", name, "MiB", *sizes, sizes[0] / sizes[1], "<= 0.15"))
    return results


def _held(model: PolicyModel) -> int:
    tower = model.backbone.tower
    return storage_bytes([*model.parameters(), *(tower.state_dict().values() if tower is not None else ())])
