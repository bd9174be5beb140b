"""The canary: what engine and learner are compared on, whatever the data and the sampling are like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.batch import Prompt
from rlhf.config import load
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load as load_model
from rlhf.online_config import OnlineConfig
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.canary import Canary
from rlhf.rollout.hf_engine import HfEngine
from tests.fakes import draw_images, make_prompts, tiny_model

CONFIG = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "ppo.yaml"
PLAIN = RolloutConfig(engine="transformers", dtype="float32", max_length=256)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Processor, list[str]]:
    folder = tmp_path_factory.mktemp("canary")
    model = tiny_model(folder / "model")
    return model, Processor.load(model), draw_images(folder / "images")


def test_image_prompts_are_taken_first_and_text_where_there_is_no_image(made: tuple[Any, Processor, list[str]]) -> None:
    _, processor, images = made
    pictures, texts = make_prompts(images, 4), [Prompt(f"t:{number}", "Why?") for number in range(3)]
    assert [one.id for one in Canary.of([*texts, *pictures], processor, 2, 24).prompts] == ["fake:0", "fake:1"]
    assert len(Canary.of([*texts, *pictures], processor, 9, 24).prompts) == 4
    assert [one.id for one in Canary.of(texts, processor, 2, 24).prompts] == ["t:0", "t:1"]


@pytest.mark.parametrize("budget", [2, 5, 100])
def test_answer_and_the_engines_own_token_fit_the_budget(made: tuple[Any, Processor, list[str]], budget: int) -> None:
    _, processor, images = made
    canary = Canary.of(make_prompts(images, 3), processor, 3, budget)
    assert {len(answer) for answer in canary.answers} <= set(range(1, budget))
    assert len(set(canary.answers)) == 1
    assert int(canary.tokens.response_mask.sum()) == sum(len(answer) for answer in canary.answers)


def test_the_gap_is_the_largest_difference_and_not_a_number_is_kept(made: tuple[Any, Processor, list[str]]) -> None:
    canary = Canary.of(make_prompts(made[2], 2), made[1], 2, 4)
    learner = torch.where(canary.tokens.response_mask, -1.0, 77.0)  # what is no answer does not count
    scored = [[-1.0, -1.0, -1.25], [-0.5, -1.0, -1.0]]
    assert canary.gap(scored, learner) == 0.5
    assert canary.gap(scored, learner) != canary.gap([scored[0], [-1.0] * 3], learner) == 0.25
    assert not canary.gap([scored[0], [-1.0, float("nan"), -1.0]], learner) <= 1e9


class Here:
    """What a rank's learner does with micro-batches, without DeepSpeed."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module.eval()

    def infer(self, micro_batches: Any, forward: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            return [forward(self.module, micro) for micro in micro_batches]


def test_row32_the_canary_is_at_temperature_one_and_rollouts_are_at_theirs(
    made: tuple[Any, Processor, list[str]],
) -> None:
    """An engine scores given answers unscaled; what it draws carries the log-probabilities of the scaled policy."""
    policy = pytest.importorskip("actors.policy", reason="needs ray")
    model, processor, images = made
    prompts = make_prompts(images, 4)
    config = load(OnlineConfig, CONFIG, ["sampling.temperature=0.5"])
    rank = policy.PolicyRank(0, 1, torch.get_num_threads())
    rank.config, rank.learner = config, Here(PolicyModel(load_model(model, None)))
    engine, canary = HfEngine(model, PLAIN, processor), Canary.of(prompts, processor, 4, 24)
    engine.begin_update(0)
    engine.finish_update()
    scored = engine.score(canary.prompts, canary.answers)
    assert canary.gap(scored, rank.unscaled_logprobs(canary.tokens)) < 1e-4
    assert canary.gap(scored, rank.logprobs(canary.tokens)) > 0.01
    drawn = engine.generate(prompts, Sampling(max_new_tokens=6, temperature=0.5))
    tokens = processor.join(prompts, [one.token_ids for one in drawn])
    learner = rank.logprobs(tokens)[tokens.response_mask]
    assert torch.allclose(learner, torch.tensor([p for one in drawn for p in one.logprobs]), atol=1e-4)
