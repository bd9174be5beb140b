"""The reward model from preference pairs, on Ray Train: `python jobs/train_reward_model.py --config ...`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from jobs.command_line import main
from rlhf.algorithms.reward_model import RewardModelConfig
from rlhf.data.pairs import PairDataConfig, load_both
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError
from rlhf.supervised import SupervisedConfig


class RewardJobConfig(SupervisedConfig):
    """Reward-model training."""

    data: PairDataConfig
    objective: RewardModelConfig = RewardModelConfig()
    validate_every: int = Field(default=0, ge=0)
    """Steps between looks at held-out pairs; 0 looks only after the last step."""
    validation_rows: int | None = Field(default=None, ge=1)
    """Held-out pairs of such a look, at even distances; unset: all. After the last step it is always all."""


def build(config: RewardJobConfig, rejected: RejectedRows) -> Any:
    """The task of one worker."""
    from rlhf.data.processor import Processor
    from rlhf.tasks import PreferenceTask

    pairs, held_out = load_both(config.data, rejected)
    task = PreferenceTask(
        Processor.load(config.model),
        pairs,
        held_out,
        config.objective,
        rejected,
        config.batch.micro_rows,
        config.validate_every,
        config.validation_rows,
    )
    rejected.check(len(task) + len(task.held_out) + rejected.count, config.data.max_rejected_share)
    for rows, source in ((task, config.data.train), (task.held_out, config.data.validation)):
        if not len(rows):
            raise DataError("no usable preference pair", source=source)
    return task


def run(config: RewardJobConfig) -> dict[str, float]:
    """Train, or say that it is done."""
    from jobs.stage import run_stage

    return run_stage(config, build)


if __name__ == "__main__":
    main(RewardJobConfig, run, __doc__ or "")
