"""The real vLLM engine against transformers and the learner: tokens, log-probabilities, updates, stale caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.batch import Completion, Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import PromptTooLongError, WeightSyncError
from rlhf.models.heads import PolicyModel
from rlhf.models.keys import LLAVA, to_hub
from rlhf.models.llava import load
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.hf_engine import HfEngine
from rlhf.rollout.vllm_engine import VllmEngine, cpu_environment
from rlhf.rollout.weights import WeightBucket, pack
from tests.fakes import make_prompts
from tests.integration.syncing import sync

pytestmark = pytest.mark.slow

GREEDY = Sampling(max_new_tokens=16, temperature=0)
FILLER = "Look at the picture of the old house near the green tree. " * 3  # longer than two blocks of the KV cache
SYNCED = ("multi_modal_projector.", "language_model.")  # what a policy with a frozen tower sends


@pytest.fixture(scope="module")
def processor(tiny: ModelConfig) -> Processor:
    return Processor.load(tiny)


@pytest.fixture(scope="module")
def vllm(tiny: ModelConfig, processor: Processor) -> Iterator[VllmEngine]:
    config = RolloutConfig(engine="vllm", dtype="float32", max_length=256, max_sequences=16, kv_cache_mb=32)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        engine = build_engine(tiny, config, processor)
        assert isinstance(engine, VllmEngine)
        yield engine


@pytest.fixture
def hf(tiny: ModelConfig, processor: Processor) -> HfEngine:
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=256)
    return HfEngine(tiny, config, processor)


@pytest.fixture
def prompts(pictures: list[str]) -> list[Prompt]:
    """Every picture twice, and one prompt without a picture."""
    asked = make_prompts(pictures, 8, FILLER)
    return [*asked, replace(asked[0], id="fake:text", image=None)]


@pytest.fixture
def synced(vllm: VllmEngine, hf: HfEngine) -> VllmEngine:
    """The vLLM engine with the weights of the model's folder, whatever earlier tests loaded."""
    sync(vllm, _buckets(_state(hf)), 0)
    return vllm


