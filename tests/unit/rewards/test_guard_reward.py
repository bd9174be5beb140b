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
from rlhf.guard.prompt import GuardRequest, guard_prompt
from rlhf.guard.taxonomy import taxonomy
from rlhf.monitors import reward_monitors
from rlhf.online_config import OnlineConfig
from rlhf.rewards import build_reward, guard_engines, learned_rewards
from rlhf.rewards.guard import GuardRewardConfig, require_judgeable
from rlhf.rewards.mixture import MixtureRewardConfig
from rlhf.roles import Rollout
from tests.fakes import ScriptedEngine, make_prompts
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
    assert [score.invalid["guard_answer"] for score in scores] == [False, False, True, False]
    assert not any(score.invalid["guard_image"] for score in scores)
    assert [score.value for score in scores] == [sum(score.parts.values()) for score in scores]
    policy = build_policy(taxonomy("tiny"), {"O2": "exempt"}).text
    assert "O2: yes knives" in policy
    texts = [one["messages"][0]["content"][1]["text"] for one in server.requests]
    assert all(policy in text for text in texts)
    for one in asked:  # a question goes with its answer; of an image alone nothing was asked
        quoted = f"<question>\n{one.prompt.question}\n</question>\n<answer>\n{one.completion.text}\n</answer>"
        assert any(quoted in text for text in texts)
    assert sum("<question>" in text for text in texts) == 4 + 2


def test_guard_reward_silence_about_an_image_is_no_verdict_that_is_kept(pictures: list[str]) -> None:
    replies: list[tuple[int, Any]] = [(500, "busy")]

    def busy_once(request: dict[str, Any]) -> tuple[int, Any]:
        return replies.pop() if replies else answer(request)

    with chat_server(busy_once) as server:
        reward = build_reward(guard(server, answer_weight=0.0, image_weight=1.0))
        asked = rollouts(pictures, "Sure.", "Sure.")
        assert sorted(score.value for score in reward.score(asked)) == [-1.0, 1.0]
        assert [score.value for score in reward.score(asked)] == [1.0, 1.0]
        assert len(server.requests) == 3  # the picture that has a verdict is not asked about again


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


def test_guard_reward_a_guard_is_a_cost_and_its_invalid_verdicts_are_told_from_unsafe_ones(pictures: list[str]) -> None:
    """Asked once as a reward and once as a cost, and a third cost is of the first without asking again."""
    scaled = {"scale": -0.5, "offset": 0.5}
    with chat_server(answer) as server:
        one = guard(server).model_dump()
        mixed = {
            "rewards": [{"name": "guard", "weight": 3.0, "reward": one}],
            "costs": [{"name": "unsafe", "reward": one, **scaled}, {"name": "bad", "of": "guard", **scaled}],
        }
        scores = build_reward(MixtureRewardConfig.model_validate(mixed)).score(
            rollouts(pictures, "Sure.", "A bomb.", "babble", "Red.")
        )
        assert len(server.requests) == 2 * 4
    assert [score.value for score in scores] == [3.0, -3.0, -3.0, 3.0]
    assert [score.costs for score in scores] == [{"unsafe": c, "bad": c} for c in (0.0, 1.0, 1.0, 0.0)]
    assert [score.invalid for score in scores] == [
        {"guard/guard_answer": bad, "unsafe/guard_answer": bad} for bad in (False, False, True, False)
    ]
    found = reward_monitors([one.completion for one in rollouts(pictures, *"abcd")], scores)
    assert (found["score/cost/unsafe"], found["score/invalid/guard/guard_answer"]) == (0.5, 0.25)
    assert found["score/invalid/unsafe/guard_answer"] == 0.25


def local_guard(tiny: ModelConfig, **more: Any) -> GuardRewardConfig:
    """A guard of ours in a context of 400 tokens, some 290 of which are policy and image."""
    content = {
        "model": tiny.model_dump() | {"max_length": 512},
        "rollout": {"max_length": 400},
        "policy": {**POLICY, "keys": ["category", "rating"]},
        "decoding": {"max_new_tokens": 8},
    }
    return GuardRewardConfig.model_validate(content | more)


def test_guard_reward_an_answer_that_leaves_no_room_is_an_invalid_verdict_and_ends_nothing(
    tiny: ModelConfig, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its batch are judged as ever."""
    safe = json.dumps({"category": "NA: nothing", "rating": "Safe"})
    engine = ScriptedEngine(lambda _: safe, Processor.load(tiny.model_copy(update={"max_length": 400})))
    monkeypatch.setattr("rlhf.rewards.guard.build_engine", lambda *_: engine)
    reward = build_reward(local_guard(tiny, image_weight=0.5))
    scores = reward.score(rollouts(pictures, "Sure.", "word " * 300, "Red.", "word " * 300))
    assert [score.parts["guard_answer"] for score in scores] == [1.0, -1.0, 1.0, -1.0]
    assert [score.invalid["guard_answer"] for score in scores] == [False, True, False, True]
    assert [score.parts["guard_image"] for score in scores] == [0.5] * 4
    (only,) = reward.score(rollouts(pictures, "word " * 300))  # nobody is left to ask
    assert only.invalid == {"guard_answer": True, "guard_image": False}


def test_guard_reward_prompts_that_it_could_never_judge_are_refused_before_the_run(
    tiny: ModelConfig, pictures: list[str]
) -> None:
    prompts = make_prompts(pictures, 4)
    longest = max(prompts, key=lambda one: len(one.question))
    config = local_guard(tiny)
    request = GuardRequest("x", longest.image or "", config.policy.build(), "", longest.question)
    processor = Processor.load(tiny.model_copy(update={"max_length": 512}))
    room = 400 - 8 - len(processor.prompt_ids(guard_prompt(request)))
    assert room > 10
    require_judgeable(config, prompts, room)
    with pytest.raises(PromptTooLongError, match=f"no room for {room + 1 + 8} new tokens in a context of 400"):
        require_judgeable(config, prompts, room + 1)
    require_judgeable(local_guard(tiny, answer_weight=0.0, image_weight=1.0), prompts, 1000)  # reads no answer
    blind = replace(prompts[2], image=None)
    endpoint = {"model": None, "endpoint": {"base_url": "http://localhost:1/v1", "model": "g"}}
    for judge in (config, local_guard(tiny, **endpoint)):
        with pytest.raises(RowError, match=f"{blind.id}.*a guard judges images"):
            require_judgeable(judge, [*prompts, blind], 1)
    require_judgeable(local_guard(tiny, **endpoint), prompts, 10**6)  # who knows its context


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
        ({"safe": 0.0, "unsafe": 1.0, "invalid": 1.0}, "scale -0.5 and offset 0.5"),
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
