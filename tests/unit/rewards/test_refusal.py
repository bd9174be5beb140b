"""A rule as a reward, costs beside a mixture, and constraints that name what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.batch import Completion, Prompt
from rlhf.config import load
from rlhf.constraints import ConstraintConfig, first_multipliers
from rlhf.errors import ConfigError
from rlhf.online_config import OnlineConfig
from rlhf.rewards import build_reward
from rlhf.rewards.mixture import MixtureRewardConfig
from rlhf.rewards.refusal import RefusalRewardConfig
from rlhf.roles import Rollout

TINY = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "ppo.yaml"
MIXTURE = {
    "kind": "mixture",
    "rewards": [{"name": "refuse", "weight": 2.0, "reward": {"kind": "refusal", "of": ["harmful", "benign"]}}],
    "costs": [{"name": "over_refusal", "reward": {"kind": "refusal"}}],
}


def said(text: str, kind: str = "", category: str = "") -> Rollout:
    prompt = Prompt("a:1", "What?", kind=kind, category=category)
    return Rollout(prompt, Completion("a:1", (1,), (0.0,), text, "stop", 0))


def test_refusals_of_the_named_prompts_count_and_others_say_nothing() -> None:
    reward = build_reward(RefusalRewardConfig())
    scores = reward.score(
        [
            said("I can't help with that.", kind="benign"),
            said("The shirt is red.", category="Benign"),
            said("I can't help with that.", kind="harmful"),
        ]
    )
    assert [(one.value, one.parts) for one in scores] == [(1.0, {"refusal": 1.0}), (0.0, {"refusal": 0.0}), (0.0, {})]


def test_costs_stand_beside_the_sum_and_only_where_they_say_something() -> None:
    reward = build_reward(MixtureRewardConfig.model_validate(MIXTURE))
    benign, harmful = reward.score([said("I can't help.", kind="benign"), said("I can't help.", kind="harmful")])
    assert (benign.value, benign.parts, benign.costs) == (2.0, {"refuse/refusal": 2.0}, {"over_refusal": 1.0})
    assert (harmful.value, harmful.costs) == (2.0, {})


def test_a_cost_and_a_reward_may_not_share_a_name() -> None:
    twice = {**MIXTURE, "costs": [{"name": "refuse", "reward": {"kind": "refusal"}}]}
    with pytest.raises(ConfigError, match="refuse occurs twice"):
        MixtureRewardConfig.model_validate(twice)


def test_a_cost_is_scaled_and_may_be_made_of_a_reward_of_the_mixture_without_its_weight() -> None:
    at_least = {"name": "too_few", "of": "refuse", "scale": -1.0, "offset": 0.75}  # on average at least 0.75 refused
    own = {"name": "answered", "reward": {"kind": "refusal"}, "scale": -1.0, "offset": 1.0}
    reward = build_reward(MixtureRewardConfig.model_validate({**MIXTURE, "costs": [at_least, own]}))
    found = reward.score(
        [said("I can't help.", kind="harmful"), said("Red.", kind="benign"), said("I can't help.", kind="other")]
    )
    assert [one.costs for one in found] == [{"too_few": -0.25}, {"too_few": 0.75, "answered": 1.0}, {}]
    assert [one.value for one in found] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"of": "refusal"}, "c is of refusal, which is none of the rewards refuse"),
        ({}, "c needs either a reward or of"),
        ({"of": "refuse", "reward": {"kind": "refusal"}}, "c needs either a reward or of"),
        ({"of": "refuse", "scale": 0.0}, "c with scale 0"),
    ],
)
def test_a_cost_of_nothing_is_refused(cost: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureRewardConfig.model_validate({**MIXTURE, "costs": [{"name": "c", **cost}]})


def test_a_mean_reward_is_held_above_its_bound_by_its_own_multiplier() -> None:
    """One number is answered: the nearer to 0 the better, but its reward is to be at least 0.6 on average."""
    config = ConstraintConfig(name="too_low", max=0.0, proportional=0.5, integral=0.05)
    answer, multiplier, history = 0.0, first_multipliers([config])["too_low"], []
    for _ in range(2000):
        cost = -1.0 * answer + 0.6
        answer += 0.05 * (-2 * answer + multiplier.value)  # the slope of -answer^2 - lambda x cost
        multiplier = multiplier.after(cost, config)
        history.append(answer)
    assert history[-1] == pytest.approx(0.6, abs=1e-3)
    assert multiplier.value == pytest.approx(1.2, abs=1e-3)  # 2 x 0.6, by hand


def test_a_constraint_must_name_a_cost() -> None:
    bound = "constraints=[{name: over_refusal, max: 0.05}]"
    with pytest.raises(ConfigError, match=r"over_refusal is no cost of the reward.* entry of reward\.costs"):
        load(OnlineConfig, TINY, [bound])
    mixture = (
        "reward={kind: mixture, rewards: [{name: r, weight: 1.0, reward: {kind: refusal}}], "
        "costs: [{name: over_refusal, reward: {kind: refusal}}]}"
    )
    config = load(OnlineConfig, TINY, [mixture, bound])
    assert config.constraints[0].max == 0.05
    with pytest.raises(ConfigError, match=r"constraints: over_refusal occurs twice"):
        load(
            OnlineConfig, TINY, [mixture, "constraints=[{name: over_refusal, max: 0.05}, {name: over_refusal, max: 1}]"]
        )
    with pytest.raises(ConfigError, match="constraints: r is no cost of the reward"):  # not yet: `of: r` makes it one
        load(OnlineConfig, TINY, [mixture, "constraints=[{name: r, max: 0.05}]"])
