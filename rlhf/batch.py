"""The typed records that travel between stages. Every `*_mask` is True where a position counts.

Tensors that describe tokens are aligned with the tokens themselves, `[B, T]`: `logprobs[b, t]` is the log-probability
of token t given the tokens before it, and `values[b, t]` is the value of the state before token t. Sequences are
padded on the right; `lengths` says where each ends, so there is no padding mask. Pixels never travel: an `image` is
a path that each worker opens for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to ask the policy. `id` is unique over all sources ("source:row id")."""

    id: str
    question: str
    image: str | None = None  # absolute path
    kind: str = ""  # what the prompt probes, e.g. "harmful", "biometric", "benign"; used in reports only
    question_type: str = ""  # easy, hardq, hards
    category: str = ""  # SPA-VL domain
    answer: str = ""  # the exact right answer where there is one (benign prompts of the tiny world)
    history: tuple[tuple[str, str], ...] = ()  # earlier (question, answer) turns of the conversation
    begun: str = ""  # the start of the answer, which is given and only gone on with


@dataclass(frozen=True, slots=True)
class Completion:
    """What a rollout engine returned for one prompt.

    `logprobs` are the behaviour policy's own, one per token. EOS, if generated, is the last token.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Score:
    """A reward for one rollout, with the parts it is made of (they sum to `value`), and costs that are not in it.

    A verdict that could not be read is worth something, too, and that may be what an Unsafe one is worth: `invalid`
    tells them apart. It has a key for every verdict that was asked for, part of the value or of a cost.
    """

    value: float
    parts: dict[str, float]
    costs: dict[str, float] = field(default_factory=dict)  # what `constraints` bound; absent where it says nothing
    invalid: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt; `chosen` is the preferred one. Empty strings are refused by the readers."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to imitate (supervised fine-tuning): (question, answer) turns about at most one image."""

    id: str
    image: str | None
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TensorRecord:
    """Rows that can be split, reordered and padded together; dim 0 of every tensor field is the row."""

    def __len__(self) -> int:
        first = getattr(self, fields(self)[0].name)
        return len(first)

    def select(self, rows: Sequence[int]) -> Self:
        """The given rows, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        changed: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                changed[one.name] = value[index]
            elif isinstance(value, tuple):
                changed[one.name] = tuple(value[i] for i in rows)
            elif isinstance(value, TensorRecord):
                changed[one.name] = value.select(rows)
        return replace(self, **changed)

    def to(self, device: torch.device) -> Self:
        """The same rows with every tensor on `device`."""
        changed: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor | TensorRecord):
                changed[one.name] = value.to(device)
        return replace(self, **changed)

    def split(self, size: int) -> list[Self]:
        """Consecutive pieces of at most `size` rows."""
        return [self.select(range(start, min(start + size, len(self)))) for start in range(0, len(self), size)]

    @property
    def sizes(self) -> Tensor:
        """[B] long: the tokens of each row, padding apart."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenBatch(TensorRecord):
    """Joined sequences: prompt with one id per visual token, then the response.

    `response_mask` is True on the response's tokens, EOS included; those are the positions that losses count.
    """

    input_ids: Tensor  # [B, T] long, right-padded
    lengths: Tensor  # [B] long
    response_mask: Tensor  # [B, T] bool
    images: tuple[str | None, ...]  # [B] absolute paths

    @property
    def attention_mask(self) -> Tensor:
        """[B, T] long: 1 up to each row's length (what transformers calls the attention mask)."""
        columns = torch.arange(self.input_ids.shape[1], device=self.lengths.device)
        return (columns[None, :] < self.lengths[:, None]).long()

    @property
    def sizes(self) -> Tensor:
        """[B] long: the tokens of each row, padding apart."""
        return self.lengths

    def trimmed(self) -> Self:
        """The same rows without columns that are padding in all of them."""
        width = int(self.lengths.max())
        return replace(self, input_ids=self.input_ids[:, :width], response_mask=self.response_mask[:, :width])


