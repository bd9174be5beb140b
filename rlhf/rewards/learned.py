"""The learned reward: a reward model that reads image, prompt and answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from rlhf.batch import Score, TokenBatch, deal
from rlhf.config import Config, ModelConfig, resolve
from rlhf.data.processor import Processor
from rlhf.models.build import build_frozen
from rlhf.models.heads import ScalarModel, scores_of
from rlhf.roles import Rollout


class LearnedRewardConfig(Config):
    """A reward-model directory (backbone and scalar head)."""

    kind: Literal["learned"] = "learned"
    """Which reward this is."""
    model: ModelConfig
    micro_rows: int = Field(default=8, ge=1)
    """Answers per forward pass."""


class LearnedReward:
    """Scores the policy's own token ids: no text is rendered again, so no token can differ (seed trap T9)."""

    def __init__(self, config: LearnedRewardConfig, weights: str = "whole") -> None:
        """`weights` as in `FrozenRoleConfig`; unless whole, all ranks score together, and equally many rollouts."""
        self._config = config
        self._processor = Processor.load(config.model)
        kind = partial(ScalarModel, head_from=Path(resolve(config.model.path)))
        self._model = build_frozen(kind, config.model, weights, self._processor)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """The head's output at the last answer token."""
        tokens = self._processor.join([one.prompt for one in rollouts], [one.completion.token_ids for one in rollouts])
        dealt = deal(tokens.sizes, 1)
        pieces = tokens.select(dealt.hands[0]).split(self._config.micro_rows)
        with torch.no_grad():
            values = dealt.gather([scores_of(self._model(piece), piece) for piece in map(TokenBatch.trimmed, pieces)])
        return [Score(value, {"reward_model": value}) for value in values.tolist()]
