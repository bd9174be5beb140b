"""Log-probabilities by chunks beside all logits: peak of new memory, and time, of forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.models.token_logprobs import token_logprobs
from tests.bench.measure import Row, in_turn, seconds
from tests.bench.world import same
from tests.memory_meter import PeakOfNew

SHAPES = ((4096, 32_000, 512), (4096, 32_000, 1024), (64, 700, 128))


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """All logits, as before the chunks."""
    log_p = torch.log_softmax((hidden @ weight.T).float(), dim=-1)  # [N, V]
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def run(repeats: int, small: bool) -> list[Row]:
    """Three shapes with a matrix that learns and one with a frozen one."""
    results = []
    for rows, words, width in SHAPES[1:] if small else SHAPES:
        rows = min(rows, 256) if small else rows
        results += _compare(rows, words, width, True, repeats, not small)
    return [*results, *_compare(256 if small else 4096, 32_000, 512, False, repeats, not small)]


def _compare(rows: int, words: int, width: int, learns: bool, repeats: int, judged: bool) -> list[Row]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=draw).requires_grad_()
    weight = (torch.randn(words, width, generator=draw) * 0.05).requires_grad_(learns)
    targets = torch.randint(words, (rows,), generator=draw)
    upstream = torch.rand(rows, generator=draw) / rows

    def step(function: object) -> float:
        hidden.grad = weight.grad = None
        logprobs, entropies = function(hidden, weight, targets)  # type: ignore[operator]
        loss = -(upstream * logprobs).sum()
        loss.backward()
        return float(loss.detach()) + float(entropies.detach().mean())

    same([step(token_logprobs)], [step(plain)])
    peaks = []
    for function in (token_logprobs, plain):
        with PeakOfNew([hidden, weight, targets]) as meter:
            step(function)
        peaks.append(meter.peak / 2**20)
    calls = 1 if rows * words > 10**6 else 50  # too short to time alone

    def many(function: object) -> None:
        for _ in range(calls):
            step(function)

    times = in_turn(lambda: seconds(lambda: many(token_logprobs)), lambda: seconds(lambda: many(plain)), repeats)
    model = f"N {rows}, V {words}, H {width}" + ("" if learns else ", frozen")
    big = judged and rows >= 4096
    return [
        Row("log-probabilities, peak", model, "MiB", *peaks, peaks[0] / peaks[1], "<= 0.15" if big else ""),
        Row(
            "log-probabilities, time",
            model,
            "s",
            times[0] / calls,
            times[1] / calls,
            times[0] / times[1],
            "<= 1.1" if big else "",
        ),
    ]
