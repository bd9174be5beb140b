"""What both sides of a comparison get: a model directory, rows with pictures, a learner of ours."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.batch import PreferencePair, Prompt
from rlhf.config import DeepSpeedConfig, ModelConfig, OptimizerConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.data.template import render
from rlhf.learner import Learner, join_process_group
from rlhf.models.build import build_learner
from rlhf.models.llava import VisionLanguage
from rlhf.models.tiny import TinyConfig, build
from tests.fakes import draw_images

LR, CLIP, BATCH = 1e-4, 1.0, 8
SIZES = {
    "tiny": TinyConfig(),
    "mini": TinyConfig(
        vocabulary=8192, hidden=512, layers=6, vision_layers=6, heads=8, image_size=96, patch_size=8, context=512
    ),
}


@dataclass(frozen=True)
class World:
    """One model size with its rows."""

    name: str
    folder: Path
    pairs: list[PreferencePair]

    def config(self, store: str) -> ModelConfig:
        """The model, with features of its tower kept in a folder of that name: an empty one sees every image."""
        return ModelConfig(
            path=str(self.folder / "model"),
            dtype="float32",
            max_length=512,
            template="llava_hf",
            pad_to_square=False,  # as the other side sees them
            feature_store=str(self.folder / store),
        )

    def text(self, processor: Processor, prompt: Prompt, answer: str) -> tuple[str, str]:
        """Prompt and answer as the strings whose concatenation our processor encodes."""
        turns = [(prompt.question, answer)]
        eos, tag = processor.tokenizer.eos_token, "" if prompt.image is None else processor.family.image_tag
        rendered = render(processor.template, turns, image_tag=tag, eos=eos, reserved=())
        ((start, _),) = rendered.answer_spans
        return processor.tokenizer.bos_token + rendered.text[:start], rendered.text[start:]


def make_world(name: str, folder: Path, rows: int) -> World:
    """A random model and `rows` pairs, each about a picture of its own. Answers of 10 to 40 words."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(12_000)]

    def say(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    corpus = [" ".join(words[low : low + 50]) for low in range(0, len(words), 50)]
    build(SIZES[name], corpus, folder / "model")
    images = draw_images(folder / "images", rows)
    pairs = [
        PreferencePair(Prompt(id=f"{name}:{row}", question=say(8, 20), image=images[row]), say(10, 40), say(10, 40))
        for row in range(rows)
    ]
    return World(name, folder, [_cut(pair, SIZES[name].vocabulary < 1000) for pair in pairs])


def _cut(pair: PreferencePair, shorten: bool) -> PreferencePair:
    # a small vocabulary spells a word in many tokens
    if not shorten:
        return pair
    return PreferencePair(pair.prompt, *(" ".join(text.split()[:12]) for text in (pair.chosen, pair.rejected)))


def make_learner(kind: Callable[[VisionLanguage], nn.Module], config: ModelConfig, processor: Processor) -> Learner:
    """Ours: everything but the tower learns, AdamW, constant rate, one process."""
    optimizer = OptimizerConfig(lr=LR, schedule="constant", max_grad_norm=CLIP)
    plain = DeepSpeedConfig(zero_stage=0)
    with _launched():
        join_process_group("gloo")
        return build_learner(kind, config, TrainableConfig(), optimizer, plain, 1000, processor)


@contextmanager
def _launched() -> Iterator[None]:
    """The environment of a group of one, gone afterwards: the other side would take it for a distributed launch."""
    before = dict(os.environ)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29571")
    try:
        yield
    finally:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE"):
            os.environ.pop(name, None)
        os.environ.update(before)


def trl_settings(folder: Path) -> dict[str, Any]:
    """The other side's arguments: the same precision, optimizer, order and batches, and none of its extra work."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def trl_model(world: World) -> Any:
    """The same model for the other side, its tower frozen as ours is."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        world.folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    )
    model.model.vision_tower.requires_grad_(False)
    return model


def trl_train(trainer: Any) -> tuple[float, list[float]]:
    """Seconds of its whole run, and the loss of every step."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    began = time.monotonic()
    trainer.train()
    return time.monotonic() - began, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Raise unless all losses agree to 1e-4."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    if not gaps or max(gaps) > 1e-4:
        raise AssertionError(f"losses differ: ours {list(ours)}, theirs {list(theirs)}")
