"""Constrained decoding in the real vLLM: an untrained model says what the schema allows; other requests are free."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.guard.guards import EngineGuard, GuardDecoding
from rlhf.guard.policy import age_policy, build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import answer_text, verdict_schema
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, RolloutEngine, Sampling
from rlhf.rollout.vllm_engine import answer_grammar, cpu_environment

pytestmark = pytest.mark.slow

TINY = build_policy(taxonomy("tiny"), keys=("rating", "category"))


@pytest.fixture(scope="module")
def vllm(tiny: ModelConfig) -> Iterator[RolloutEngine]:
    config = RolloutConfig(engine="vllm", dtype="float32", max_length=512, max_sequences=16, kv_cache_mb=64)
    model = tiny.model_copy(update={"max_length": 512})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        yield build_engine(model, config, Processor.load(model))


def test_guard04_the_grammar_takes_every_target_and_no_other_rating(tiny: ModelConfig) -> None:
    """A length limit on strings forbids escapes in this grammar: without one, a rationale may quote."""
    xgrammar = pytest.importorskip("xgrammar")
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(Processor.load(tiny).tokenizer))
    for policy in (build_policy(taxonomy("eu")), build_policy(taxonomy(), keys=("rating",)), age_policy(12).policy):
        grammar = compiler.compile_grammar(answer_grammar(verdict_schema(policy)))
        for category in policy.categories:
            target = answer_text(policy, "Unsafe", [category], 'It says "go" } {\n\\ now.')
            for learned in (target, f" {target}"):  # behind "ASSISTANT:" an answer begins with a blank
                assert xgrammar.GrammarMatcher(grammar).accept_string(learned), category
            assert not xgrammar.GrammarMatcher(grammar).accept_string(target.replace('"Unsafe"', '"unsafe"'))
        assert not xgrammar.GrammarMatcher(grammar).accept_string("The picture")


def test_guard04_an_untrained_model_is_held_to_the_schema(vllm: RolloutEngine, pictures: list[str]) -> None:
    """Random weights, hot: unconstrained nothing is readable, constrained every finished answer is strict JSON."""
    asked = [
        GuardRequest(f"{place}:{number}", path, TINY) for place, path in enumerate(pictures) for number in range(4)
    ]
    hot = {"temperature": 1.0, "max_new_tokens": 160}
    free = EngineGuard(vllm, GuardDecoding(constrained=False, **hot)).judge(asked)
    assert {verdict.status for verdict in free} == {"invalid"}
    held = EngineGuard(vllm, GuardDecoding(**hot)).judge(asked)
    finished = [verdict for verdict in held if verdict.raw.rstrip().endswith("}")]
    assert len(finished) >= len(held) // 2  # white space between keys is free, so a few may fill the budget with it
    assert {verdict.status for verdict in finished} == {"json"}
    assert {verdict.rating for verdict in finished} == {"Safe", "Unsafe"}
    after = vllm.generate([Prompt("free", "Hello?", pictures[0])], Sampling(max_new_tokens=8))
    assert not after[0].text.startswith("{")
