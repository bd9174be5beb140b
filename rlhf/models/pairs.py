"""What preference learning asks of a model: the summed log-probability of both answers of a pair.

Two layouts give the same numbers. Apart: chosen and rejected are rows of one batch. Forked: one row holds the prompt
once, then the chosen and the rejected answer, each seeing the prompt and itself only, both counted from the prompt's
end; the prompt with its image tokens, which is most of a row, then runs once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.batch import PairBatch, TokenBatch, concat_token_batches
from rlhf.errors import DataError
from rlhf.models.llava import VisionLanguage

_PROMPT, _CHOSEN, _REJECTED, _PADDING = 0, 1, 2, 3


@dataclass(frozen=True)
class ForkedRows:
    """Pairs that share their prompt. `tokens.response_mask` covers both answers."""

    tokens: TokenBatch  # [B, T]: prompt, chosen, rejected, padding
    part: Tensor  # [B, T] long: which of those four a position belongs to
    positions: Tensor  # [B, T] long: both answers go on from the prompt's last position
    before: Tensor  # [B, T] long: the column whose hidden state predicts this token

    @property
    def attention(self) -> Tensor:
        """[B, 1, T, T] bool, True where a query (dim 2) sees a key: itself, earlier ones of its part, the prompt.

        Padding sees the prompt and itself too: a row of the mask without any True has no softmax.
        """
        width = self.part.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.part.device).tril()
        keys, queries = self.part[:, None, :], self.part[:, :, None]
        return (causal & ((keys == _PROMPT) | (keys == queries)))[:, None]


def fork(pairs: PairBatch, pad_id: int) -> ForkedRows:
    """The forked layout of B pairs. Raises DataError if the two rows of a pair differ before the answers."""
    rows, parts, positions, before = [], [], [], []
    for index in range(len(pairs)):
        prompt, chosen = _halves(pairs.chosen, index)
        other, rejected = _halves(pairs.rejected, index)
        if not torch.equal(prompt, other) or pairs.chosen.images[index] != pairs.rejected.images[index]:
            raise DataError(f"the two answers of pair {index} do not follow the same prompt; set share_prefix=false")
        p, c, r = len(prompt), len(chosen), len(rejected)
        rows.append(torch.cat([prompt, chosen, rejected]))
        parts.append(torch.tensor([_PROMPT] * p + [_CHOSEN] * c + [_REJECTED] * r))
        positions.append(torch.cat([torch.arange(p + c), torch.arange(p, p + r)]))
        before.append(torch.tensor([0, *range(p + c - 1), p - 1, *range(p + c, p + c + r - 1)]))
    part = _padded(parts, _PADDING)
    tokens = TokenBatch(
        input_ids=_padded(rows, pad_id),
        lengths=torch.tensor([len(row) for row in rows]),
        response_mask=(part == _CHOSEN) | (part == _REJECTED),
        images=pairs.chosen.images,
    )
    return ForkedRows(tokens, part, _padded(positions, 0), _padded(before, 0))


class PairModel(nn.Module):
    """A VLM that gives the log-probability of both answers of each pair, summed over their tokens."""

    def __init__(self, backbone: VisionLanguage, share_prefix: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.share_prefix = share_prefix

    def forward(self, pairs: PairBatch) -> Tensor:
        """[B, 2] float32: chosen, rejected. Either way an image is encoded and projected once per batch."""
        return self._forked(pairs) if self.share_prefix else self._apart(pairs)

    def _apart(self, pairs: PairBatch) -> Tensor:
        pad_id = self.backbone.processor.pad_id
        tokens = concat_token_batches([pairs.chosen.trimmed(), pairs.rejected.trimmed()], pad_id)
        hidden = self.backbone.hidden(tokens)  # [2B, T, H]
        mask = tokens.response_mask.to(hidden.device)
        logprobs = self._logprobs(hidden[:, :-1][mask[:, 1:]], tokens)  # [2B, T]
        return logprobs.sum(dim=1).view(2, len(pairs)).T

    def _forked(self, pairs: PairBatch) -> Tensor:
        forked = fork(pairs, self.backbone.processor.pad_id)
        device = self.backbone.vlm.lm_head.weight.device
        hidden = self.backbone.hidden(
            forked.tokens, attention_mask=forked.attention.to(device), position_ids=forked.positions.to(device)
        )  # [B, T, H]
        rows, columns = forked.tokens.response_mask.nonzero(as_tuple=True)  # [N] each
        states = hidden[rows.to(device), forked.before[rows, columns].to(device)]  # [N, H]
        logprobs = self._logprobs(states, forked.tokens)  # [B, T]
        part = forked.part.to(device)
        return torch.stack([torch.where(part == answer, logprobs, 0.0).sum(1) for answer in (_CHOSEN, _REJECTED)], 1)

    def _logprobs(self, states: Tensor, tokens: TokenBatch) -> Tensor:
        """[B, T] float32, zero where nothing counts, from the states [N, H] that predict the counted tokens."""
        mask = tokens.response_mask.to(states.device)
        targets = tokens.input_ids.to(states.device)[mask]  # [N]
        counted, _ = self.backbone.vlm.lm_head(states, targets, entropy=False)  # [N]
        return torch.zeros(mask.shape, dtype=torch.float32, device=states.device).masked_scatter(mask, counted)


def _halves(tokens: TokenBatch, row: int) -> tuple[Tensor, Tensor]:
    """Ids before the first counted token, and from there to the row's end."""
    ids = tokens.input_ids[row, : int(tokens.lengths[row])]
    start = int(tokens.response_mask[row].to(torch.int8).argmax())
    return ids[:start], ids[start:]


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
