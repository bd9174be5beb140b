"""DPO on SPA-VL: `ray job submit --working-dir . -- python jobs/dpo_spa_vl.py --config jobs/configs/tiny/dpo.yaml`.

Policy and reference are Ray actors; the loop is `rlhf/preference.py`. Engines answer the evaluation prompts before and
after training, from model directories and while no other role is up, so they need no devices of their own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.before_after import answer, evaluation_prompts, fitting, show
from jobs.command_line import main
from rlhf.batch import Prompt
from rlhf.checkpoint import RunFolder
from rlhf.config import ModelConfig, resolve
from rlhf.data.pairs import EncodedPairs, load_both
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError, WorkerLostError
from rlhf.evaluation.before_after import is_recorded
from rlhf.preference import JudgedPairs, LiveReference, ReferenceSource, StoredReference, fill, train
from rlhf.preference_config import PreferenceConfig
from rlhf.reference_columns import ReferenceColumns


@dataclass(frozen=True)
class Inputs:
    """Everything read from disk before anything is started."""

    pairs: EncodedPairs
    held_out: EncodedPairs
    evaluation: list[Prompt]


def run(config: PreferenceConfig) -> dict[str, Any]:
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


def read_inputs(config: PreferenceConfig, folder: Path) -> Inputs:
    """Read and check pairs, prompts and images. Raises DataError when more rows are unusable than allowed."""
    data, answers = config.data, config.answers
    rejected = RejectedRows(folder / "rejected.jsonl")
    processor = Processor.load(config.model)
    pairs, held_out = (
        EncodedPairs(processor, one, rejected, config.algorithm.train_eos) for one in load_both(data, rejected)
    )
    unseen = data.evaluation_image_root or data.image_root
    prompts = evaluation_prompts("data.evaluation", data.evaluation, unseen, rejected)
    prompts = fitting(prompts, processor, answers.max_new_tokens, answers.engine.max_length, rejected)
    rejected.check(len(pairs) + len(held_out) + len(prompts) + rejected.count, data.max_rejected_share)
    if rejected.count:
        print(f"left out, as data.max_rejected_share allows: {dict(rejected.kinds)} ({rejected.path})", flush=True)
    for name, one in (("train", pairs), ("validation", held_out)):
        if not len(one):
            raise DataError("no usable pair", source=getattr(data, name))
    return Inputs(pairs, held_out, prompts)


def _run(config: PreferenceConfig, folder: RunFolder) -> None:
    import ray

    from cluster.connect import connect
    from cluster.placement import check, plan

    inputs = read_inputs(config, folder.path)
    own = connect(shared_cores=True)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for together in config.phases().values():
            check(plan(together), nodes)
        if not is_recorded(folder.path, "before"):
            _answer(config, folder, inputs.evaluation, "before", config.model)
        for attempt in range(config.run.max_restarts + 1):
            try:
                _train(config, folder, inputs)
                break
            except WorkerLostError as error:
                if attempt == config.run.max_restarts:
                    raise
                print(f"{error}; rebuilding all roles from the last checkpoint", flush=True)
        trained = config.model.model_copy(update={"path": str(folder.path / "model"), "adapter": None})
        _answer(config, folder, inputs.evaluation, "after", trained)
    finally:
        if own:
            ray.shutdown()
    from rlhf.report import write_report

    write_report(folder.path)
    folder.mark_complete()


def _train(config: PreferenceConfig, folder: RunFolder, inputs: Inputs) -> None:
    from actors.preference import Groups, PairReferenceGroup, PreferenceGroup
    from cluster.placement import place

    stored = _stored(config, folder, inputs)
    roles = config.phases()["training"]
    placement = place(roles)
    began = time.monotonic()
    print(f"starting {' and '.join(roles)} ...", flush=True)
    try:
        groups: list[Any] = [PreferenceGroup(config, placement, config.total_steps(len(inputs.pairs)))]
        sources: Sequence[ReferenceSource] = stored
        if not stored:
            groups.append(PairReferenceGroup(config, placement))
            sources = [LiveReference(groups[1])] * 2
        with Groups(*groups):
            print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
            data, held_out = (JudgedPairs(*one) for one in zip((inputs.pairs, inputs.held_out), sources, strict=True))
            _learn(config, folder, groups[0], data, held_out)
    finally:
        placement.release()


def _learn(config: PreferenceConfig, folder: RunFolder, policy: Any, data: JudgedPairs, held_out: JudgedPairs) -> None:
    checkpoint = folder.checkpoints.latest()
    for reason in folder.checkpoints.skipped:
        print(f"passed over a damaged checkpoint: {reason}", flush=True)
    if checkpoint:
        print(f"going on from {checkpoint.folder}", flush=True)
        policy.load(checkpoint.folder / "policy").result()
    for name, value in sorted(train(policy, data, held_out, config, folder).items()):
        print(f"  {name}: {value:.4f}", flush=True)
    policy.export(folder.path / "model").result()


def _stored(config: PreferenceConfig, folder: RunFolder, inputs: Inputs) -> list[StoredReference]:
    """The reference's numbers of training and held-out pairs; none if a live reference gives them."""
    both = (inputs.pairs, inputs.held_out)
    if not config.algorithm.needs_reference:
        return [StoredReference(torch.zeros(len(one), 2)) for one in both]
    if config.reference.source == "prefetch":
        return []
    root = Path(resolve(config.reference.folder)) if config.reference.folder else folder.path / "reference"
    columns = [ReferenceColumns(root, config.model, one) for one in both]
    if any(one.missing() for one in columns):
        _compute(config, list(zip(columns, both, strict=True)))
    return [StoredReference(one.read()) for one in columns]


def _compute(config: PreferenceConfig, todo: list[tuple[ReferenceColumns, EncodedPairs]]) -> None:
    from actors.preference import Groups, PairReferenceGroup
    from cluster.placement import place

    print("computing the reference's log-probabilities once ...", flush=True)
    placement = place(config.phases()["columns"])
    try:
        reference = PairReferenceGroup(config, placement)
        with Groups(reference):
            for columns, pairs in todo:
                fill(columns, pairs, reference, "reference columns")
    finally:
        placement.release()


def _answer(
    config: PreferenceConfig, folder: RunFolder, prompts: list[Prompt], moment: str, model: ModelConfig
) -> None:
    from actors.preference import AnswerGroup, Groups
    from cluster.placement import place

    if not prompts:
        return
    placement = place(config.phases()["answers"])
    try:
        engines = AnswerGroup(config, placement, model.model_copy(update={"quantise": "none"}))
        with Groups(engines):
            budget, label = config.answers.max_new_tokens, config.data.label
            answer(folder.path, moment, engines, None, prompts, budget, label)
    finally:
        placement.release()


if __name__ == "__main__":
    main(PreferenceConfig, run, __doc__ or "")
