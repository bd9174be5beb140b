"""Adapters in the real vLLM engine: swapped in memory, in place of the whole weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rlhf.batch import Prompt
from rlhf.config import LoraConfig, ModelConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from rlhf.models.lora import is_adapter
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, RolloutEngine, Sampling
from rlhf.rollout.vllm_engine import VllmEngine, cpu_environment
from tests.fakes import make_prompts
from tests.integration.syncing import moved_policy, sent, sync

pytestmark = pytest.mark.slow

LORA = LoraConfig(rank=4, alpha=8)
GREEDY = Sampling(max_new_tokens=12, temperature=0)
FILLER = "Look at the picture of the old house near the green tree. " * 3  # longer than two blocks of the KV cache


@pytest.fixture(scope="module")
def vllm(tiny: ModelConfig) -> Iterator[RolloutEngine]:
    config = RolloutConfig(engine="vllm", dtype="float32", max_length=256, max_sequences=16, kv_cache_mb=32)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        yield build_engine(tiny, config, Processor.load(tiny), lora=LORA)


@pytest.fixture(scope="module")
def prompts(pictures: list[str]) -> list[Prompt]:
    return make_prompts(pictures, 6, FILLER)


def policy(tiny: ModelConfig, seed: int, projector: bool = True) -> PolicyModel:
    """A policy whose adapters (and projector) are far from their start."""
    return moved_policy(tiny, TrainableConfig(lora=LORA, projector=projector), seed)


@torch.no_grad()
def learner_logprobs(model: PolicyModel, prompts: list[Prompt], answers: list[tuple[int, ...]]) -> Tensor:
    tokens = model.backbone.processor.join(prompts, answers)
    return model(tokens)[0][tokens.response_mask]


@pytest.mark.parametrize("projector", [True, False])
def test_the_engine_answers_as_the_adapted_policy(
    vllm: RolloutEngine, tiny: ModelConfig, prompts: list[Prompt], projector: bool
) -> None:
    for version in (1, 2):  # the second swap must not leave anything of the first, nor its cached prefixes
        model = policy(tiny, seed=10 * version + projector, projector=projector)
        if not projector:  # an earlier case moved the engine's; this policy will not send one
            sync(vllm, sent(PolicyModel(load(tiny, TrainableConfig(lora=LORA)))), 91)
        sync(vllm, sent(model), version)
        completions = vllm.generate(prompts, GREEDY)
        engine = torch.tensor([p for one in completions for p in one.logprobs])
        learner = learner_logprobs(model, prompts, [one.token_ids for one in completions])
        assert {one.policy_version for one in completions} == {version}
        torch.testing.assert_close(engine, learner, atol=1e-4, rtol=0)
        scored = vllm.score(prompts, [one.token_ids for one in completions])
        torch.testing.assert_close(torch.tensor([p for one in scored for p in one]), learner, atol=1e-4, rtol=0)


def test_both_engines_agree(vllm: RolloutEngine, tiny: ModelConfig, prompts: list[Prompt]) -> None:
    model = policy(tiny, seed=5)
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=256)
    slow = build_engine(tiny, config, Processor.load(tiny), lora=LORA)
    before = [one.token_ids for one in slow.generate(prompts, GREEDY)]
    for engine in (vllm, slow):
        sync(engine, sent(model), 7)
    after = [one.token_ids for one in slow.generate(prompts, GREEDY)]
    assert after == [one.token_ids for one in vllm.generate(prompts, GREEDY)]
    assert after != before


def test_of_the_language_model_only_adapters_travel(tiny: ModelConfig) -> None:
    names = [name for bucket in sent(policy(tiny, 1)) for name in bucket.names]
    assert all(is_adapter(name) or name.startswith("multi_modal_projector.") for name in names)
    adapter = sum(bucket.data.nbytes for bucket in sent(policy(tiny, 1, projector=False)))
    whole = sum(p.numel() * 4 for p in load(tiny, None).vlm.model.language_model.parameters())
    assert adapter < whole


def test_a_rank_that_the_engine_has_no_kernel_for(tiny: ModelConfig) -> None:
    config = RolloutConfig(engine="vllm", dtype="float32", max_length=256)
    with pytest.raises(ConfigError, match="ranks up to 512"):
        VllmEngine(tiny, config, Processor.load(tiny), lora=LoraConfig(rank=513))
