"""The random start of new weights, the same however many numbers were drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fresh_draws() -> Iterator[None]:
    """Inside, random numbers are the first ones of the process's seed; outside, they go on as if nothing was drawn.

    How many numbers loading a model draws depends on the ZeRO stage and on the number of ranks; a new head or adapter
    must not.
    """
    with torch.random.fork_rng():
        torch.manual_seed(torch.initial_seed())
        yield
