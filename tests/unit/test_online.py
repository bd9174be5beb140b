"""The online loop on real tiny models in one process: what each of its ten steps promises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rlhf.batch import Score
from rlhf.checkpoint import Checkpoint, RunFolder
from rlhf.config import load as load_config
from rlhf.constraints import Multiplier
from rlhf.data.processor import Processor
from rlhf.errors import LogprobGapError, NonFiniteError, StaleRolloutError
from rlhf.metrics import read_json_lines
from rlhf.online import OnlineState, iterate, state_of, train
from rlhf.online_config import OnlineConfig
from rlhf.pareto import Point
from rlhf.roles import Roles, Rollout
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.local_roles import Done, LocalCritic, LocalPolicy, LocalReference, TableReward, local_generator

TINY = Path(__file__).parents[2] / "jobs" / "configs" / "tiny" / "ppo.yaml"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model")).path


def make_config(model_path: str, root: Path, *overrides: str) -> OnlineConfig:
    settings = [
        f"run.root={root}",
        "run.name=ppo",
        "run.checkpoint_every=2",
        f"model.path={model_path}",
        "model.max_length=256",
        f"critic.model.path={model_path}",
        "critic.model.max_length=256",
        "loop.iterations=4",
        "loop.prompts_per_iteration=8",
        "algorithm.mini_batch_size=4",
        "policy.micro_rows=2",
        "critic.micro_rows=4",
        "sampling.max_new_tokens=6",
        "rollout.engine=transformers",
    ]
    return load_config(OnlineConfig, TINY, [*settings, *overrides])


def make_roles(config: OnlineConfig, reward: Callable[[Rollout], float] | None = None) -> Roles:
    policy = LocalPolicy(config)
    return Roles(
        policy,
        LocalCritic(config),
        LocalReference(config.model),
        TableReward(reward or (lambda rollout: float(len(rollout.completion.token_ids)))),
        local_generator(config, policy),
    )


@pytest.fixture
def prompts(tmp_path: Path) -> list:
    return make_prompts(draw_images(tmp_path / "images"), 12)


def test_row14_row20_each_network_steps_once_per_mini_batch_and_the_first_ratio_is_one(
    model_path: str, tmp_path: Path, prompts: list
) -> None:
    """Trap T1: two backward passes must not step one optimizer twice."""
    config = make_config(model_path, tmp_path)
    roles = make_roles(config)
    done = iterate(OnlineState(kl_coefficient=0.05), roles, prompts, Processor.load(config.model), config)
    expected = config.algorithm.epochs * 8 // 4
    assert len(roles.policy.steps) == len(roles.critic.steps) == expected
    assert roles.policy.steps[0]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert roles.policy.steps[-1]["ratio"] != pytest.approx(1.0, abs=1e-5)
    assert done.state == OnlineState(1, 8, 0.05)
    assert roles.rollout.engine.version == 1
    assert done.metrics["rollout/logprob_gap"] < 1e-4
    assert done.metrics["kl/sequence"] == pytest.approx(0.0, abs=1e-4)  # the policy is the reference before it moves


def test_every_prompt_of_an_epoch_is_asked_once(model_path: str, tmp_path: Path, prompts: list) -> None:
    config = make_config(model_path, tmp_path, "loop.prompts_per_iteration=4")
    roles = make_roles(config)
    state, processor = OnlineState(kl_coefficient=0.05), Processor.load(config.model)
    for _ in range(3):
        state = iterate(state, roles, prompts, processor, config).state
    asked = [name for batch in roles.rollout.asked for name in batch]
    assert sorted(asked) == sorted(prompt.id for prompt in prompts)


def test_learning_raises_the_score(model_path: str, tmp_path: Path, prompts: list) -> None:
    """PPO moves a random policy towards a token that the reward likes."""
    config = make_config(
        model_path, tmp_path, "loop.iterations=25", "policy.optimizer.lr=0.003", "algorithm.kl_coefficient=0.0"
    )
    roles = make_roles(config, lambda rollout: sum(token < 100 for token in rollout.completion.token_ids) / 6)
    state, processor = OnlineState(kl_coefficient=0.0), Processor.load(config.model)
    scores = []
    for _ in range(25):
        done = iterate(state, roles, prompts, processor, config)
        state = done.state
        scores.append(done.metrics["score/mean"])
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.2


def test_a_stale_engine_is_an_error(model_path: str, tmp_path: Path, prompts: list) -> None:
    config = make_config(model_path, tmp_path)
    roles = make_roles(config)
    with pytest.raises(StaleRolloutError, match="version 0 at version 3"):
        iterate(OnlineState(iteration=3), roles, prompts, Processor.load(config.model), config)


def test_an_engine_with_other_weights_is_an_error(model_path: str, tmp_path: Path, prompts: list) -> None:
    config = make_config(model_path, tmp_path)
    roles = make_roles(config)
    with torch.no_grad():
        for parameter in roles.policy.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    with pytest.raises(LogprobGapError, match="logprob_gap_bound"):
        iterate(OnlineState(), roles, prompts, Processor.load(config.model), config)


def test_a_nan_score_stops_before_any_update(model_path: str, tmp_path: Path, prompts: list) -> None:
    config = make_config(model_path, tmp_path)
    roles = make_roles(config, lambda rollout: math.nan)
    with pytest.raises(NonFiniteError, match="scores"):
        iterate(OnlineState(), roles, prompts, Processor.load(config.model), config)
    assert roles.policy.steps == []


def test_row24_row25_a_run_writes_its_folder_and_resumes_to_the_same_weights(
    model_path: str, tmp_path: Path, prompts: list
) -> None:
    straight = make_config(model_path, tmp_path / "straight")
    broken = make_config(model_path, tmp_path / "broken")
    processor = Processor.load(straight.model)
    roles = make_roles(straight)
    folder = RunFolder(straight.run, straight)
    assert train(roles, prompts, processor, straight, folder).iteration == 4
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"seconds/generate", "seconds/update", "seconds/sync", "policy/entropy", "value/loss"} <= set(rows[0])
    sample = json.loads((folder.path / "samples.jsonl").read_text().splitlines()[0])
    assert Path(sample["image"]).exists()
    assert {"response", "score", "parts", "policy_version"} <= set(sample)
    folder.close()

    # The same run, dying after iteration 3: its last checkpoint is that of iteration 2.
    first, folder = make_roles(broken), RunFolder(broken.run, broken)
    original = first.rollout.sync

    def dies(version: int) -> object:
        if version == 4:
            raise KeyboardInterrupt
        return original(version)

    first.rollout.sync = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(first, prompts, processor, broken, folder)
    folder.close()
    second, folder = make_roles(broken), RunFolder(broken.run, broken)
    checkpoint = folder.checkpoints.latest()
    assert checkpoint is not None
    assert state_of(checkpoint, broken).iteration == 2
    second.policy.load(checkpoint.folder / "policy")
    second.critic.load(checkpoint.folder / "critic")
    second.rollout.sync(2)
    train(second, prompts, processor, broken, folder)
    for left, right in zip(roles.policy.module.parameters(), second.policy.module.parameters(), strict=True):
        assert torch.equal(left, right)
    steps = [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    folder.close()


def test_row24_a_line_of_metrics_may_stand_for_several_iterations(
    model_path: str, tmp_path: Path, prompts: list
) -> None:
    """The last one always has its line; samples are of every iteration."""
    config = make_config(model_path, tmp_path, "run.log_every=2", "loop.iterations=3", "loop.samples_per_iteration=1")
    folder = RunFolder(config.run, config)
    train(make_roles(config), prompts, Processor.load(config.model), config, folder)
    assert [row["step"] for row in read_json_lines(folder.path / "metrics.jsonl")] == [2, 3]
    assert len(list(read_json_lines(folder.path / "samples.jsonl"))) == 3
    folder.close()


def test_truncated_answers_are_flagged_and_pay(model_path: str, tmp_path: Path, prompts: list) -> None:
    """Trap T12."""
    config = make_config(model_path, tmp_path, "algorithm.truncation_penalty=5.0", "sampling.max_new_tokens=2")
    roles = make_roles(config, lambda rollout: 1.0)
    done = iterate(OnlineState(), roles, prompts, Processor.load(config.model), config)
    truncated = done.metrics["response/truncated_share"]
    assert truncated > 0.5  # a random model rarely ends after one token
    assert done.metrics["score/shaped_mean"] == pytest.approx(1.0 - 5.0 * truncated)
    assert any(sample["truncated"] for sample in done.samples)


def test_state_survives_json(model_path: str, tmp_path: Path) -> None:
    state = OnlineState(7, 56, 0.125, {"refusals": Multiplier(0.5, 1.5, 0.25)}, (Point(3, 0.1, 0.0, 1 / 3),))
    checkpoint = Checkpoint(tmp_path, 7, json.loads(json.dumps(asdict(state))))
    assert state_of(checkpoint, make_config(model_path, tmp_path)) == state


def test_multipliers_follow_their_costs_and_are_part_of_the_state(model_path: str, tmp_path: Path) -> None:
    mixture = (
        "reward={kind: mixture, rewards: [{name: r, weight: 1.0, reward: {kind: refusal}}], "
        "costs: [{name: over_refusal, reward: {kind: refusal}}]}"
    )
    bound = "constraints=[{name: over_refusal, max: 0.1, proportional: 1.0, integral: 1.0}]"
    config = make_config(model_path, tmp_path, mixture, bound, "loop.iterations=2")
    roles = replace(make_roles(config), reward=CostlyReward())
    processor = Processor.load(config.model)
    folder = RunFolder(config.run, config)
    prompts = make_prompts(draw_images(tmp_path / "images"), 16)
    state = train(roles, prompts, processor, config, folder)
    # half of the answers cost 1: violation 0.4 twice, so 0.4 + 0.4 and then 0.4 + 0.8
    assert state.multipliers["over_refusal"].value == pytest.approx(1.2)
    assert state_of(folder.checkpoints.latest(), config) == state
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["constraint/over_refusal_lambda"] for row in rows] == pytest.approx([0.0, 0.8])
    assert [row["constraint/over_refusal"] for row in rows] == [0.5, 0.5]
    assert rows[1]["score/shaped_mean"] < rows[0]["score/shaped_mean"]
    assert [row["score/invalid/guard_answer"] for row in rows] == [0.25, 0.25]
    samples = [json.loads(line) for line in (folder.path / "samples.jsonl").read_text().splitlines()]
    assert [one["invalid"] for one in samples[:4]] == [["guard_answer"], [], [], []]
    folder.close()


class CostlyReward:
    """A score of 1 for everything, a cost of 1 for every second answer, no readable verdict on every fourth."""

    def score(self, rollouts: Sequence[Rollout]) -> Done[list[Score]]:
        return Done(
            [
                Score(1.0, {"one": 1.0}, {"over_refusal": float(n % 2)}, {"guard_answer": n % 4 == 0})
                for n in range(len(rollouts))
            ]
        )
