"""PPO on SPA-VL: `ray job submit --working-dir . -- python jobs/ppo_spa_vl.py --config jobs/configs/tiny/ppo.yaml`.

Policy, critic, reference, reward model and vLLM engines are Ray actors; the loop is `rlhf/online.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.before_after import answer, evaluation_prompts, fitting, show
from jobs.command_line import main
from rlhf.batch import Prompt
from rlhf.checkpoint import RunFolder
from rlhf.config import resolve
from rlhf.data.processor import Processor, check_architecture
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_prompts
from rlhf.errors import DataError, WorkerLostError
from rlhf.evaluation.before_after import is_recorded
from rlhf.models.compatible import check_same_inputs
from rlhf.models.heads import check_head
from rlhf.online import restore, state_of, take_best, train
from rlhf.online_config import OnlineConfig
from rlhf.rewards import guard_engines, guard_rewards
from rlhf.rewards.guard import require_judgeable
from rlhf.rollout.canary import Canary
from rlhf.selection import check_prompts


@dataclass(frozen=True)
class Inputs:
    """Everything read from disk before anything is started."""

    processor: Processor
    prompts: list[Prompt]
    evaluation: list[Prompt]
    validation: list[Prompt]
    canary: Canary


def run(config: OnlineConfig) -> dict[str, Any]:
    """Train to the end, whatever dies on the way; returns the before/after summary."""
    folder = RunFolder(config.run, config)
    try:
        if folder.complete:
            print(f"{config.run.name} is complete: {folder.path} (--fresh begins again)", flush=True)
        else:
            _run(config, folder)
        return show(folder.path)
    finally:
        folder.close()


def _run(config: OnlineConfig, folder: RunFolder) -> None:
    import ray

    from cluster.connect import connect
    from cluster.placement import place

    inputs = read_inputs(config, folder.path)
    own = connect(shared_cores=True)
    placement = place(config.roles.present())
    try:
        for attempt in range(config.run.max_restarts + 1):
            try:
                _attempt(config, folder, inputs, placement)
                break
            except WorkerLostError as error:
                if attempt == config.run.max_restarts:
                    raise
                print(f"{error}; rebuilding all roles from the last checkpoint", flush=True)
    finally:
        placement.release()
        if own:
            ray.shutdown()


def _attempt(config: OnlineConfig, folder: RunFolder, inputs: Inputs, placement: Any) -> None:
    from actors.team import Team

    began = time.monotonic()
    print("starting policy, critic, reference, reward model and rollout engines ...", flush=True)
    with Team(config, placement, inputs.canary) as team:
        checkpoint = folder.checkpoints.latest()
        for reason in folder.checkpoints.skipped:
            print(f"passed over a damaged checkpoint: {reason}", flush=True)
        state, roles = state_of(checkpoint, config), team.roles()
        if checkpoint:
            print(f"going on from {checkpoint.folder}", flush=True)
            restore(roles, checkpoint)
        sync = team.rollout.sync(state.iteration)
        print(
            f"ready after {time.monotonic() - began:.0f} s: {sync.megabytes:.1f} MB of weights in the engines, "
            f"canary gap {sync.canary_gap:.2g}",
            flush=True,
        )
        if not is_recorded(folder.path, "before"):
            _answer(config, folder, team, inputs.evaluation, "before")
        state = train(roles, inputs.prompts, inputs.processor, config, folder, inputs.validation)
        take_best(state, roles, config, folder, inputs.validation)
        _answer(config, folder, team, inputs.evaluation, "after")
        team.policy.export(folder.path / "model").result()
        if team.critic:
            team.critic.export(folder.path / "critic").result()
    from rlhf.report import write_report

    write_report(folder.path)
    folder.mark_complete()


def read_inputs(config: OnlineConfig, folder: Path) -> Inputs:
    """Read and check prompts and images. Raises DataError when more rows are unusable than the configuration allows."""
    data = config.data
    rejected = RejectedRows(folder / "rejected.jsonl")
    processor = Processor.load(config.model)
    for key, scorer in config.scalar_models():
        check_same_inputs(config.model, scorer, key)
        check_head(scorer, key)
    for guard, _ in guard_engines(config.reward):
        check_architecture(guard)  # a missing guard is refused before anything starts
    root = Path(resolve(data.image_root))
    budget, context = config.sampling.max_new_tokens, config.rollout.max_length
    asked = load_prompts(resolve(data.train), data.keywords, root, rejected)
    prompts = fitting(asked, processor, budget, context, rejected)
    unseen = data.evaluation_image_root or data.image_root
    evaluation, validation = (
        fitting(evaluation_prompts(f"data.{name}", path, unseen, rejected), processor, budget, context, rejected)
        for name, path in (("evaluation", data.evaluation), ("validation", data.validation))
    )
    rejected.check(len(prompts) + len(evaluation) + len(validation) + rejected.count, data.max_rejected_share)
    if rejected.count:
        print(f"left out, as data.max_rejected_share allows: {dict(rejected.kinds)} ({rejected.path})", flush=True)
    if not prompts:
        raise DataError("no usable prompt", source=data.train)
    for judge in guard_rewards(config.reward):
        require_judgeable(judge, [*prompts, *evaluation], budget)
    if config.selection:
        check_prompts(validation, evaluation)
    canary = Canary.of(prompts, processor, config.loop.canary_prompts, budget)
    return Inputs(processor, prompts, evaluation, validation, canary)


def _answer(config: OnlineConfig, folder: RunFolder, team: Any, prompts: Sequence[Prompt], moment: str) -> None:
    budget, label = config.sampling.max_new_tokens, config.data.label
    answer(folder.path, moment, team.rollout, team.reward, prompts, budget, label)


if __name__ == "__main__":
    main(OnlineConfig, run, __doc__ or "")
