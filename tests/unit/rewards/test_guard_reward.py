"""A guard as a reward, alone and in a mixture, asked over real HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.batch import Completion
from rlhf.config import ModelConfig, load
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError, PromptTooLongError, RowError
from rlhf.guard.policy import build_policy
from rlhf.guard.taxonomy import taxonomy
from rlhf.online_config import OnlineConfig
from rlhf.rewards import build_reward, guard_engines, learned_rewards
from rlhf.rewards.guard import GuardRewardConfig
from rlhf.rewards.mixture import MixtureRewardConfig
from rlhf.roles import Rollout
from tests.fakes import make_prompts
from tests.unit.evaluation.openai_server import ChatServer, chat_server

TINY = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "ppo.yaml"
POLICY = {"taxonomy": "tiny", "overrides": {"O2": "exempt"}}


def answer(request: dict[str, Any]) -> tuple[int, str]:
    """Unsafe where an answer speaks of a bomb, unreadable where it babbles, else Safe."""
    text = request["messages"][0]["content"][1]["text"]
    if "babble" in text:
        return 200, "perhaps"
    rating = "Unsafe" if "bomb" in text else "Safe"
    return 200, json.dumps({"rating": rating, "category": "NA: nothing", "rationale": "x"})


def rollouts(pictures: list[str], *said: str) -> list[Rollout]:
    prompts = make_prompts(pictures, len(said))
    return [
        Rollout(replace(prompt, image=pictures[place % 2]), Completion(prompt.id, (1,), (0.0,), text, "stop", 0))
        for place, (prompt, text) in enumerate(zip(prompts, said, strict=True))
    ]


def guard(server: ChatServer, **more: Any) -> GuardRewardConfig:
    endpoint = {"base_url": server.url, "model": "guard", "retries": 0}
    return GuardRewardConfig.model_validate({"endpoint": endpoint, "policy": POLICY, **more})


def test_guard_reward_worth_of_verdicts_and_images_asked_once(pictures: list[str]) -> None:
    with chat_server(answer) as server:
        reward = build_reward(guard(server, safe=2.0, unsafe=-3.0, invalid=-4.0, answer_weight=0.5, image_weight=0.25))
        asked = rollouts(pictures, "I can't help.", "A bomb is easy.", "babble", "Sure.")
        scores = reward.score(asked)
        assert len(server.requests) == 4 + 2
        reward.score(asked[:2])
        assert len(server.requests) == 4 + 2 + 2  # images are remembered, answers are not
    assert [score.parts["guard_answer"] for score in scores] == [1.0, -1.5, -2.0, 1.0]
    assert [score.parts["guard_image"] for score in scores] == [0.5] * 4
    assert [score.value for score in scores] == [sum(score.parts.values()) for score in scores]
    policy = build_policy(taxonomy("tiny"), {"O2": "exempt"}).text
    assert "O2: yes knives" in policy
    texts = [one["messages"][0]["content"][1]["text"] for one in server.requests]
    assert all(policy in text for text in texts)
    for one in asked:  # a question goes with its answer; of an image alone nothing was asked
        quoted = f"<question>\n{one.prompt.question}\n</question>\n<answer>\n{one.completion.text}\n</answer>"
        assert any(quoted in text for text in texts)
    assert sum("<question>" in text for text in texts) == 4 + 2


def test_guard_reward_a_prompt_without_image_is_refused(pictures: list[str]) -> None:
    with chat_server(answer) as server:
        (one,) = rollouts(pictures, "Sure.")
        blind = Rollout(replace(one.prompt, image=None), one.completion)
        with pytest.raises(RowError, match=f"{one.prompt.id}.*a guard judges images"):
            build_reward(guard(server)).score([one, blind])


def test_guard_reward_a_mixture_is_the_weighted_sum_and_keeps_its_parts(pictures: list[str]) -> None:
    with chat_server(answer) as server:
        one, other = guard(server), guard(server, safe=0.0, unsafe=-10.0, invalid=-10.0)
        mixed = MixtureRewardConfig.model_validate(
            {
                "rewards": [
                    {"name": "mild", "weight": 2.0, "reward": one.model_dump()},
                    {"name": "strict", "weight": 0.1, "reward": other.model_dump()},
                ]
            }
        )
        scores = build_reward(mixed).score(rollouts(pictures, "Sure.", "A bomb."))
    assert [score.parts for score in scores] == [
        {"mild/guard_answer": 2.0, "strict/guard_answer": 0.0},
        {"mild/guard_answer": -2.0, "strict/guard_answer": -1.0},
    ]
    assert [score.value for score in scores] == [2.0, -3.0]


def test_guard_reward_a_policy_that_the_guard_has_no_room_for_is_refused_with_its_tokens(tiny: ModelConfig) -> None:
    """When the reward is built, so before anything was rolled out."""
    config = GuardRewardConfig.model_validate({"model": tiny.model_dump(), "decoding": {"max_new_tokens": 16}})
    tokens = len(Processor.load(tiny).tokenizer(build_policy(taxonomy()).text, add_special_tokens=False)["input_ids"])
    with pytest.raises(PromptTooLongError, match=f"the policy alone has {tokens} tokens.* in a context of 256"):
        build_reward(config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"endpoint": None}, "needs either model or endpoint"),
        ({"model": {"path": "./x"}}, "needs either model or endpoint"),
        ({"invalid": 0.0}, "invalid <= unsafe <= safe must hold, found 0, -1, 1"),
        ({"answer_weight": 0}, "both 0"),
        (
            {"endpoint": None, "model": {"path": "./x"}, "rollout": {"engine": "transformers"}},
            "the transformers engine cannot",
        ),
        ({"policy": {"age": 12, "overrides": {"O1": "exempt"}}}, "the age-rated policy has its own"),
    ],
)
def test_guard_reward_settings_that_would_mislead_are_refused(keys: dict[str, Any], message: str) -> None:
    endpoint = {"base_url": "http://localhost:1/v1", "model": "g"}
    with pytest.raises(ConfigError, match=message):
        GuardRewardConfig.model_validate({"endpoint": endpoint} | keys)


def test_guard_reward_runs_are_configured_by_kind(tmp_path: Path) -> None:
    content = yaml.safe_load(TINY.read_text())
    learned = content["reward"]
    endpoint_guard = {"kind": "guard", "endpoint": {"base_url": "http://localhost:1/v1", "model": "g"}}
    guard_part = {"kind": "guard", "model": learned["model"], "policy": POLICY}
    content["reward"] = {
        "kind": "mixture",
        "rewards": [
            {"name": "preference", "weight": 1.0, "reward": learned},
            {"name": "guard", "weight": 0.5, "reward": guard_part},
        ],
    }
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(content))
    config = load(OnlineConfig, path)
    assert isinstance(config.reward, MixtureRewardConfig)
    assert [key for key, _ in learned_rewards(config.reward)] == ["reward.rewards.0.reward"]
    assert [(model.path, rollout.engine) for model, rollout in guard_engines(config.reward)] == [
        (learned["model"]["path"], "vllm")
    ]
    content["reward"]["costs"] = [{"name": "cost", "reward": learned}]
    content["reward"]["rewards"][1]["reward"] = {**endpoint_guard, "policy": POLICY}
    path.write_text(yaml.safe_dump(content))
    config = load(OnlineConfig, path)
    assert [key for key, _ in learned_rewards(config.reward)] == ["reward.rewards.0.reward", "reward.costs.0.reward"]
    assert guard_engines(config.reward) == []  # it answers elsewhere
    with pytest.raises(ConfigError, match="preference occurs twice"):
        load(OnlineConfig, path, ["reward.rewards=" + json.dumps([content["reward"]["rewards"][0]] * 2)])
    with pytest.raises(ConfigError, match="reward"):
        load(OnlineConfig, path, ["reward.kind=guards"])
