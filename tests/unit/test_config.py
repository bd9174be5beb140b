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
        ("guard_pretrain", "guard_sft", "guard_answers_sft", "guard_05b", "guard_7b", "guard_7b_lora", "guard_ratings"),
        ImitationConfig,
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
