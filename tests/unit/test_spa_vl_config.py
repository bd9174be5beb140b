"""SPA-VL's 7B presets: the numbers of the seed page, and the machine that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.evaluate import EvaluationConfig
from jobs.infer import InferenceConfig
from jobs.train_reward_model import RewardJobConfig
from rlhf.config import load
from rlhf.online_config import OnlineConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize(("name", "lr"), [("ppo_seed", 5e-7), ("ppo_seed_lora", 1e-6)])
def test_row19_row20_the_seed_presets_have_the_numbers_of_the_seed(name: str, lr: float) -> None:
    config = load(OnlineConfig, CONFIGS / "7b" / f"{name}.yaml")
    assert config.run.name == f"7b/{name}"  # trap T8
    algorithm = config.algorithm
    assert config.model.path == "llava-hf/llava-1.5-7b-hf"
    assert (algorithm.kl_coefficient, algorithm.kl_estimator, algorithm.gamma, algorithm.lam) == (0.1, "k1", 1.0, 1.0)
    assert (algorithm.clip_range, algorithm.value_clip_range, algorithm.value_coefficient) == (0.2, 0.2, 0.1)
    assert (algorithm.epochs, algorithm.whiten_rewards, algorithm.whiten_advantages) == (1, False, False)
    for learner in (config.policy, config.critic):
        assert (learner.optimizer.lr, learner.optimizer.schedule, learner.optimizer.warmup_steps) == (
            lr,
            "cosine",
            10,
        )
        assert learner.optimizer.max_grad_norm == 1.0
        lora = learner.trainable.lora
        assert (lora and (lora.rank, lora.alpha, lora.dropout, len(lora.targets))) == (
            (256, 512, 0.0, 7) if name == "ppo_seed_lora" else None
        )
    assert config.loop.prompts_per_iteration == algorithm.mini_batch_size == 8  # one update per rollout
    assert config.total_optimizer_steps == 93_258 // 8
    assert algorithm.importance_cap is None
    assert config.policy.deepspeed.zero_stage == 2
    # full: said beside the key; ZeRO places state and changes no number
    assert config.critic.deepspeed.zero_stage == (2 if name == "ppo_seed_lora" else 3)


@pytest.mark.parametrize("name", ["ppo", "ppo_guard", "ppo_lora", "ppo_seed", "ppo_seed_lora", "grpo"])
def test_online_presets_fill_one_node_of_eight_gpus(name: str) -> None:
    config = load(OnlineConfig, CONFIGS / "7b" / f"{name}.yaml")
    assert sum(role.ranks * role.gpus for role in config.roles.present().values()) == 8


def test_row27_row28_answers_and_benchmarks_read_what_preparation_writes() -> None:
    """One folder for each half of the test split, named by the comment that prepares it."""
    comment = (CONFIGS / "7b" / "prepare_spa_vl.yaml").read_text()
    infer = load(InferenceConfig, CONFIGS / "7b" / "infer.yaml")
    evaluate = load(EvaluationConfig, CONFIGS / "7b" / "evaluate.yaml")
    assert evaluate.harmeval is not None
    assert evaluate.helpeval is not None
    halves = {"harm": evaluate.harmeval, "help": evaluate.helpeval}
    for split, half in halves.items():
        folder = f"./data/spa_vl_{split}"
        assert folder in comment
        assert (half.path, half.image_root) == (f"{folder}/{split}.json", f"{folder}/images")
    assert (infer.data.prompts, infer.data.image_root) == (halves["harm"].path, halves["harm"].image_root)
    assert evaluate.helpeval.baseline.path == load(OnlineConfig, CONFIGS / "7b" / "ppo.yaml").model.path
    assert evaluate.judge.kind == "openai"
    load(EvaluationConfig, CONFIGS / "7b" / "evaluate.yaml", ["judge={kind: rules}"])


def test_the_guarded_preset_is_ppos_with_another_reward_a_bound_and_harmless_prompts() -> None:
    plain, guarded = (load(OnlineConfig, CONFIGS / "7b" / f"{name}.yaml") for name in ("ppo", "ppo_guard"))
    one, other = plain.model_dump(), guarded.model_dump()
    assert {key for key in one if one[key] != other[key]} == {"run", "data", "reward", "constraints", "selection"}
    assert other["reward"]["rewards"][0]["reward"] == one["reward"]
    assert {key for key in one["data"] if one["data"][key] != other["data"][key]} == {"keywords", "validation"}
    (bound,) = guarded.constraints
    assert (bound.name, bound.max) == ("over_refusal", 0.05)
    assert guarded.selection is not None
    assert (guarded.selection.every, guarded.selection.bounds.over_refusal) == (guarded.run.checkpoint_every, 0.05)
    assert [cost["reward"]["of"] for cost in other["reward"]["costs"]] == [("Benign",)]


@pytest.mark.parametrize("name", ["reward_model", "reward_model_lora"])
def test_row10_the_reward_model_presets_have_the_numbers_of_the_seed(name: str) -> None:
    """Seed page 2: both scripts share every number but the adapters'."""
    config = load(RewardJobConfig, CONFIGS / "7b" / f"{name}.yaml")
    optimizer, lora = config.optimizer, config.trainable.lora
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_ratio, optimizer.weight_decay) == (
        3e-5,
        "constant",
        0.03,
        0.0,
    )
    assert (config.batch.global_rows, config.batch.micro_rows, config.workers.ranks) == (4 * 8, 4, 8)
    assert (config.epochs, config.model.max_length, config.model.dtype, config.run.seed) == (1, 2048, "bfloat16", 42)
    assert (config.objective.loss, config.objective.margin, config.objective.centring_coefficient) == ("spa_vl", 0, 0)
    assert config.trainable.projector
    assert not config.trainable.vision_tower
    assert config.validate_every == 50
    assert config.run.name == f"7b/{name}"
    if name == "reward_model":
        assert lora is None
    else:
        assert lora is not None
        assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (256, 512, 0, 7)
