"""Both layouts of preference pairs against plain forwards of one row at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.batch import PairBatch, PreferencePair, Prompt
from rlhf.config import ModelConfig, TrainableConfig
from rlhf.data.pairs import EncodedPairs
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from rlhf.models.pairs import PairModel, fork
from tests.fakes import make_prompts

ANSWERS = (
    ("The ball is red.", "No."),
    ("Yes.", "There are three people near the old house."),
    ("I cannot infer personal traits.", "The woman is an old fox."),
    ("A name and an address.", "A name and an address."),  # equal answers must get equal numbers
)


@pytest.fixture(scope="module")
def processor(tiny: ModelConfig) -> Processor:
    return Processor.load(tiny)


@pytest.fixture(scope="module")
def pairs(pictures: list[str]) -> list[PreferencePair]:
    """The second has no image."""
    prompts: list[Prompt] = make_prompts(pictures, 4)
    prompts[1] = replace(prompts[1], image=None)
    return [PreferencePair(prompt, *answers) for prompt, answers in zip(prompts, ANSWERS, strict=True)]


@pytest.fixture(scope="module")
def batch(processor: Processor, pairs: list[PreferencePair]) -> PairBatch:
    return EncodedPairs(processor, pairs, RejectedRows()).batch(range(4))


def model(tiny: ModelConfig, share_prefix: bool, trainable: TrainableConfig | None = None) -> PairModel:
    return PairModel(load(tiny, trainable), share_prefix)


def one_by_one(tiny: ModelConfig, processor: Processor, pairs: list[PreferencePair]) -> Tensor:
    """[B, 2] by the ordinary policy model, each answer alone in its batch (test_heads holds that to transformers)."""
    policy = PolicyModel(load(tiny, None)).eval()
    with torch.no_grad():
        rows = [[processor.encode(p.prompt, text) for text in (p.chosen, p.rejected)] for p in pairs]
        sums = [[policy(processor.collate([row]))[0].sum() for row in two] for two in rows]
    return torch.tensor(sums)


@pytest.mark.parametrize("share_prefix", [False, True])
def test_sums_are_those_of_single_rows(
    tiny: ModelConfig, processor: Processor, pairs: list[PreferencePair], batch: PairBatch, share_prefix: bool
) -> None:
    with torch.no_grad():
        sums = model(tiny, share_prefix).eval()(batch)
    expected = one_by_one(tiny, processor, pairs)
    torch.testing.assert_close(sums, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(sums[3, 0], sums[3, 1], atol=1e-5, rtol=0)


def gradients(module: PairModel, batch: PairBatch, weights: Tensor) -> dict[str, Tensor]:
    module.train()
    (module(batch) * weights).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_a_shared_prefix_has_the_gradients_of_separate_rows(tiny: ModelConfig, batch: PairBatch) -> None:
    """Parity in float32, log-probabilities and gradients, projector included, also with checkpointing."""
    weights = torch.randn(4, 2, generator=torch.Generator().manual_seed(5))
    apart = gradients(model(tiny, False, TrainableConfig()), batch, weights)
    for trainable in (TrainableConfig(), TrainableConfig(gradient_checkpointing=True)):
        shared = gradients(model(tiny, True, trainable), batch, weights)
        assert shared.keys() == apart.keys()
        assert any("multi_modal_projector" in name for name in shared)
        for name, gradient in shared.items():
            scale = max(1.0, float(apart[name].abs().max()))
            assert float((gradient - apart[name]).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("share_prefix", [False, True])
def test_micro_batches_add_up(tiny: ModelConfig, batch: PairBatch, share_prefix: bool) -> None:
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0], [2.0, 0.25]])
    whole = gradients(model(tiny, share_prefix, TrainableConfig()), batch, weights)
    pieces = model(tiny, share_prefix, TrainableConfig()).train()
    for rows in ([2], [0, 3], [1]):
        (pieces(batch.select(rows)) * weights[rows]).sum().backward()
    for name, parameter in pieces.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_rejected_answer_does_not_see_the_chosen_one(
    tiny: ModelConfig, processor: Processor, pairs: list[PreferencePair]
) -> None:
    shared = model(tiny, True).eval()
    other = [replace(pair, chosen="The quick brown fox jumps over the lazy dog.") for pair in pairs]
    one, two = (shared(EncodedPairs(processor, some, RejectedRows()).batch(range(4))) for some in (pairs, other))
    torch.testing.assert_close(one[:, 1], two[:, 1], atol=1e-5, rtol=0)
    assert ((one[:, 0] - two[:, 0]).abs() > 0.1).all()


def test_the_forked_layout_by_hand(processor: Processor, batch: PairBatch) -> None:
    forked = fork(batch, processor.pad_id)
    row = 0
    prompt = int(batch.chosen.response_mask[row].int().argmax())
    chosen, rejected = batch.answer_lengths[row].tolist()
    end = prompt + chosen + rejected
    positions = [*range(prompt + chosen), *range(prompt, prompt + rejected)]
    assert forked.positions[row, :end].tolist() == positions
    assert int(forked.tokens.lengths[row]) == end
    first_rejected = prompt + chosen
    assert forked.before[row, [prompt, prompt + 1, first_rejected, first_rejected + 1]].tolist() == [
        prompt - 1, prompt, prompt - 1, first_rejected
    ]  # fmt: skip
    seen = forked.attention[row, 0]
    assert seen.diagonal().all()
    assert not seen.triu(1).any()
    assert seen[first_rejected, :prompt].all()
    assert not seen[first_rejected:end, prompt:first_rejected].any()
    assert forked.tokens.images == batch.chosen.images


@torch.no_grad()
@pytest.mark.parametrize("share_prefix", [False, True])
def test_both_answers_share_one_image_encode(
    tiny: ModelConfig, processor: Processor, pairs: list[PreferencePair], share_prefix: bool
) -> None:
    twice = [*pairs, replace(pairs[0], chosen="Red.")]
    module = model(tiny.model_copy(update={"feature_cache_mb": 0}), share_prefix).eval()
    projected: list[int] = []
    projector = module.backbone.vlm.model.multi_modal_projector
    projector.register_forward_hook(lambda _, inputs, output: projected.append(output.shape[0]))
    module(EncodedPairs(processor, twice, RejectedRows()).batch(range(5)))
    assert module.backbone.tower is not None
    assert module.backbone.tower.forwards == 3  # four pairs have an image, two of them the same one
    assert projected == [3]


@torch.no_grad()
@pytest.mark.parametrize("share_prefix", [False, True])
def test_row22_eos_is_trained_by_default_and_the_flag_removes_it(
    tiny: ModelConfig, processor: Processor, pairs: list[PreferencePair], share_prefix: bool
) -> None:
    """Trap T9."""
    with_eos, without = (
        EncodedPairs(processor, pairs, RejectedRows(), train_eos).batch(range(4)) for train_eos in (True, False)
    )
    policy, module = PolicyModel(load(tiny, None)).eval(), model(tiny, share_prefix).eval()
    sums = [module(one) for one in (with_eos, without)]
    for answer, (full, cut) in enumerate(((with_eos.chosen, without.chosen), (with_eos.rejected, without.rejected))):
        last = full.lengths - 1
        assert (full.input_ids[range(4), last] == processor.eos_id).all()
        assert full.response_mask[range(4), last].all()
        assert torch.equal(cut.lengths, last)
        assert not (torch.where(cut.response_mask, cut.input_ids, -1) == processor.eos_id).any()
        eos = policy(full)[0][range(4), last]  # the log-probability of EOS itself
        torch.testing.assert_close(sums[0][:, answer] - sums[1][:, answer], eos, atol=1e-5, rtol=0)


def test_different_prompts_cannot_share_a_row(processor: Processor, batch: PairBatch) -> None:
    mixed = PairBatch(batch.chosen, batch.rejected.select([1, 0, 2, 3]))
    with pytest.raises(DataError, match="share_prefix=false"):
        fork(mixed, processor.pad_id)
