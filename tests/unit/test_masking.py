"""Statistics over counted positions, against numpy on the selected numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import TrainingError
from rlhf.masking import explained_variance, last_index, masked_mean, masked_sum, masked_var, whiten

VALUES = torch.tensor([[1.0, 2.0, 99.0], [4.0, -77.0, 5.0]])
MASK = torch.tensor([[True, True, False], [True, False, True]])


def test_hand_computed_sum_mean_and_variance() -> None:
    assert masked_sum(VALUES, MASK).item() == 12.0
    assert masked_mean(VALUES, MASK).item() == 3.0
    assert masked_var(VALUES, MASK).item() == 2.5  # (4 + 1 + 1 + 4) / 4


@pytest.mark.parametrize("garbage", [0.0, 1e30, float("nan"), float("inf")])
def test_uncounted_positions_never_matter(garbage: float) -> None:
    values = torch.where(MASK, VALUES, garbage)
    assert masked_mean(values, MASK).item() == 3.0
    assert masked_var(values, MASK).item() == 2.5
    assert torch.equal(whiten(values, MASK), whiten(VALUES, MASK))
    assert explained_variance(values, values, MASK).item() == 1.0


@pytest.mark.parametrize("function", [masked_mean, masked_var, whiten])
def test_empty_mask_is_refused(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match="no position counts"):
        function(VALUES, torch.zeros_like(MASK))


def test_empty_mask_sums_to_zero() -> None:
    assert masked_sum(VALUES, torch.zeros_like(MASK)).item() == 0.0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.1, 30))
def test_whitened_mean_is_zero_and_variance_one(seed: int, centre: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = centre + spread * torch.randn(4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) < 0.6
    mask[0, :3] = True
    counted = whiten(values, mask)[mask].numpy()
    assert counted.mean() == pytest.approx(0.0, abs=1e-9)
    assert counted.var() == pytest.approx(1.0, rel=1e-4)
    kept = whiten(values, mask, shift_mean=False)
    assert kept[mask].numpy().mean() == pytest.approx(values[mask].numpy().mean(), abs=1e-9)
    assert kept[mask].numpy().var() == pytest.approx(1.0, rel=1e-4)
    assert not kept[~mask].any()
    order = np.argsort(values[mask].numpy())
    assert (np.diff(counted[order]) >= 0).all()


def test_whitening_equal_values_gives_zero() -> None:
    assert whiten(torch.full((2, 3), 5.5), MASK).abs().max().item() == 0.0


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    assert explained_variance(returns + 7.0, returns, everywhere).item() == 1.0  # a bias does not vary
    assert explained_variance(torch.zeros(1, 4), returns, everywhere).item() == 0.0
    assert explained_variance(-returns, returns, everywhere).item() == pytest.approx(-3.0)  # 1 - Var(2R) / Var(R)
    assert explained_variance(returns, torch.ones(1, 4), everywhere).item() == 0.0


def test_last_index_with_holes_and_different_ends() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    assert last_index(mask).tolist() == [1, 3, 2]


def test_last_index_names_the_empty_rows() -> None:
    with pytest.raises(TrainingError, match=r"row\(s\) \[1\]"):
        last_index(torch.tensor([[True], [False]]))
