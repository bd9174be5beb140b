"""The reference engine against transformers' own generation and numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import PromptTooLongError, WeightSyncError
from rlhf.models.keys import LLAVA, to_hub
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.hf_engine import HfEngine, processed_logprobs
from rlhf.rollout.weights import fingerprint, pack
from tests.fakes import make_prompts


@pytest.fixture
def engine(tiny: ModelConfig) -> HfEngine:
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=256)
    built = build_engine(tiny, config, Processor.load(tiny))
    assert isinstance(built, HfEngine)
    return built


def test_greedy_is_transformers_greedy(engine: HfEngine, tiny: ModelConfig, pictures: list[str]) -> None:
    from transformers import LlavaForConditionalGeneration

    processor = Processor.load(tiny)
    model = LlavaForConditionalGeneration.from_pretrained(tiny.path, dtype=torch.float32)
    prompts = make_prompts(pictures, 3) + [replace(make_prompts([], 1)[0], id="text")]
    answers = engine.generate(prompts, Sampling(max_new_tokens=12, temperature=0))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([processor.prompt_ids(prompt)])
        pixels = {} if prompt.image is None else {"pixel_values": processor.pixels(prompt.image)[None]}
        out = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, **pixels)[0, ids.shape[1] :]
        assert list(answer.token_ids) == out.tolist()
        assert answer.prompt_id == prompt.id
    again = engine.score(prompts, [answer.token_ids for answer in answers])
    for answer, scores in zip(answers, again, strict=True):
        assert answer.logprobs == pytest.approx(scores, abs=1e-5)


def test_a_begun_answer_is_gone_on_with(engine: HfEngine, tiny: ModelConfig, pictures: list[str]) -> None:
    processor = Processor.load(tiny)
    (prompt,) = make_prompts(pictures, 1)
    greedy = Sampling(max_new_tokens=6, temperature=0)
    begun = replace(prompt, begun="The ball is")
    (answer,) = engine.generate([begun], greedy)
    learned = list(processor.encode(prompt, "The ball is").ids[:-1])
    given = learned[len(processor.prompt_ids(prompt)) :]
    scores = engine.score([prompt], [[*given, *answer.token_ids]])[0][len(given) :]
    assert scores == pytest.approx(answer.logprobs, abs=1e-5)
    assert answer.token_ids != engine.generate([prompt], greedy)[0].token_ids


def test_a_seed_belongs_to_a_prompt(engine: HfEngine, pictures: list[str]) -> None:
    prompts = make_prompts(pictures, 4)
    first = engine.generate(prompts, Sampling(max_new_tokens=8, seed=1))
    reverse = engine.generate(prompts[::-1], Sampling(max_new_tokens=8, seed=1))
    assert first == reverse[::-1]
    assert first != engine.generate(prompts, Sampling(max_new_tokens=8, seed=2))


def test_the_engine_has_a_context_of_its_own(tiny: ModelConfig, pictures: list[str]) -> None:
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=40)
    engine = build_engine(tiny, config, Processor.load(tiny))
    with pytest.raises(PromptTooLongError, match="context of 40"):
        engine.generate(make_prompts(pictures, 1), Sampling(max_new_tokens=30))


def test_an_update_replaces_weights_and_refuses_answers_meanwhile(engine: HfEngine, pictures: list[str]) -> None:
    prompts, greedy = make_prompts(pictures, 2), Sampling(max_new_tokens=8, temperature=0)
    before = engine.generate(prompts, greedy)
    head = torch.randn(engine._model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    bucket = pack([(to_hub("lm_head.weight", LLAVA), head)])
    engine.begin_update(3)
    engine.load_bucket(bucket)
    assert engine.version == -1
    with pytest.raises(WeightSyncError, match="unfinished"):
        engine.generate(prompts, greedy)
    with pytest.raises(WeightSyncError, match="unfinished"):
        engine.score(prompts, [[5], [6]])
    assert engine.finish_update() == fingerprint([bucket.digest])
    after = engine.generate(prompts, greedy)
    assert [answer.policy_version for answer in after] == [3, 3]
    assert [answer.token_ids for answer in after] != [answer.token_ids for answer in before]


@pytest.mark.parametrize("name", ["language_model.lm_head.bias", "somewhere.else", "language_model.model.norm.weight"])
def test_weights_that_do_not_fit_are_refused(engine: HfEngine, name: str) -> None:
    engine.begin_update(1)
    with pytest.raises(WeightSyncError):
        engine.load_bucket(pack([(name, torch.zeros(3))]))
    with pytest.raises(WeightSyncError, match="must begin again"):
        engine.finish_update()


def test_processed_logprobs_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert processed_logprobs(logits, Sampling()).exp().tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert processed_logprobs(logits, Sampling(top_k=2)).exp().tolist() == pytest.approx([0.625, 0.375, 0, 0])
    # 0.5 alone is short of 0.6, so the second token is in; 0.8 is not short of it
    assert processed_logprobs(logits, Sampling(top_p=0.6)).exp().tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert processed_logprobs(logits, Sampling(top_p=0.01)).exp().tolist() == pytest.approx([1, 0, 0, 0])
    cooled = processed_logprobs(logits, Sampling(temperature=0.5)).exp()
    squares = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert cooled.tolist() == pytest.approx((squares / squares.sum()).tolist())
