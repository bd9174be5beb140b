"""PPO on SPA-VL: `ray job submit --working-dir . -- python jobs/ppo_spa_vl.py --config jobs/configs/tiny/ppo.yaml`.

Policy, critic, reference, reward model and vLLM engines are Ray actors; the loop is `rlhf/online.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.command_line import main
from rlhf.batch import Prompt
from rlhf.checkpoint import RunFolder
from rlhf.config import resolve
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_pairs, load_prompts
from rlhf.errors import DataError, WorkerLostError
from rlhf.evaluation.before_after import evaluate, record
from rlhf.online import state_of, train
from rlhf.online_config import OnlineConfig


@dataclass(frozen=True)
class Inputs:
    """Everything read from disk before anything is started."""

    processor: Processor
    prompts: list[Prompt]
    evaluation: list[Prompt]
    canary: tuple[list[Prompt], list[list[int]]]


def run(config: OnlineConfig) -> dict[str, Any]:
    """Train to the end, whatever dies on the way; returns the before/after summary."""
    folder = RunFolder(config.run, config)
    try:
        if folder.complete:
            print(f"{config.run.name} is complete: {folder.path} (--fresh begins again)", flush=True)
        else:
            _run(config, folder)
        return _show(folder.path)
    finally:
        folder.close()


def _run(config: OnlineConfig, folder: RunFolder) -> None:
    import ray

    from cluster.connect import connect
    from cluster.placement import place

    inputs = read_inputs(config, folder.path)
    own = connect()
    roles = config.roles
    placement = place({name: getattr(roles, name) for name in ("policy", "critic", "reference", "reward", "rollout")})
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
    with Team(config, placement, inputs.processor, inputs.canary) as team:
        checkpoint = folder.checkpoints.latest()
        for reason in folder.checkpoints.skipped:
            print(f"passed over a damaged checkpoint: {reason}", flush=True)
        state = state_of(checkpoint, config)
        if checkpoint:
            print(f"going on from {checkpoint.folder}", flush=True)
            team.restore(checkpoint.folder)
        sync = team.rollout.sync(state.iteration)
        print(
            f"ready after {time.monotonic() - began:.0f} s: {sync.megabytes:.1f} MB of weights in the engines, "
            f"canary gap {sync.canary_gap:.2g}",
            flush=True,
        )
        if not (folder.path / "evaluation" / "before.jsonl").exists():
            _evaluate(config, folder, team, inputs.evaluation, "before")
        state = train(team.roles(), inputs.prompts, inputs.processor, config, folder)
        _evaluate(config, folder, team, inputs.evaluation, "after")
        team.policy.export(folder.path / "model").result()
        team.critic.export(folder.path / "critic").result()
    from rlhf.report import write_report

    write_report(folder.path)
    folder.mark_complete()


def read_inputs(config: OnlineConfig, folder: Path) -> Inputs:
    """Read and check prompts and images. Raises DataError when more rows are unusable than the configuration allows."""
    data = config.data
    rejected = RejectedRows(folder / "rejected.jsonl")
    processor = Processor.load(config.model)
    root = Path(resolve(data.image_root))
    pairs = load_pairs(resolve(data.train), data.keywords, root, rejected)
    evaluation: list[Prompt] = []
    if data.evaluation:
        evaluation_root = Path(resolve(data.evaluation_image_root)) if data.evaluation_image_root else root
        kinds = list(json.loads(Path(resolve(data.evaluation)).read_text()))
        evaluation = load_prompts(resolve(data.evaluation), kinds, evaluation_root, rejected)
    budget = config.sampling.max_new_tokens
    prompts = _fitting([pair.prompt for pair in pairs], processor, budget, config.rollout.max_length, rejected)
    evaluation = _fitting(evaluation, processor, budget, config.rollout.max_length, rejected)
    rejected.check(len(prompts) + len(evaluation) + rejected.count, data.max_rejected_share)
    if not prompts:
        raise DataError("no usable prompt", source=data.train)
    chosen = [pair for pair in pairs if pair.prompt.image][: config.loop.canary_prompts]
    rows = [processor.encode(pair.prompt, pair.chosen) for pair in chosen]
    answers = [[token for token, counts in zip(row.ids, row.response, strict=True) if counts] for row in rows]
    return Inputs(processor, prompts, evaluation, ([pair.prompt for pair in chosen], answers))


def _fitting(
    prompts: Sequence[Prompt], processor: Processor, budget: int, context: int, rejected: RejectedRows
) -> list[Prompt]:
    kept = []
    for prompt in prompts:
        try:
            processor.prompt_ids(prompt, budget, context)
        except DataError as error:
            rejected.add(error)
        else:
            kept.append(prompt)
    return kept


def _evaluate(config: OnlineConfig, folder: RunFolder, team: Any, prompts: Sequence[Prompt], moment: str) -> None:
    if not prompts:
        return
    began = time.monotonic()
    rows = evaluate(team.rollout, team.reward, prompts, config.sampling.max_new_tokens)
    record(folder.path, moment, rows, config.data.label)
    print(f"evaluated {len(rows)} prompts {moment} training in {time.monotonic() - began:.0f} s", flush=True)


def _show(folder: Path) -> dict[str, Any]:
    from rich.console import Console
    from rich.table import Table

    path = folder / "evaluation" / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    console = Console(width=100)
    if summary:
        table = Table("", "before", "after", title=summary.get("label"))
        for name in summary["before"]:
            table.add_row(name, *(f"{summary[moment][name]:.3f}" for moment in ("before", "after")))
        console.print(table)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return summary


if __name__ == "__main__":
    main(OnlineConfig, run, __doc__ or "")
