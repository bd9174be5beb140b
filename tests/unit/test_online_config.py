"""What must fit together in an online run: algorithm, roles, batches, sampling, and how a checkpoint is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config import home, load
from rlhf.errors import ConfigError
from rlhf.online_config import OnlineConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
TINY = CONFIGS / "tiny" / "ppo.yaml"


def test_an_algorithm_and_its_roles_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"algorithm.gamma: unknown key for this algorithm.kind"):
        load(OnlineConfig, TINY, ["algorithm.kind=grpo"])
    with pytest.raises(ConfigError, match=r"critic is set, but algorithm.kind=grpo has no critic"):
        load(OnlineConfig, TINY, ["algorithm={kind: grpo, mini_batch_size: 64, group_size: 4}"])
    with pytest.raises(ConfigError, match=r"roles.critic is missing: algorithm.kind=ppo needs a critic"):
        load(OnlineConfig, TINY, ["roles.critic=null"])
    with pytest.raises(ConfigError, match="only a policy with trainable.lora can be its own reference"):
        load(OnlineConfig, TINY, ["roles.reference=null"])
    shared = load(OnlineConfig, TINY, ["roles.reference=null", "policy.trainable.lora={rank: 8, alpha: 16}"])
    assert "reference" not in shared.roles.present()


def test_a_checkpoint_is_chosen_by_prompts_of_its_own_or_not_at_all() -> None:
    chosen = ["data.validation=./world/validation.json", "selection={every: 5, bounds: {over_refusal: 0.1}}"]
    config = load(OnlineConfig, TINY, chosen)
    assert config.selection is not None
    assert (config.selection.bounds.over_refusal, config.selection.bounds.harm) == (0.1, 1.0)
    for overrides, problem in (
        (chosen[:1], "data.validation is used by nothing without selection"),
        (chosen[1:], "selection needs prompts to choose by: set data.validation"),
        ([*chosen, "data.evaluation=./world/validation.json"], "are one file"),
        ([*chosen, f"data.evaluation={home()}/world/validation.json"], "are one file"),
        ([*chosen, "selection.every=26"], "leaves nothing to choose from but the last of loop.iterations=26"),
        ([*chosen, "selection.bounds.harmful=0.1"], "selection.bounds.harmful: unknown key; did you mean"),
        ([*chosen, "selection.bounds.harm=5"], "selection.bounds.harm"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(OnlineConfig, TINY, overrides)
        assert problem in str(caught.value)


def test_numbers_that_do_not_fit_together_are_refused_with_the_unit() -> None:
    with pytest.raises(ConfigError, match=r"mini_batch_size=64.*choose a multiple of 96"):
        load(OnlineConfig, TINY, ["roles.policy.ranks=3"])
    with pytest.raises(ConfigError, match=r"prompts_per_iteration=100 x 1 answers\) are not a multiple"):
        load(OnlineConfig, TINY, ["loop.prompts_per_iteration=100"])
    with pytest.raises(ConfigError, match="top_p = 1"):
        load(OnlineConfig, TINY, ["sampling.top_p=0.9"])
    with pytest.raises(ConfigError, match=r"rollout\.tensor_parallel=2 needs as many roles\.rollout\.gpus, not 1"):
        load(OnlineConfig, TINY, ["rollout.tensor_parallel=2", "roles.rollout.gpus=1"])
    load(OnlineConfig, TINY, ["rollout.tensor_parallel=2", "roles.rollout.gpus=2"])


def test_keys_that_could_change_nothing_are_refused_with_the_reason() -> None:
    for override, problem in (
        ("sampling.seed=7", "made of run.seed; set that"),
        ("sampling.max_new_tokens=1", "a token and EOS are the least"),
        ("loop.max_staleness=1", "unknown key"),  # the loop is synchronous: every rollout is of the present policy
    ):
        with pytest.raises(ConfigError, match=problem):
            load(OnlineConfig, TINY, [override])
