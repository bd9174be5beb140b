"""The reward model from preference pairs, on Ray Train: `python jobs/train_reward_model.py --config ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from jobs.command_line import main
from rlhf.algorithms.reward_model import RewardModelConfig
from rlhf.config import Config, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.supervised import SupervisedConfig


class PairDataConfig(Config):
    """Preference pairs in SPA-VL's format."""

    train: str
    """Keyword configuration: a JSON map from keyword to file (seed page 1.1)."""
    validation: str
    """The same for held-out pairs."""
    keywords: tuple[str, ...]
    """Which files of both, in this order."""
    image_root: str
    """Folder that the training rows' image paths are relative to."""
    validation_image_root: str | None = None
    """Folder of the validation images; image_root if unset."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of rows is unusable."""


class RewardJobConfig(SupervisedConfig):
    """Reward-model training."""

    data: PairDataConfig
    objective: RewardModelConfig = RewardModelConfig()


def build(config: RewardJobConfig, rejected: RejectedRows) -> Any:
    """The task of one worker."""
    from rlhf.data.processor import Processor
    from rlhf.data.spa_vl import load_pairs
    from rlhf.tasks import PreferenceTask

    data = config.data
    root = Path(resolve(data.image_root))
    held_out_root = Path(resolve(data.validation_image_root)) if data.validation_image_root else root
    pairs = load_pairs(resolve(data.train), data.keywords, root, rejected)
    held_out = load_pairs(resolve(data.validation), data.keywords, held_out_root, rejected)
    task = PreferenceTask(Processor.load(config.model), pairs, held_out, config.objective, rejected)
    rejected.check(len(pairs) + len(held_out) + rejected.count, data.max_rejected_share)
    return task


def run(config: RewardJobConfig) -> dict[str, float]:
    """Train, or say that it is done."""
    from jobs.stage import run_stage

    return run_stage(config, build)


if __name__ == "__main__":
    main(RewardJobConfig, run, __doc__ or "")
