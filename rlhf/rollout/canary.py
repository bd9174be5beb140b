"""The canary: fixed prompts with a fixed answer, which engine and learner score after every weight sync."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rlhf.batch import Prompt, TokenBatch
from rlhf.data.processor import Processor

_ANSWER = "I'm sorry, but I can't help with that."  # any text will do, and data for PPO need not have answers


@dataclass(frozen=True)
class Canary:
    """What is scored: at temperature 1 on both sides, whatever answers are drawn with."""

    prompts: tuple[Prompt, ...]
    answers: tuple[tuple[int, ...], ...]
    tokens: TokenBatch

    @classmethod
    def of(cls, prompts: Sequence[Prompt], processor: Processor, count: int, budget: int) -> Self:
        """The first `count` prompts with an image, or without one where none has any.

        Each leaves room for `budget` >= 2 new tokens in the engine's context; an engine draws one token behind the
        answer, which is cut so that both fit.
        """
        chosen = tuple([one for one in prompts if one.image is not None][:count] or prompts[:count])
        ids = processor.tokenizer(_ANSWER, add_special_tokens=False)["input_ids"][: budget - 1]
        answers = (tuple(ids),) * len(chosen)
        return cls(chosen, answers, processor.join(chosen, answers))

    def gap(self, scored: Sequence[Sequence[float]], logprobs: Tensor) -> float:
        """The largest difference (nats) of an engine's scores from the learner's `logprobs` [B, T]; NaN if any is."""
        engine = torch.tensor([one for answer in scored for one in answer])  # row-major, as the mask
        return float((engine - logprobs[self.tokens.response_mask]).abs().max())
