"""Log-probabilities, scores and values against plain transformers forwards, one row at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf.batch import Prompt, TokenBatch, concat_token_batches
from rlhf.config import ModelConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import DataError
from rlhf.models.heads import PolicyModel, ScalarModel, scores_of, values_of
from rlhf.models.llava import load
from tests.fakes import make_prompts

ANSWERS = ("The ball is red.", "There are three people near the old house.", "No.", "I cannot infer personal traits.")


@pytest.fixture(scope="module")
def processor(tiny: ModelConfig) -> Processor:
    return Processor.load(tiny)


@pytest.fixture(scope="module")
def policy(tiny: ModelConfig) -> PolicyModel:
    return PolicyModel(load(tiny, None)).eval()


@pytest.fixture(scope="module")
def scalar(tiny: ModelConfig) -> ScalarModel:
    torch.manual_seed(0)
    return ScalarModel(load(tiny, None)).eval()


@pytest.fixture(scope="module")
def prompts(pictures: list[str]) -> list[Prompt]:
    """The last one is text only."""
    asked = make_prompts(pictures, 4)
    return [*asked[:3], replace(asked[3], image=None)]


@pytest.fixture(scope="module")
def batch(processor: Processor, prompts: list[Prompt]) -> TokenBatch:
    return processor.collate([processor.encode(p, a) for p, a in zip(prompts, ANSWERS, strict=True)])


def _padded(batch: TokenBatch, extra: int, pad_id: int) -> TokenBatch:
    wide = concat_token_batches(
        [
            batch,
            TokenBatch(torch.zeros(1, batch.input_ids.shape[1] + extra, dtype=torch.long), *_nothing(batch, extra)),
        ],
        pad_id,
    )
    return wide.select(range(len(batch)))


def _nothing(batch: TokenBatch, extra: int) -> tuple[torch.Tensor, torch.Tensor, tuple[None]]:
    width = batch.input_ids.shape[1] + extra
    return torch.ones(1, dtype=torch.long), torch.zeros(1, width, dtype=torch.bool), (None,)


def _plain_logprobs(tiny: ModelConfig, processor: Processor, prompt: Prompt, answer: str) -> torch.Tensor:
    """[N] by an ordinary LLaVA that sees pixels, without mask, padding, cache or our code."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tiny.path, dtype=torch.float32)
    row = processor.encode(prompt, answer)
    ids = torch.tensor([row.ids])
    pixels = {} if prompt.image is None else {"pixel_values": processor.pixels(prompt.image)[None]}
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids, **pixels).logits[0], dim=-1)
    start = len(processor.prompt_ids(prompt))
    return torch.stack([log_p[place - 1, ids[0, place]] for place in range(start, ids.shape[1])])


@torch.no_grad()
def test_logprobs_are_those_of_a_plain_forward(
    tiny: ModelConfig, policy: PolicyModel, processor: Processor, prompts: list[Prompt], batch: TokenBatch
) -> None:
    logprobs, entropies = policy(batch)
    for index, (prompt, answer) in enumerate(zip(prompts, ANSWERS, strict=True)):
        expected = _plain_logprobs(tiny, processor, prompt, answer)
        torch.testing.assert_close(logprobs[index][batch.response_mask[index]], expected, atol=1e-5, rtol=0)
    assert not logprobs[~batch.response_mask].any()
    assert not entropies[~batch.response_mask].any()
    vocabulary = policy.backbone.vlm.lm_head.out_features
    assert (entropies[batch.response_mask] > 0).all()
    assert (entropies <= torch.log(torch.tensor(float(vocabulary))) + 1e-5).all()


@torch.no_grad()
def test_unequal_lengths_equal_batch_one(policy: PolicyModel, scalar: ScalarModel, batch: TokenBatch) -> None:
    logprobs, _ = policy(batch)
    scores = scores_of(scalar(batch), batch)
    for index in range(len(batch)):
        alone = batch.select([index]).trimmed()
        width = alone.input_ids.shape[1]
        torch.testing.assert_close(policy(alone)[0][0], logprobs[index, :width], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores_of(scalar(alone), alone)[0], scores[index], atol=1e-5, rtol=0)


