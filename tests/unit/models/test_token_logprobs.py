"""Chunked log-probabilities against plain operations on all logits: values, gradients, memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.models import token_logprobs as module
from rlhf.models.token_logprobs import TokenHead, token_logprobs
from tests.memory_meter import PeakOfNew

ROWS, WORDS, WIDTH = 23, 37, 8


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The textbook way: every logit, torch.distributions' entropy."""
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32)) / temperature
    table = torch.distributions.Categorical(logits=logits)
    return table.log_prob(targets), table.entropy()


def problem(dtype: torch.dtype, rows: int = ROWS, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    return hidden, weight, torch.randint(WORDS, (rows,), generator=generator)


@pytest.fixture(params=["one kept chunk", "kept and recomputed", "all recomputed"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """23 rows go by at once, or five at a time, of which ten rows or none are kept."""
    if request.param != "one kept chunk":
        monkeypatch.setattr(module, "CHUNK", 5 * WORDS + 1)
        monkeypatch.setattr(module, "KEPT", 10 * WORDS if request.param == "kept and recomputed" else 0)
    return str(request.param)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bonus", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_all_logits(
    dtype: torch.dtype, tolerance: float, temperature: float, bonus: float, frozen: bool
) -> None:
    upstream = torch.linspace(-2, 1, ROWS, dtype=dtype)
    results = []
    for function in (plain, token_logprobs):
        hidden, weight, targets = problem(dtype, frozen=frozen)
        logprobs, entropies = function(hidden, weight, targets, temperature)
        loss = (upstream * logprobs).sum()
        (loss + bonus * (upstream.cos() * entropies).sum() if bonus else loss).backward()
        results.append([logprobs, entropies, hidden.grad, *([] if frozen else [weight.grad])])
    for expected, found in zip(*results, strict=True):
        assert expected is not None
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_differences_of_values(frozen: bool) -> None:
    hidden, weight, targets = problem(torch.float64, rows=11, frozen=frozen)
    inputs = (hidden,) if frozen else (hidden, weight)
    assert torch.autograd.gradcheck(lambda h, w=weight: token_logprobs(h, w, targets, 1.3), inputs)


@pytest.mark.usefixtures("chunking")
def test_bfloat16_is_as_near_to_the_truth_as_all_logits_are() -> None:
    """Against float64 on the same rounded inputs: values to 2^-7 of a logit, gradients to twice the plain error."""
    truth, worst = None, []
    for function, dtype in ((plain, torch.float64), (plain, torch.bfloat16), (token_logprobs, torch.bfloat16)):
        hidden, weight, targets = (
            one.detach().to(dtype).requires_grad_() if one.is_floating_point() else one
            for one in problem(torch.bfloat16)
        )
        logprobs, entropies = function(hidden, weight, targets)
        (logprobs.sum() + entropies.sum()).backward()
        numbers = [one.double() for one in (logprobs, entropies, hidden.grad, weight.grad)]
        truth = truth or numbers
        worst.append([float((one - true).detach().abs().max()) for one, true in zip(numbers, truth, strict=True)])
        if function is token_logprobs:
            assert logprobs.dtype == entropies.dtype == torch.float32
            assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert all(ours <= 2 * theirs for ours, theirs in zip(worst[2], worst[1], strict=True)), worst


def test_numbers_known_by_hand() -> None:
    """Zero states: every token has probability 1/V; a state that a row of W meets alone is nearly sure of it."""
    weight = torch.zeros(5, 2)
    logprobs, entropies = token_logprobs(torch.ones(3, 2), weight, torch.tensor([0, 2, 4]))
    torch.testing.assert_close(logprobs, torch.full((3,), -math.log(5)))
    torch.testing.assert_close(entropies, torch.full((3,), math.log(5)))
    weight[1] = 100.0
    logprobs, entropies = token_logprobs(torch.ones(2, 2), weight, torch.tensor([1, 0]))
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -200.0]))
    assert not entropies.any()


def test_an_entropy_that_nobody_asked_for_is_not_computed() -> None:
    hidden, weight, targets = problem(torch.float32)
    logprobs, entropies = token_logprobs(hidden, weight, targets, entropy=False)
    assert not entropies.any()
    assert not entropies.requires_grad
    torch.testing.assert_close(logprobs, token_logprobs(hidden, weight, targets)[0])


def test_a_backward_pass_can_be_repeated(chunking: str) -> None:
    hidden, weight, targets = problem(torch.float64)
    loss = token_logprobs(hidden, weight, targets)[0].sum()
    first = torch.autograd.grad(loss, [hidden, weight], retain_graph=True)
    for once, again in zip(first, torch.autograd.grad(loss, [hidden, weight]), strict=True):
        assert torch.equal(once, again), chunking


def test_no_rows_still_reach_the_matrix() -> None:
    """Under ZeRO-3 a rank without response tokens must take part in the same gathers and reductions."""
    hidden, weight, targets = problem(torch.float32, rows=0)
    logprobs, _ = token_logprobs(hidden, weight, targets)
    logprobs.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_head_stays_on_the_same_parameter() -> None:
    embedding = nn.Embedding(WORDS, WIDTH)
    linear = nn.Linear(WIDTH, WORDS, bias=False)
    linear.weight = embedding.weight
    head = TokenHead.around(linear)
    assert head.weight is embedding.weight
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    states = torch.randn(4, WIDTH)
    assert torch.equal(head(states), linear(states))
    targets = torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(head(states, targets, 0.5)[0], plain(states, linear.weight, targets, 0.5)[0])
    with pytest.raises(ConfigError, match="bias"):
        TokenHead.around(nn.Linear(WIDTH, WORDS))


def test_memory_is_a_fraction_of_all_logits() -> None:
    """512 tokens, 64,000 words: the working space does not grow with the tokens."""
    peaks = []
    hidden = torch.randn(512, 16, requires_grad=True)
    weight = torch.randn(64_000, 16, requires_grad=True)
    targets = torch.arange(512)
    for function in (plain, token_logprobs):
        with PeakOfNew([hidden, weight]) as meter, torch.autograd.set_grad_enabled(function is plain):
            function(hidden, weight, targets)
        peaks.append(meter.peak)
    assert peaks[1] <= 2.1 * 4 * module.CHUNK
    hidden.grad = weight.grad = None
    with PeakOfNew([hidden, weight]) as meter:
        token_logprobs(hidden, weight, targets)[0].sum().backward()
    assert meter.peak <= 4 * (module.KEPT + 2.2 * module.CHUNK)
    assert peaks[0] > 2 * 4 * 512 * 64_000
