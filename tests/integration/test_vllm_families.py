"""Other architectures in the real vLLM engine: answers, weight sync with tied embeddings, adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from rlhf.batch import Prompt
from rlhf.config import LoraConfig, ModelConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import WeightSyncError
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from rlhf.models.lora import wire_name
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, RolloutEngine, Sampling
from rlhf.rollout.vllm_engine import cpu_environment
from rlhf.rollout.weights import pack
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.integration.syncing import moved_policy, sent, sync

pytestmark = pytest.mark.slow

LORA = LoraConfig(rank=4, alpha=8)
GREEDY = Sampling(max_new_tokens=12, temperature=0)
FILLER = "Look at the picture of the old house near the green tree. " * 3  # longer than two blocks of the KV cache
CASES = {
    "llava_interleave": ("llava_interleave", None),
    "llava_interleave with adapters": ("llava_interleave", LORA),
    "llava_onevision": ("llava_onevision", None),
    "qwen2_5_vl": ("qwen2_5_vl", None),
    "qwen2_5_vl with adapters": ("qwen2_5_vl", LORA),
    "qwen2_vl": ("qwen2_vl", None),
}


@pytest.fixture(scope="module", params=CASES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelConfig, RolloutEngine, LoraConfig | None]]:
    kind, lora = CASES[request.param]
    model = tiny_model(tmp_path_factory.mktemp("model"), max_length=320, kind=kind)  # type: ignore[arg-type]
    config = RolloutConfig(engine="vllm", dtype="float32", max_length=320, max_sequences=16, kv_cache_mb=32)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        yield model, build_engine(model, config, Processor.load(model), lora=lora), lora


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    asked = make_prompts(draw_images(tmp_path_factory.mktemp("images")), 6, FILLER)
    return [*asked, replace(asked[0], id="text", image=None)]


@torch.no_grad()
def assert_same(engine: RolloutEngine, model: PolicyModel, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    """Answers, and both kinds of log-probabilities of the engine, are the learner's; placeholders may be sampled."""
    completions = engine.generate(prompts, GREEDY)
    answers = [one.token_ids for one in completions]
    tokens = model.backbone.processor.join(prompts, answers)
    learner = model(tokens)[0][tokens.response_mask]
    drawn = torch.tensor([p for one in completions for p in one.logprobs])
    torch.testing.assert_close(drawn, learner, atol=1e-4, rtol=0)
    image = model.backbone.processor.image_id
    given = [(9, image, image, 11), *answers[1:]]
    tokens = model.backbone.processor.join(prompts, given)
    learner = model(tokens)[0][tokens.response_mask]
    scored = torch.tensor([p for one in engine.score(prompts, given) for p in one])
    torch.testing.assert_close(scored, learner, atol=1e-4, rtol=0)
    return answers


def test_row29_vllm_answers_as_the_policy_before_and_after_every_sync(
    served: tuple[ModelConfig, RolloutEngine, LoraConfig | None], prompts: list[Prompt]
) -> None:
    """Tied embeddings travel once; the LM head must compute with the new ones, with any packed copy renewed."""
    model, engine, lora = served
    answers = [assert_same(engine, PolicyModel(load(model, None)).eval(), prompts)]
    for version in (1, 2):
        moved = moved_policy(model, TrainableConfig(lora=lora), seed=version)
        sync(engine, sent(moved), version)
        answers.append(assert_same(engine, moved, prompts))
    assert answers[0] != answers[1] != answers[2]


def test_an_update_that_was_dropped_leaves_nothing_behind(
    served: tuple[ModelConfig, RolloutEngine, LoraConfig | None], prompts: list[Prompt]
) -> None:
    model, engine, lora = served
    dropped, kept = (moved_policy(model, TrainableConfig(lora=lora), seed=seed) for seed in (3, 4))
    names = dropped.backbone.family.names
    named = [(wire_name(n, names), p) for n, p in dropped.backbone.vlm.named_parameters() if p.requires_grad]
    engine.begin_update(3)
    engine.load_bucket(pack(named[: len(named) // 2]))
    with pytest.raises(WeightSyncError):
        engine.load_bucket(pack([("language_model.model.layers.9.mlp.up_proj.weight", torch.zeros(2, 2))]))
    sync(engine, sent(kept), 4)
    assert_same(engine, kept, prompts)
