"""The configuration refuses what is wrong, all of it at once, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.annotate_images import AnnotateConfig
from jobs.build_guard_data import GuardDataConfig
from jobs.clean_training_data import CleanConfig
from jobs.evaluate import EvaluationConfig
from jobs.guard import GuardConfig
from jobs.infer import InferenceConfig
from jobs.make_tiny_world import TinyWorldConfig
from jobs.mix_vlguard import MixConfig
from jobs.moderate_images import ModerateConfig
from jobs.pair_safe_llava import PairConfig
from jobs.prepare_spa_vl import PrepareConfig
from jobs.prism import PrismConfig
from jobs.prove_guard_reward import GuardProofConfig
from jobs.prove_vlguard import ProofConfig
from jobs.scrub_safe_llava import ScrubConfig
from jobs.sft_safe_llava import ImitationConfig
from jobs.train_reward_model import RewardJobConfig
from jobs.vlguard import VLGuardConfig
from rlhf.config import BatchConfig, Config, describe, dump, home, load, resolve, walk
from rlhf.errors import ConfigError
from rlhf.learner import learning_rate
from rlhf.online_config import OnlineConfig
from rlhf.preference_config import PreferenceConfig
from rlhf.serving.config import ServingConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SCHEMAS: dict[str, type[Config]] = {
    "world": TinyWorldConfig,
    "safe_world": TinyWorldConfig,
    "guard_world": TinyWorldConfig,
    "guard_data": GuardDataConfig,
    **dict.fromkeys(("guard_evaluate", "guard_answers", "guard_baseline"), GuardConfig),
    "guard_reward_proof": GuardProofConfig,
    "annotate_images": AnnotateConfig,
    "moderate_images": ModerateConfig,
    **dict.fromkeys(
        ("guard_pretrain", "guard_sft", "guard_answers_sft", "guard_05b", "guard_7b", "guard_7b_lora"), ImitationConfig
    ),
    "safe_scrub": ScrubConfig,
    "safe_pretrain": ImitationConfig,
    "safe_sft": ImitationConfig,
    "safe_prism": PrismConfig,
    "safe_pair": PairConfig,
    "vlguard_proof": ProofConfig,
    "prepare_spa_vl": PrepareConfig,
    "scrub_safe_llava": ScrubConfig,
    "pretrain": ImitationConfig,
    "sft": ImitationConfig,
    "sft_lora": ImitationConfig,
    "reward_model": RewardJobConfig,
    "reward_model_lora": RewardJobConfig,
    **dict.fromkeys(
        ("ppo", "ppo_constrained", "ppo_guard", "ppo_lora", "ppo_seed", "ppo_seed_lora", "grpo", "grpo_lora", "rloo"),
        OnlineConfig,
    ),
    "dpo": PreferenceConfig,
    "dpo_lora": PreferenceConfig,
    "infer": InferenceConfig,
    "serve": ServingConfig,
    "serve_guard": ServingConfig,
    "evaluate": EvaluationConfig,
    "vlguard_mix": MixConfig,
    **dict.fromkeys(
        ("vlguard_posthoc", "vlguard_posthoc_lora", "vlguard_mixed", "vlguard_mixed_lora"), ImitationConfig
    ),
    "vlguard_evaluate": VLGuardConfig,
    "vlguard_extra": EvaluationConfig,
    "vlguard_clean": CleanConfig,
}
TINY = CONFIGS / "tiny" / "ppo.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_file_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    schema = SCHEMAS[path.stem]
    config = load(schema, path)
    saved = tmp_path / "again.yaml"
    saved.write_text(dump(config))
    assert load(schema, saved) == config


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


@pytest.mark.parametrize("name", ["ppo", "ppo_guard", "ppo_lora", "ppo_seed", "ppo_seed_lora", "grpo"])
def test_online_presets_fill_one_node_of_eight_gpus(name: str) -> None:
    config = load(OnlineConfig, CONFIGS / "7b" / f"{name}.yaml")
    assert sum(role.ranks * role.gpus for role in config.roles.present().values()) == 8


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


SAFE_ROWS = {"pretrain": 558_128, "sft": 665_298, "sft_lora": 665_298}
SAFE = {name: CONFIGS / "7b" / f"{name}.yaml" for name in SAFE_ROWS}


@pytest.mark.parametrize(
    ("name", "template", "square", "lr", "rows", "stage", "grouped"),
    [
        ("pretrain", "plain", False, 1e-3, 32, 2, False),
        ("sft", "v1", True, 2e-5, 16, 3, True),
        ("sft_lora", "v1", True, 2e-4, 16, 3, True),
    ],
)
def test_safe24_safe27_the_safe_llava_presets_have_the_numbers_of_the_seed(
    name: str, template: str, square: bool, lr: float, rows: int, stage: int, grouped: bool
) -> None:
    """Seed page 2.1."""
    config = load(ImitationConfig, SAFE[name])
    assert config.run.name == f"7b/{name}"
    model, optimizer, batch = config.model, config.optimizer, config.batch
    assert (model.template, model.pad_to_square, model.max_length) == (template, square, 2048)
    assert (model.dtype, model.attention) == ("bfloat16", "flash_attention_2")
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_ratio) == (lr, "cosine", 0.03)
    assert (optimizer.warmup_steps, optimizer.weight_decay) == (0, 0.0)
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)  # transformers' defaults
    assert (batch.micro_rows, config.workers.ranks, config.workers.gpus) == (rows, 8, 1)
    assert batch.per_rank(8) == rows  # accumulation 1 on 8 GPUs
    assert batch.global_rows == {"pretrain": 256, "sft": 128, "sft_lora": 128}[name]
    assert batch.per_rank(4) == 2 * rows  # on 4 GPUs as many rows in a step
    assert (config.epochs, config.deepspeed.zero_stage, config.run.seed, config.run.log_every) == (1, stage, 42, 1)
    assert (batch.group_by_modality, config.trainable.gradient_checkpointing) == (grouped, True)
    assert (config.data.too_long, config.data.max_masked_share, config.data.require_scrubbed) == (
        "truncate",
        0.001,
        True,
    )


def test_safe20_safe21_safe22_what_the_presets_train() -> None:
    stages = {name: load(ImitationConfig, path) for name, path in SAFE.items()}
    trainable = {name: config.trainable for name, config in stages.items()}
    learns = {name: (one.vision_tower, one.projector, one.language_model) for name, one in trainable.items()}
    assert learns == {"pretrain": (False, True, False), "sft": (False, True, True), "sft_lora": (False, True, True)}
    assert trainable["pretrain"].lora is trainable["sft"].lora is None
    lora = trainable["sft_lora"].lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (128, 256, 0.05, 7)
    assert [one.optimizer.projector_lr for one in stages.values()] == [None, None, 2e-5]


@pytest.mark.parametrize(
    ("name", "steps", "warm"), [("pretrain", 2180, 66), ("sft", 5197, 156), ("sft_lora", 5197, 156)]
)
def test_safe23_cosine_with_a_warm_up_of_three_percent(name: str, steps: int, warm: int) -> None:
    """At full size. The seed has one step more: it trains on the rest that fills no batch."""
    config = load(ImitationConfig, SAFE[name])
    assert config.total_steps(SAFE_ROWS[name]) == steps
    rates = [learning_rate(step, steps, config.optimizer) / config.optimizer.lr for step in range(steps)]
    assert rates[:warm] == pytest.approx([(step + 1) / warm for step in range(warm)])
    assert rates[warm] == 1.0
    middle = warm + (steps - warm) // 2
    assert rates[middle] == pytest.approx(0.5, abs=1e-3)
    assert 0 < rates[-1] < 1e-5
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_safe29_the_paired_baseline_differs_in_its_data_only(name: str) -> None:
    """The overrides that the file itself gives: other words, and where they come from; nothing of the recipe."""
    comment = SAFE[name].read_text().split("The paired baseline is this file with")[1].splitlines()[1]
    overrides = comment.removeprefix("#").split()
    safe, original = (load(ImitationConfig, SAFE[name], more).model_dump() for more in ((), overrides))
    differing = {
        f"{section}.{key}"
        for section, keys in safe.items()
        if isinstance(keys, dict)
        for key in keys
        if keys[key] != original[section][key]
    }
    assert differing - {"model.path"} == {"run.name", "data.train", "data.require_scrubbed"}
    assert safe["data"]["image_root"] == original["data"]["image_root"]
    assert ("model.path" in differing) == (name == "sft")  # the baseline's own stage 1


def test_safe30_the_small_variant_is_stage_two_of_another_family() -> None:
    small, large = load(ImitationConfig, CONFIGS / "05b" / "sft.yaml"), load(ImitationConfig, SAFE["sft"])
    assert small.model.path == "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    assert (small.model.template, small.model.pad_to_square) == ("qwen", False)
    assert small.optimizer == large.optimizer
    assert small.batch.global_rows == large.batch.global_rows
    assert small.data == large.data


@pytest.mark.parametrize(
    ("name", "base", "lr", "warm", "rows", "ranks", "length"),
    [
        ("guard_05b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 1e-5, 0.03, (1, 125), 5, 32_768),
        ("guard_7b", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 1e-5, 0.03, (1, 125), 5, 32_768),
        ("guard_7b_lora", "llava-hf/llava-1.5-7b-hf", 2e-5, 0.05, (12, 168), 7, 4096),
    ],
)
def test_guard12_the_guard_presets_have_the_numbers_of_the_seed(
    name: str, base: str, lr: float, warm: float, rows: tuple[int, int], ranks: int, length: int
) -> None:
    """LlavaGuard page, section 3: micro x accumulation x GPUs is 1 x 25 x 5, and 12 x 2 x 7 with LoRA."""
    config = load(ImitationConfig, CONFIGS / "7b" / f"{name}.yaml")
    optimizer, batch, trainable = config.optimizer, config.batch, config.trainable
    assert (config.run.name, config.run.seed) == (f"7b/{name}", 42)
    assert (config.model.path, config.model.max_length, config.model.dtype) == (base, length, "bfloat16")
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_ratio, optimizer.weight_decay) == (lr, "cosine", warm, 0)
    assert (batch.micro_rows, batch.global_rows, config.workers.ranks) == (*rows, ranks)
    assert batch.per_rank(ranks) == rows[1] // ranks
    assert (config.epochs, config.deepspeed.zero_stage) == (3, 3)
    assert (trainable.vision_tower, trainable.projector, trainable.gradient_checkpointing) == (
        False,
        name == "guard_7b_lora",
        True,
    )
    assert (config.data.train, config.data.too_long) == ("./data/guard/v24/train_balanced.json", "reject")
    assert (trainable.lora and (trainable.lora.rank, trainable.lora.alpha)) == (
        (128, 256) if name == "guard_7b_lora" else None
    )
    if name != "guard_7b_lora":
        assert config.total_steps(5486) == 3 * 5486 // 125


@pytest.mark.parametrize("path", ["tiny/guard_sft", "7b/guard_05b", "7b/guard_7b"])
def test_guard12_the_staged_recipe_in_the_comment_is_two_configurations_that_load(path: str) -> None:
    """Ratings alone first; the second stage starts from the model of the first."""
    file = CONFIGS / f"{path}.yaml"
    line = next(line for line in file.read_text().splitlines() if "train_rating_only" in line)
    overrides = [part.rstrip(",") for part in line.split() if part.startswith(("run.name=", "data.train="))]
    first = load(ImitationConfig, file, overrides)
    then = next(part for part in file.read_text().split() if part.startswith("model.path="))
    second = load(ImitationConfig, file, [then.rstrip(".")])
    assert first.run.name != second.run.name
    assert first.data.train.endswith("/train_rating_only.json")
    assert second.model.path == f"./runs/{first.run.name}/model"


def test_unknown_keys_are_refused_with_the_nearest_valid_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load(OnlineConfig, TINY, ["algorithm.kl_coeficient=0.1", "loop.iteration=3"])
    assert "did you mean algorithm.kl_coefficient?" in str(caught.value)
    assert "did you mean loop.iterations?" in str(caught.value)


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load(OnlineConfig, TINY, ["run.seed=many", "algorithm.gamma=2", "nonsense", "policy.optimizer.lr=-1"])
    assert len(caught.value.problems) == 4
    assert all(key in str(caught.value) for key in ("run.seed", "algorithm.gamma", "nonsense", "policy.optimizer.lr"))


def test_numbers_that_do_not_fit_together_are_refused_with_the_unit() -> None:
    with pytest.raises(ConfigError, match=r"mini_batch_size=64.*choose a multiple of 96"):
        load(OnlineConfig, TINY, ["roles.policy.ranks=3"])
    with pytest.raises(ConfigError, match=r"prompts_per_iteration=100 x 1 answers\) are not a multiple"):
        load(OnlineConfig, TINY, ["loop.prompts_per_iteration=100"])
    with pytest.raises(ConfigError, match="top_p = 1"):
        load(OnlineConfig, TINY, ["sampling.top_p=0.9"])


def test_a_missing_or_broken_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(OnlineConfig, tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        load(OnlineConfig, tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load(OnlineConfig, tmp_path / "list.yaml")


def test_overrides_win_over_the_file() -> None:
    assert load(OnlineConfig, TINY, ["algorithm.gamma=0.5"]).algorithm.gamma == 0.5


def test_an_override_reaches_an_entry_of_a_list() -> None:
    path, key = CONFIGS / "7b" / "ppo_guard.yaml", "reward.rewards.1.reward.rollout.max_sequences"
    before, after = (load(OnlineConfig, path, more).reward.model_dump() for more in ((), (f"{key}=8",)))
    assert after["rewards"][1]["reward"]["rollout"].pop("max_sequences") == 8
    assert before["rewards"][1]["reward"]["rollout"].pop("max_sequences") == 32
    assert before == after
    for wrong in ("reward.rewards.2.weight=1", "reward.rewards.one.weight=1"):
        with pytest.raises(ConfigError, match=r"reward\.rewards has 2 entries, counted from 0"):
            load(OnlineConfig, path, [wrong])
    with pytest.raises(ConfigError, match="seed is not a section"):
        load(OnlineConfig, path, ["run.seed.more=1"])


def test_batches_refuse_to_round() -> None:
    assert BatchConfig(global_rows=32, micro_rows=8).per_rank(2) == 16
    with pytest.raises(ConfigError, match="multiple of 24"):
        BatchConfig(global_rows=32, micro_rows=8).per_rank(3)


@pytest.mark.parametrize(
    "schema",
    [
        ImitationConfig,
        RewardJobConfig,
        OnlineConfig,
        PreferenceConfig,
        TinyWorldConfig,
        InferenceConfig,
        EvaluationConfig,
        ServingConfig,
    ],
)
def test_help_documents_every_key(schema: type[Config]) -> None:
    text = describe(schema)
    undocumented = [name for name, field in walk(schema) if not field.description]
    assert undocumented == []
    assert all(f"  {name}  (" in text for name, _ in walk(schema))


def test_configurations_are_frozen() -> None:
    config = load(OnlineConfig, TINY)
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


def test_only_dot_slash_paths_are_local_and_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFEVL_HOME", str(tmp_path))
    assert home() == tmp_path
    assert resolve("./runs/a") == str(tmp_path / "runs/a")
    assert resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    assert resolve("/data/x") == "/data/x"


def test_an_editable_install_knows_its_project_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SAFEVL_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert home() == Path(__file__).parents[2]


def test_dump_is_plain_yaml() -> None:
    tree: Any = yaml.safe_load(dump(load(OnlineConfig, TINY)))
    assert tree["roles"]["policy"]["ranks"] == 2