def _state(hf: HfEngine, noise: float = 0.0, seed: int = 0, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in hf._model.named_parameters():
        hub = to_hub(name, LLAVA)
        if hub.startswith(tuple(prefixes)):
            state[hub] = parameter + noise * torch.randn(parameter.shape, generator=generator)
    return state


def _buckets(state: dict[str, Tensor], size: int = 7) -> list[WeightBucket]:
    names = list(state)
    return [pack((n, state[n]) for n in names[start : start + size]) for start in range(0, len(names), size)]


def _tokens(answers: list[Completion]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def _cached(engine: VllmEngine, prompts: list[Prompt]) -> list[int]:
    """Prompt tokens that vLLM takes from its prefix cache when it answers."""
    params = [engine._params(GREEDY, prompt) for prompt in prompts]
    requests = [engine._request(prompt, (), GREEDY.max_new_tokens) for prompt in prompts]
    return [output.num_cached_tokens for output in engine._llm.generate(requests, params, use_tqdm=False)]


def _assert_equal_answers(one: list[Completion], other: list[Completion]) -> None:
    assert _tokens(one) == _tokens(other)
    for a, b in zip(one, other, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
        assert (a.prompt_id, a.text, a.finish_reason) == (b.prompt_id, b.text, b.finish_reason)


def test_greedy_answers_are_those_of_transformers(synced: VllmEngine, hf: HfEngine, prompts: list[Prompt]) -> None:
    _assert_equal_answers(synced.generate(prompts, GREEDY), hf.generate(prompts, GREEDY))
    assert len(set(_tokens(synced.generate(prompts, GREEDY)))) > 1  # the engine does look at its prompts


@pytest.mark.parametrize("prefixes", [SYNCED, ("multi_modal_projector.",), ("language_model.",), ("",)])
def test_row32_a_sync_brings_the_new_weights_and_drops_every_cache(
    synced: VllmEngine, hf: HfEngine, prompts: list[Prompt], prefixes: Sequence[str]
) -> None:
    before = synced.generate(prompts, GREEDY)
    assert min(_cached(synced, prompts)) >= 64, "the caches that could be stale must be in use"
    buckets = _buckets(_state(hf, 0.3, 11, prefixes))
    sync(hf, buckets, 1)
    expected = hf.generate(prompts, GREEDY)
    assert _tokens(before) != _tokens(expected)
    _assert_equal_answers(before, synced.generate(prompts, GREEDY))
    sync(synced, buckets, 1)
    after = synced.generate(prompts, GREEDY)
    _assert_equal_answers(after, expected)
    assert {answer.policy_version for answer in after} == {1}


def test_scores_are_the_learners_logprobs(
    synced: VllmEngine, tiny: ModelConfig, processor: Processor, prompts: list[Prompt]
) -> None:
    sampled = synced.generate(prompts, Sampling(max_new_tokens=12, seed=4))
    responses = [list(answer.token_ids) for answer in sampled]
    # placeholders that a policy sampled, alone and in a row, are ordinary tokens for both sides
    responses[0] = [9, processor.image_id, processor.image_id, 11]
    responses[-1] = [processor.image_id]
    policy = PolicyModel(load(tiny, None)).eval()
    batch = processor.join(prompts, responses)
    with torch.no_grad():
        learner, _ = policy(batch)
    for turn in range(2):  # the second time every prompt is in the prefix cache
        scores = synced.score(prompts, responses)
        for index, row in enumerate(scores):
            assert row == pytest.approx(learner[index][batch.response_mask[index]].tolist(), abs=1e-3), turn
    for index in range(1, len(prompts) - 1):
        assert sampled[index].logprobs == pytest.approx(scores[index], abs=1e-3)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.7), Sampling(top_k=5), Sampling(top_p=0.8), Sampling(temperature=1.3, top_k=50)]
)
def test_row13_sampled_logprobs_are_those_of_the_distribution_drawn_from(
    synced: VllmEngine, hf: HfEngine, prompts: list[Prompt], sampling: Sampling
) -> None:
    from rlhf.rollout.hf_engine import processed_logprobs

    for prompt, answer in zip(prompts[:3], synced.generate(prompts[:3], sampling), strict=True):
        ids = [*hf._processor.prompt_ids(prompt), *answer.token_ids]
        with torch.no_grad():
            logits = hf._model(input_ids=torch.tensor([ids]), **hf._pixels(prompt)).logits[0]
        start = len(ids) - len(answer.token_ids)
        for place, token, logprob in zip(range(start, len(ids)), answer.token_ids, answer.logprobs, strict=True):
            expected = processed_logprobs(logits[place - 1], sampling)[token]
            assert logprob == pytest.approx(float(expected), abs=1e-3)


def test_an_answer_depends_on_its_prompt_and_seed_only(synced: VllmEngine, prompts: list[Prompt]) -> None:
    sampling = Sampling(max_new_tokens=16, seed=7)
    first = synced.generate(prompts, sampling)
    assert _tokens(synced.generate(prompts, sampling)) == _tokens(first)
    assert _tokens(synced.generate(prompts[::-1], sampling)[::-1]) == _tokens(first)
    assert _tokens(synced.generate(prompts[2:3], sampling)) == _tokens(first[2:3])
    assert _tokens(synced.generate(prompts, Sampling(max_new_tokens=16, seed=8))) != _tokens(first)
    twins = [prompts[0], replace(prompts[0], id="twin")]
    assert len(set(_tokens(synced.generate(twins, sampling)))) == 2
    assert synced.generate([], sampling) == []


def test_more_prompts_than_sequences_keep_their_order(synced: VllmEngine, pictures: list[str]) -> None:
    many = make_prompts(pictures, 40)
    answers = synced.generate(many, Sampling(max_new_tokens=6))
    assert [answer.prompt_id for answer in answers] == [prompt.id for prompt in many]


def test_row13_truncated_answers_are_flagged_and_eos_is_kept(
    synced: VllmEngine, hf: HfEngine, processor: Processor, prompts: list[Prompt]
) -> None:
    plain = synced.generate(prompts, Sampling(max_new_tokens=3, temperature=0))
    assert {answer.finish_reason for answer in plain} == {"length"}
    assert {len(answer.token_ids) for answer in plain} == {3}
    # a model that often ends: its row for EOS copies the row of the greedy third token
    head = hf._model.lm_head.weight.clone()
    head[processor.eos_id] = 1.5 * head[plain[0].token_ids[2]]
    sync(synced, [pack([("language_model.lm_head.weight", head)])], 2)
    answers = synced.generate(prompts, Sampling(max_new_tokens=40, temperature=0))
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert ended
    for answer in answers:
        assert len(answer.logprobs) == len(answer.token_ids)
        assert (answer.token_ids[-1] == processor.eos_id) == (answer.finish_reason == "stop")
        assert processor.eos_id not in answer.token_ids[:-1]
        assert "</s>" not in answer.text


