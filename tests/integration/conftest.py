"""Trainings that several files look at: a process group costs more to start than to use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel
from rlhf.models.keys import Names
from rlhf.models.llava import load
from rlhf.models.tiny import TinyKind
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.integration.ranks import run_ranks

KINDS: tuple[TinyKind, ...] = ("llava", "llava_interleave", "llava_onevision", "qwen2_5_vl")
WHOLE = {"stage": 0, "micro_rows": 8, "lora": False}
SHARDED = {"stage": 3, "micro_rows": 2, "lora": False}
ON_ONE = {
    "llava one": WHOLE | {"model": "llava"},
    "llava small": SHARDED | {"model": "llava", "micro_rows": 1},
    "lora one": WHOLE | {"model": "llava", "lora": True},
    "llava_interleave one": WHOLE | {"model": "llava_interleave"},
    "llava_onevision one": WHOLE | {"model": "llava_onevision"},
    "qwen2_5_vl one": WHOLE | {"model": "qwen2_5_vl"},
}
ON_TWO = {
    "llava two": SHARDED | {"model": "llava"},
    "lora two": SHARDED | {"model": "llava", "lora": True},
    "llava_interleave two": SHARDED | {"model": "llava_interleave"},
    "llava_onevision two": SHARDED | {"model": "llava_onevision"},
    "llava_onevision lora two": SHARDED | {"model": "llava_onevision", "lora": True},
    "qwen2_5_vl two": SHARDED | {"model": "qwen2_5_vl"},
    "qwen2_5_vl lora two": SHARDED | {"model": "qwen2_5_vl", "lora": True},
}


@dataclass(frozen=True)
class Trained:
    """One training: its folder, what it began from, and what each rank reported."""

    folder: Path
    model: ModelConfig
    images: list[str]
    results: list[dict[str, Any]]

    @torch.no_grad()
    def answers(self, path: Path | None = None, adapter: Path | None = None) -> torch.Tensor:
        """[8] summed log-probabilities of the answers that the workers train on (step 0), without DeepSpeed."""
        update = {"path": str(path or self.model.path), "adapter": str(adapter) if adapter else None}
        model = self.model.model_copy(update=update)
        processor = Processor.load(model)
        prompts = make_prompts(self.images, 4) + make_prompts([], 4)
        rows = [processor.encode(prompt, "yes " * (1 + (3 * i) % 5)) for i, prompt in enumerate(prompts)]
        return PolicyModel(load(model, None, processor)).eval()(processor.collate(rows))[0].sum(dim=1)

    @property
    def names(self) -> Names:
        """How the names of its parameters change between memory and disk."""
        return Processor.load(self.model).family.names

    @property
    def trained(self) -> torch.Tensor:
        """[8 per rank] the same numbers of the trained model, as its ranks reported them."""
        return torch.tensor([value for result in self.results for value in result["trained"]])


@pytest.fixture(scope="session")
def learners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Trainings that differ in ranks, ZeRO stage, micro-batches, adapters and architecture only."""
    folder = tmp_path_factory.mktemp("learners")
    models = {kind: tiny_model(folder / kind, kind=kind) for kind in KINDS}
    images = draw_images(folder / "images")
    for ranks, variants in ((1, ON_ONE), (2, ON_TWO)):
        settings = {"out": str(folder / "runs"), "models": str(folder), "images": images, "variants": variants}
        run_ranks("tests.integration.learner_worker", settings, ranks)
    trained = {}
    for ranks, variants in ((1, ON_ONE), (2, ON_TWO)):
        for name, variant in variants.items():
            out = folder / "runs" / name
            results = [json.loads((out / f"result_{rank}.json").read_text()) for rank in range(ranks)]
            trained[name] = Trained(out, models[variant["model"]], images, results)
    return trained
