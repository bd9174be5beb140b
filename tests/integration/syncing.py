"""A policy that has moved, and its way into an engine."""

from __future__ import annotations

import torch

from rlhf.config import ModelConfig, TrainableConfig
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from rlhf.models.lora import wire_name
from rlhf.rollout.base import RolloutEngine
from rlhf.rollout.weights import WeightBucket, fingerprint, pack


def moved_policy(model: ModelConfig, trainable: TrainableConfig, seed: int) -> PolicyModel:
    """A policy of which everything that learns is far from its start."""
    policy = PolicyModel(load(model, trainable)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def sent(model: PolicyModel) -> list[WeightBucket]:
    """What travels: everything that learns, five tensors to a bucket."""
    names = model.backbone.family.names
    named = [(wire_name(name, names), p) for name, p in model.backbone.vlm.named_parameters() if p.requires_grad]
    return [pack(named[low : low + 5]) for low in range(0, len(named), 5)]


def sync(engine: RolloutEngine, buckets: list[WeightBucket], version: int) -> None:
    """Give the engine these weights, and compare what both sides say that they are."""
    engine.begin_update(version)
    for bucket in buckets:
        engine.load_bucket(bucket)
    assert engine.finish_update() == fingerprint(bucket.digest for bucket in buckets)
    assert engine.version == version