@torch.no_grad()
def test_row08_score_at_the_last_response_token_does_not_depend_on_padding(
    policy: PolicyModel, scalar: ScalarModel, processor: Processor, batch: TokenBatch
) -> None:
    wide = _padded(batch, 13, processor.pad_id)
    width = batch.input_ids.shape[1]
    assert wide.input_ids.shape[1] == width + 13
    torch.testing.assert_close(policy(wide)[0][:, :width], policy(batch)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores_of(scalar(wide), wide), scores_of(scalar(batch), batch), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_lm_head_meets_response_positions_only(policy: PolicyModel, batch: TokenBatch) -> None:
    rows: list[int] = []
    head = policy.backbone.vlm.lm_head
    handle = head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].numel()))
    try:
        policy(batch)
    finally:
        handle.remove()
    assert rows == [int(batch.response_mask.sum()) * policy.backbone.hidden_size]


@torch.no_grad()
def test_row12_values_are_the_scores_shifted_by_one(scalar: ScalarModel, batch: TokenBatch) -> None:
    scalars = scalar(batch)
    hidden = scalar.backbone.hidden(batch)
    scores, values = scores_of(scalars, batch), values_of(scalars, batch)
    weight = scalar.head.weight[0]
    for index, length in enumerate(batch.lengths.tolist()):
        assert float(scores[index]) == pytest.approx(float(hidden[index, length - 1] @ weight), abs=1e-5)
        start = int(batch.response_mask[index].nonzero()[0])
        for place in range(start, length):
            assert float(values[index, place]) == pytest.approx(float(hidden[index, place - 1] @ weight), abs=1e-5)
    assert not values[~batch.response_mask].any()


@torch.no_grad()
def test_swapped_images_move_every_output(policy: PolicyModel, scalar: ScalarModel, batch: TokenBatch) -> None:
    first, second, *rest = batch.images
    swapped = replace(batch, images=(second, first, *rest))
    moved = (policy(swapped)[0] - policy(batch)[0]).abs().amax(dim=1)
    assert (moved[:2] > 1e-4).all()
    assert (moved[2:] < 1e-6).all()
    scores = (scores_of(scalar(swapped), swapped) - scores_of(scalar(batch), batch)).abs()
    assert (scores[:2] > 1e-5).all()
    assert (scores[2:] < 1e-6).all()


@torch.no_grad()
def test_a_frozen_tower_sees_every_image_once(tiny: ModelConfig, batch: TokenBatch) -> None:
    policy = PolicyModel(load(tiny, None))
    tower = policy.backbone.tower
    assert tower is not None
    first, _ = policy(batch)
    second, _ = policy(batch.select([2, 1, 0, 3]))
    assert tower.forwards == 3
    assert torch.equal(first[[2, 1, 0, 3]], second)
    forgetful = PolicyModel(load(tiny.model_copy(update={"feature_cache_mb": 0}), None))
    assert torch.equal(forgetful(batch)[0], first)
    forgetful(batch)
    assert forgetful.backbone.tower is not None
    assert forgetful.backbone.tower.forwards == 6


def test_a_learning_tower_gives_the_same_numbers(tiny: ModelConfig, policy: PolicyModel, batch: TokenBatch) -> None:
    learning = PolicyModel(load(tiny, TrainableConfig(vision_tower=True)))
    assert learning.backbone.tower is None
    logprobs, _ = learning(batch)
    torch.testing.assert_close(logprobs, policy(batch)[0], atol=1e-5, rtol=0)
    logprobs.sum().backward()
    tower = learning.backbone.vlm.model.vision_tower
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tower.parameters())


@pytest.mark.parametrize("vision_tower", [False, True])
def test_a_batch_without_images_reaches_the_same_parameters(
    tiny: ModelConfig, batch: TokenBatch, vision_tower: bool
) -> None:
    policy = PolicyModel(load(tiny, TrainableConfig(vision_tower=vision_tower))).train()
    text_only = batch.select([3]).trimmed()
    logprobs, _ = policy(text_only)
    logprobs.sum().backward()
    projector = dict(policy.backbone.vlm.model.multi_modal_projector.named_parameters())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in projector.values())
    with torch.no_grad():
        torch.testing.assert_close(logprobs, policy.eval()(text_only)[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_sampled_placeholder_is_an_ordinary_token(
    policy: PolicyModel, processor: Processor, prompts: list[Prompt]
) -> None:
    image = processor.image_id
    with_image = processor.join(prompts[:1], [[7, image, image, 9]])
    logprobs, _ = policy(with_image)
    assert torch.isfinite(logprobs).all()
    first = policy(processor.join(prompts[:1], [[7, image]]))[0]
    torch.testing.assert_close(logprobs[0, : first.shape[1]], first[0], atol=1e-5, rtol=0)


def test_placeholders_without_their_image_are_refused(policy: PolicyModel, batch: TokenBatch) -> None:
    broken = replace(batch, images=(batch.images[0], None, None, None))
    with pytest.raises(DataError, match="placeholders"):
        policy(broken)
