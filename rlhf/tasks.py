"""The supervised tasks: imitate answers, or prefer one answer to another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms.reward_model import RewardModelConfig, pair_objective
from rlhf.algorithms.sft import sft_objective
from rlhf.batch import Example, PairBatch, PreferencePair, TokenBatch, concat_token_batches
from rlhf.data.compact import encode_all
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.learner import Learner
from rlhf.models.heads import PolicyModel, ScalarModel, scores_of


class ImitationTask:
    """Conversations whose answers are imitated (pretraining and instruction tuning)."""

    model = PolicyModel

    def __init__(self, processor: Processor, examples: Sequence[Example], rejected: RejectedRows) -> None:
        self.processor = processor
        kept = encode_all(examples, lambda example: (processor.encode_example(example),), rejected)
        self._rows = [rows[0] for _, rows in kept]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> TokenBatch:
        """Rows as one batch."""
        return self.processor.collate([self._rows[index] for index in rows])

    def count(self, batch: TokenBatch) -> int:
        """Answer tokens."""
        return int(batch.response_mask.sum())

    def loss(self, engine: Any, batch: TokenBatch, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of the answers."""
        logprobs, _ = engine(batch)
        return sft_objective(logprobs, batch.to(logprobs.device), denominator)

    def validate(self, learner: Learner) -> dict[str, float]:
        """Nothing: the answers of a tuned model are measured where it generates (evaluation before PPO)."""
        return {}


class PreferenceTask:
    """Preference pairs for the reward model."""

    model = ScalarModel

    def __init__(
        self,
        processor: Processor,
        pairs: Sequence[PreferencePair],
        held_out: Sequence[PreferencePair],
        config: RewardModelConfig,
        rejected: RejectedRows,
    ) -> None:
        self.processor, self._config = processor, config
        self._pairs = encode_all(pairs, self._encode, rejected)
        self._held_out = encode_all(held_out, self._encode, rejected)

    def __len__(self) -> int:
        return len(self._pairs)

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """Pairs as two aligned batches."""
        return self._collate([self._pairs[index] for index in rows])

    def count(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.chosen)

    def loss(self, engine: Any, batch: PairBatch, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Pairwise loss; both answers go through one forward pass."""
        chosen, rejected = self._scores(engine, batch)
        return pair_objective(chosen, rejected, self._config, denominator)

    def validate(self, learner: Learner) -> dict[str, float]:
        """Accuracy (share of pairs whose chosen answer scores higher), in all and by question type."""
        right: dict[str, list[float]] = defaultdict(list)
        pieces = [self._held_out[low : low + 32] for low in range(0, len(self._held_out), 32)]
        margins = learner.infer([self._collate(piece) for piece in pieces], self._margins)
        for (pair, _), margin in zip(self._held_out, torch.cat(margins).tolist(), strict=True):
            for group in ("all", pair.prompt.question_type or "unknown"):
                right[group].append(float(margin > 0))
        return {f"validation/accuracy_{group}": sum(hits) / len(hits) for group, hits in right.items()}

    def _encode(self, pair: PreferencePair) -> tuple[Any, ...]:
        return (self.processor.encode(pair.prompt, pair.chosen), self.processor.encode(pair.prompt, pair.rejected))

    def _collate(self, kept: Sequence[tuple[PreferencePair, tuple[Any, ...]]]) -> PairBatch:
        chosen = self.processor.collate([rows[0] for _, rows in kept])
        return PairBatch(chosen, self.processor.collate([rows[1] for _, rows in kept]))

    def _scores(self, engine: Any, batch: PairBatch) -> tuple[Tensor, Tensor]:
        both = concat_token_batches([batch.chosen, batch.rejected], self.processor.pad_id)
        scores = scores_of(engine(both), both)
        return scores[: len(batch.chosen)], scores[len(batch.chosen) :]

    def _margins(self, engine: Any, batch: PairBatch) -> Tensor:
        chosen, rejected = self._scores(engine, batch)
        return chosen - rejected
