"""The loop over preference pairs: DPO and its relatives, on a policy that learns and a reference that does not.

It talks to roles, never to machines. While the policy trains on a batch, the reference works on the next one; with
stored columns there is no reference at all. The maths is in `rlhf/algorithms/dpo.py`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlhf.algorithms.dpo import preference_objective
from rlhf.batch import PairBatch, PreferenceBatch
from rlhf.checkpoint import Checkpoint, RunFolder
from rlhf.data.pairs import EncodedPairs
from rlhf.data.stream import rows_at
from rlhf.metrics import MetricsLog, Progress
from rlhf.preference_config import PreferenceConfig
from rlhf.reference_columns import ReferenceColumns
from rlhf.roles import Pending, Saves

_ROWS_PER_REQUEST = 64  # of what is only measured, so that the result does not depend on batch_pairs


class PairReference(Protocol):
    """The frozen first policy."""

    def logprobs(self, pairs: PairBatch) -> Pending[Tensor]:
        """[B, 2] summed over the chosen and over the rejected answer."""


class PairPolicy(Saves, Protocol):
    """The model that learns to prefer."""

    def logprobs(self, pairs: PairBatch) -> Pending[Tensor]:
        """[B, 2] summed over the chosen and over the rejected answer."""

    def step(self, batch: PreferenceBatch, denominator: float) -> Pending[dict[str, float]]:
        """One optimizer step; statistics are means over the pairs of the global batch."""


class ReferenceSource(Protocol):
    """Where the reference's numbers of some pairs come from."""

    def ask(self, rows: Sequence[int], pairs: PairBatch) -> Pending[Tensor]:
        """[B, 2] of `pairs`, which are the given rows of the data."""


@dataclass(frozen=True, slots=True)
class Known:
    """A pending result that is there already."""

    value: Tensor

    def result(self) -> Tensor:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class LiveReference:
    """Asks the reference, batch by batch."""

    reference: PairReference

    def ask(self, rows: Sequence[int], pairs: PairBatch) -> Pending[Tensor]:
        """Under way when this returns."""
        return self.reference.logprobs(pairs)


@dataclass(frozen=True, slots=True)
class StoredReference:
    """Looks the numbers up; zeros [pairs, 2] serve a loss without reference."""

    columns: Tensor

    def ask(self, rows: Sequence[int], pairs: PairBatch) -> Pending[Tensor]:
        """At once."""
        return Known(self.columns[list(rows)])


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Pairs with where the reference's numbers of them come from."""

    pairs: EncodedPairs
    reference: ReferenceSource


def fill(columns: ReferenceColumns, pairs: EncodedPairs, reference: PairReference, title: str) -> None:
    """Compute every part of the columns that is not stored yet."""
    todo = columns.missing()
    with Progress(title, len(todo)) as progress:
        for done, part in enumerate(todo, start=1):
            pieces = [part[low : low + _ROWS_PER_REQUEST] for low in range(0, len(part), _ROWS_PER_REQUEST)]
            asked = [reference.logprobs(pairs.batch(piece)) for piece in pieces]
            columns.write(part, torch.cat([one.result() for one in asked]))
            progress.advance(done, {"pairs": part.stop})


def train(
    policy: PairPolicy, data: JudgedPairs, held_out: JudgedPairs, config: PreferenceConfig, folder: RunFolder
) -> dict[str, float]:
    """Train to the last step, then measure on held-out pairs, which is what it returns.

    Goes on from the newest checkpoint, whose weights the policy must hold.
    """
    total, step = config.total_steps(len(data.pairs)), step_of(folder.checkpoints.latest())
    log = MetricsLog(folder.path, step)
    with Progress(config.run.name, total, step) as progress:
        upcoming = _ask(data, config, step)
        while step < total:
            began = time.monotonic()
            batch = PreferenceBatch(upcoming[0], upcoming[1].result())
            waited = time.monotonic() - began
            training = policy.step(batch, float(len(batch)))
            if step + 1 < total:
                upcoming = _ask(data, config, step + 1)  # the reference works while the policy trains
            stats = training.result()
            step += 1
            stats |= {"seconds/reference": waited, "seconds/update": time.monotonic() - began - waited}
            if step % config.run.checkpoint_every == 0 or step == total:
                start = time.monotonic()
                save(step, policy, folder)
                stats["seconds/checkpoint"] = time.monotonic() - start
            stats["seconds/total"] = time.monotonic() - began
            stats["pairs_per_second"] = len(batch) / stats["seconds/total"]
            if step % config.run.log_every == 0 or step == total:
                log.log(step, stats)
            progress.advance(step, {name: stats[name] for name in ("loss", "accuracy", "margin", "lr")})
    results = validate(policy, held_out, config)
    log.log(total, results)
    log.close()
    return results


def validate(policy: PairPolicy, held_out: JudgedPairs, config: PreferenceConfig) -> dict[str, float]:
    """`validation/*`: the statistics of the loss on held-out pairs, and the accuracy by question type."""
    pairs, reference = held_out.pairs, held_out.reference
    rows = [range(low, min(low + _ROWS_PER_REQUEST, len(pairs))) for low in range(0, len(pairs), _ROWS_PER_REQUEST)]
    batches = [pairs.batch(piece) for piece in rows]
    asked = [(policy.logprobs(batch), reference.ask(piece, batch)) for piece, batch in zip(rows, batches, strict=True)]
    logprobs = torch.cat([one.result() for one, _ in asked])
    frozen = torch.cat([one.result() for _, one in asked])
    lengths = torch.cat([batch.answer_lengths for batch in batches])
    groups: dict[str, list[int]] = defaultdict(list)
    for row in range(len(pairs)):
        groups[pairs.pair(row).prompt.question_type or "unknown"].append(row)
    results = {}
    for name, chosen in {"all": list(range(len(pairs))), **groups}.items():
        index = torch.tensor(chosen)
        loss, stats = preference_objective(
            logprobs[index], frozen[index], lengths[index], config.algorithm, float(len(chosen))
        )
        results[f"validation/accuracy_{name}"] = float(stats["accuracy"])
        if name == "all":
            results |= {"validation/loss": float(loss), "validation/margin": float(stats["margin"])}
    return results


def step_of(checkpoint: Checkpoint | None) -> int:
    """The step at which a run goes on: the loop's whole state, since the order of pairs is a function of it."""
    return 0 if checkpoint is None else int(checkpoint.state["step"])


def save(step: int, policy: PairPolicy, folder: RunFolder) -> None:
    """Write one checkpoint: the policy and the step."""
    target: Path = folder.checkpoints.begin(step)
    policy.save(target / "policy").result()
    folder.checkpoints.commit(step, {"step": step})
    folder.publish()


def _ask(data: JudgedPairs, config: PreferenceConfig, step: int) -> tuple[PairBatch, Pending[Tensor]]:
    rows = rows_at(len(data.pairs), config.run.seed, step * config.batch_pairs, config.batch_pairs)
    batch = data.pairs.batch(rows)
    return batch, data.reference.ask(rows, batch)
