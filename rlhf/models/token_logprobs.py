"""Log-probabilities of given tokens without the logits of all of them.

A row's logits [V] are needed three times: for log-softmax, and for the gradients of the hidden state and of the matrix.
All rows at once are N x V numbers, several times over. Here rows go by in chunks, and of each chunk at most the
log-probabilities stay, as long as `KEPT` has room; those of the other chunks are computed again in the backward pass.
A small batch is one chunk that stays, hence costs what plain operations cost. With a frozen matrix (LoRA) nothing
stays and nothing is computed twice: the gradient of a log-probability towards its own hidden state, W[t] - p W, needs
only a factor from above, so the forward pass makes it while the chunk's probabilities exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlhf.errors import ConfigError

CHUNK = 2**23
"""Logits that are computed at a time."""
KEPT = 3 * CHUNK
"""Log-probabilities that are kept for the backward pass."""


class TokenHead(nn.Linear):
    """An LM head that also answers for single tokens.

    The computation runs inside this module's forward pass, because ZeRO-3 has the matrix whole only there and in the
    backward pass of what it returns.
    """

    @classmethod
    def around(cls, head: nn.Linear) -> TokenHead:
        """A head on the same parameter, which stays tied, frozen or partitioned. ConfigError for one with a bias."""
        if head.bias is not None:
            raise ConfigError(["model.path: this model's LM head has a bias, which is not supported"])
        result = cls(head.in_features, head.out_features, bias=False, device="meta")
        result.weight = head.weight
        return result.train(head.training)

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, temperature: float = 1.0, entropy: bool = True
    ) -> Any:
        """Logits [..., V] of `hidden` [..., H]; with `targets` what `token_logprobs` returns."""
        if targets is None:
            return super().forward(hidden)
        return token_logprobs(hidden, self.weight, targets, temperature, entropy)


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(W h / temperature), and the entropy of that distribution.

    Args:
        hidden: [N, H] float32, float64 or bfloat16.
        weight: [V, H] of the same type.
        targets: [N] token ids.
        temperature: divides the logits.
        entropy: without it the second result is all zeros, without gradient.

    Returns logprobs [N] and entropies [N] in nats, float32 (float64 for float64). Logits are rounded to the type of
    `weight`, as a plain linear layer does; everything after them, and the sum over chunks, is float32.
    """
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, entropy, learns)


class _TokenLogprobs(torch.autograd.Function):
    """Gradients, by the logits z of one row with log-probabilities l, probabilities p, entropy E and target t:

    d l_t / dz = 1_t - p and dE / dz = -p (l + E); d./dh = d./dz W / temperature and d./dW its outer product with h.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool, learns: bool
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropies, normal = torch.zeros(3, len(hidden), dtype=exact, device=hidden.device).unbind()
        slope = torch.empty_like(hidden) if learns and not weight.requires_grad else None
        kept: list[Tensor] = []
        for rows in _chunks(len(hidden), len(weight)):
            logits, places = _logits(hidden[rows], weight, temperature), targets[rows, None]
            log_p = torch.log_softmax(logits, dim=1)  # [R, V]
            logprobs[rows] = log_p.gather(1, places).squeeze(1)
            normal[rows] = logits.gather(1, places).squeeze(1) - logprobs[rows]
            if entropy:
                entropies[rows] = -torch.mul(torch.exp(log_p, out=logits), log_p, out=logits).sum(1)
            if slope is not None:
                d_logits = log_p.exp_().neg_().scatter_add_(1, places, torch.ones_like(logprobs[rows, None]))
                torch.mm(d_logits.to(hidden.dtype), weight, out=slope[rows])
            elif learns and rows.stop * len(weight) <= KEPT:
                kept.append(log_p)
            del logits, log_p  # or those of two chunks would be there together
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, targets, entropies, normal, slope, *kept)
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropies, normal, slope, *kept = ctx.saved_tensors
        factor = (torch.zeros_like(normal) if by_logprob is None else by_logprob)[:, None] / ctx.temperature  # [N, 1]
        if slope is not None and by_entropy is None:
            return (slope * factor).to(hidden.dtype), None, None, None, None, None
        shape = None if by_entropy is None else by_entropy[:, None] / ctx.temperature
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if to_hidden else None
        d_weight = torch.zeros_like(weight, dtype=normal.dtype) if to_weight and not len(hidden) else None
        for place, rows in enumerate(_chunks(len(hidden), len(weight))):
            log_p = (
                kept[place].clone()  # a second backward pass needs it as it is
                if place < len(kept)
                else _logits(hidden[rows], weight, ctx.temperature).sub_(normal[rows, None])
            )
            by_entropy = None if shape is None else (log_p + entropies[rows, None]).mul_(shape[rows])
            log_p.exp_().mul_(-factor[rows] if by_entropy is None else by_entropy.add_(factor[rows]).neg_())
            d_logits = log_p.scatter_add_(1, targets[rows, None], factor[rows]).to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if to_weight:
                d_weight = _plus_product(d_weight, d_logits, hidden[rows], normal.dtype)
            del log_p, d_logits, by_entropy
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK // vocabulary)
    for low in range(0, rows, size):
        yield slice(low, min(low + size, rows))


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[R, V], a tensor of its own."""
    logits = functional.linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`total` + left' right, summed in `dtype`."""
    if total is None:
        return (left.T @ right).to(dtype)
    return total.addmm_(left.T, right) if left.dtype == dtype else total.add_(left.T @ right)