@dataclass(frozen=True)
class PairBatch(TensorRecord):
    """Preference pairs as two aligned batches of B rows."""

    chosen: TokenBatch
    rejected: TokenBatch

    @property
    def answer_lengths(self) -> Tensor:
        """[B, 2] long: counted tokens of the chosen and of the rejected answer."""
        return torch.stack([one.response_mask.sum(dim=1) for one in (self.chosen, self.rejected)], dim=1)

    @property
    def sizes(self) -> Tensor:
        """[B] long: the tokens of both sequences, padding apart."""
        return self.chosen.lengths + self.rejected.lengths


@dataclass(frozen=True)
class PreferenceBatch(TensorRecord):
    """Preference pairs with what the reference gives their answers."""

    pairs: PairBatch
    reference: Tensor  # [B, 2] log-probabilities summed over the chosen and over the rejected answer

    @property
    def sizes(self) -> Tensor:
        """[B] long: the tokens of both sequences, padding apart."""
        return self.pairs.sizes


@dataclass(frozen=True)
class Experience(TensorRecord):
    """Rollouts with everything that PPO needs. All `[B, T]` tensors are zero where `response_mask` is False."""

    tokens: TokenBatch
    old_logprobs: Tensor  # [B, T] by the learner, before any update on these rollouts
    reference_logprobs: Tensor  # [B, T]
    rollout_logprobs: Tensor  # [B, T] by the engine that sampled
    old_values: Tensor  # [B, T]
    scores: Tensor  # [B]
    truncated: Tensor  # [B] bool: no EOS within max_new_tokens
    rewards: Tensor  # [B, T] KL and score per token; zeros until `estimate`
    advantages: Tensor  # [B, T] zeros until `estimate`
    returns: Tensor  # [B, T] zeros until `estimate`

    @property
    def response_mask(self) -> Tensor:
        """[B, T] bool."""
        return self.tokens.response_mask

    @property
    def sizes(self) -> Tensor:
        """[B] long: the tokens of each row, padding apart."""
        return self.tokens.lengths

    def trimmed(self) -> Self:
        """The same rows without columns that are padding in all of them."""
        tokens = self.tokens.trimmed()
        width = tokens.input_ids.shape[1]
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        wide = {name: one[:, :width] for name, one in named.items() if isinstance(one, Tensor) and one.dim() == 2}
        return replace(self, tokens=tokens, **wide)


@dataclass(frozen=True, slots=True)
class Deal:
    """Rows dealt out to ranks, longest first: every rank has as much to do, and little of a micro-batch is padding.

    What is computed from rows does not depend on it; sums over them change by rounding only.
    """

    hands: tuple[tuple[int, ...], ...]  # the rows of each rank, equally many

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """[B, ...] in the rows' first order from one part per rank; of a row that was dealt twice the first counts."""
        places = {row: place for place, row in reversed([*enumerate(row for hand in self.hands for row in hand)])}
        return torch.cat(list(parts))[[places[row] for row in range(len(places))]]


def deal(sizes: Tensor, ranks: int, unit: int = 1) -> Deal:
    """Deal rows of `sizes` [B] tokens; the shortest is dealt again until every rank has a multiple of `unit` rows."""
    order = torch.argsort(sizes, descending=True, stable=True).tolist()
    order += [order[-1]] * (-len(order) % (ranks * unit))
    return Deal(tuple(tuple(order[rank::ranks]) for rank in range(ranks)))


def concat_token_batches(batches: Sequence[TokenBatch], pad_id: int) -> TokenBatch:
    """Stack batches of different widths, padding on the right to the widest."""
    width = max(batch.input_ids.shape[1] for batch in batches)

    def pad(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return TokenBatch(
        input_ids=torch.cat([pad(batch.input_ids, pad_id) for batch in batches]),
        lengths=torch.cat([batch.lengths for batch in batches]),
        response_mask=torch.cat([pad(batch.response_mask, 0) for batch in batches]),
        images=tuple(image for batch in batches for image in batch.images),
    )
