"""Distance to the reference policy, and how strongly it is penalised."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlhf.errors import ConfigError, NonFiniteError

Estimator = Literal["k1", "k3"]
ControllerKind = Literal["fixed", "adaptive"]

# Ziegler et al. 2019, section 2.2: the proportional error is clipped to this size.
MAX_ERROR = 0.2


def token_kl(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(policy || reference), in nats, from tokens that the policy sampled.

    Args:
        logprobs: [B, T] of the policy.
        reference_logprobs: [B, T] of the reference.
        estimator: "k1", log(p/q), unbiased and of either sign; "k3", q/p - 1 - log(q/p), unbiased and never negative.

    Returns [B, T]. Raises ConfigError for another estimator.
    Source: Schulman, "Approximating KL Divergence" (2020); seed section 3.2, step 5.
    """
    log_ratio = reference_logprobs - logprobs  # log(q/p)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ConfigError([f"KL estimator {estimator!r} is unknown: choose k1 or k3"])


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A coefficient that never changes."""

    coefficient: float

    def update(self, observed_kl: float, n_steps: int) -> FixedKL:
        """The controller itself."""
        return self


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A coefficient that drives the KL towards `target` (nats per sequence) over about `horizon` sequences.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. Only `coefficient` changes from update to update.
    """

    coefficient: float
    target: float
    horizon: float

    def update(self, observed_kl: float, n_steps: int) -> AdaptiveKL:
        """The controller after `n_steps` more sequences whose mean KL was `observed_kl` nats per sequence.

        One update changes the coefficient by at most 20 %. Raises NonFiniteError for a KL that is no number.
        """
        if not math.isfinite(observed_kl):
            raise NonFiniteError(f"the observed KL is {observed_kl}: the KL controller cannot follow it")
        error = min(max(observed_kl / self.target - 1.0, -MAX_ERROR), MAX_ERROR)
        # A gain above one would let a batch much larger than the horizon turn the coefficient's sign.
        gain = min(n_steps / self.horizon, 1.0)
        return replace(self, coefficient=self.coefficient * (1.0 + gain * error))


KLController = FixedKL | AdaptiveKL


def make_controller(kind: ControllerKind, coefficient: float, target: float, horizon: float) -> KLController:
    """The controller that the configuration names; `target` and `horizon` are for "adaptive" only."""
    if kind == "adaptive":
        return AdaptiveKL(coefficient, target, horizon)
    return FixedKL(coefficient)