def test_an_open_update_refuses_to_answer(synced: VllmEngine, hf: HfEngine, prompts: list[Prompt]) -> None:
    synced.begin_update(4)
    assert synced.version == -1
    with pytest.raises(WeightSyncError, match="version 4 is unfinished"):
        synced.generate(prompts, GREEDY)
    with pytest.raises(WeightSyncError, match="version 4 is unfinished"):
        synced.score(prompts[:1], [[5]])
    sync(synced, _buckets(_state(hf)), 5)
    _assert_equal_answers(synced.generate(prompts, GREEDY), hf.generate(prompts, GREEDY))
    with pytest.raises(WeightSyncError, match="call begin_update first"):
        synced.load_bucket(_buckets(_state(hf))[0])
    with pytest.raises(WeightSyncError, match="call begin_update first"):
        synced.finish_update()


def _tampered(state: dict[str, Tensor]) -> WeightBucket:
    bucket = pack(state.items())
    data = bucket.data.copy()
    data[len(data) // 2] ^= 1
    return replace(bucket, data=data)


def _renamed(state: dict[str, Tensor]) -> WeightBucket:
    return pack([("language_model.model.layers.9.mlp.up_proj.weight", torch.zeros(2, 2))])


def _misshapen(state: dict[str, Tensor]) -> WeightBucket:
    return pack([("language_model.model.norm.weight", torch.zeros(3))])


@pytest.mark.parametrize("make", [_tampered, _renamed, _misshapen])
def test_a_bad_bucket_is_refused_until_a_good_update(
    synced: VllmEngine, hf: HfEngine, prompts: list[Prompt], make: Any
) -> None:
    good = _buckets(_state(hf, 0.3, 5, SYNCED))
    synced.begin_update(8)
    synced.load_bucket(good[0])
    with pytest.raises(WeightSyncError):
        synced.load_bucket(make(_state(hf)))
    with pytest.raises(WeightSyncError, match="must begin again"):
        synced.load_bucket(good[1])
    with pytest.raises(WeightSyncError, match="must begin again"):
        synced.finish_update()
    with pytest.raises(WeightSyncError, match="unfinished"):
        synced.generate(prompts, GREEDY)
    sync(synced, good, 9)
    sync(hf, good, 9)
    _assert_equal_answers(synced.generate(prompts, GREEDY), hf.generate(prompts, GREEDY))


@pytest.mark.parametrize("arrived", [1, 2, 3, 5])
def test_an_update_can_begin_again_half_way(
    synced: VllmEngine, hf: HfEngine, prompts: list[Prompt], arrived: int
) -> None:
    dropped, good = (_buckets(_state(hf, 0.3, seed, SYNCED), size=3) for seed in (21, 22))
    synced.begin_update(2)
    for bucket in dropped[:arrived]:
        synced.load_bucket(bucket)
    sync(synced, good, 3)
    sync(hf, good, 3)
    _assert_equal_answers(synced.generate(prompts, GREEDY), hf.generate(prompts, GREEDY))


def test_a_fused_weight_that_arrived_in_part_is_refused(
    synced: VllmEngine, hf: HfEngine, prompts: list[Prompt]
) -> None:
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    synced.begin_update(2)
    synced.load_bucket(pack([(name, _state(hf)[name])]))
    with pytest.raises(WeightSyncError, match=r"layers\.0\.self_attn\.qkv_proj"):
        synced.finish_update()
    sync(synced, _buckets(_state(hf)), 3)
    _assert_equal_answers(synced.generate(prompts, GREEDY), hf.generate(prompts, GREEDY))


def test_prompts_that_do_not_fit_are_refused(synced: VllmEngine, prompts: list[Prompt]) -> None:
    with pytest.raises(PromptTooLongError, match="new tokens in a context of 256"):
        synced.generate(prompts, Sampling(max_new_tokens=250))
    with pytest.raises(PromptTooLongError, match="in a context of 256"):
        synced.score(prompts[:1], [[5] * 250])
