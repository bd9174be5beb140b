"""Roles of a configuration, who shares a device, and the command that refuses what cannot fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from cluster.devices import devices
from cluster.placement import plan
from jobs.memory import Question, Room, remedies, schema_of, size
from jobs.train_reward_model import RewardJobConfig
from rlhf.config import RoleConfig, load
from rlhf.errors import ConfigError
from rlhf.memory import GIB, LIVE_PARAMETERS, Footprint
from rlhf.models.architecture import read_architecture
from rlhf.online_config import OnlineConfig
from rlhf.sizing import online_roles, supervised_roles
from tests.fakes import tiny_model

ROOT = Path(__file__).parents[2]
PPO_7B = ROOT / "jobs" / "configs" / "7b" / "ppo.yaml"
DPO_7B = ROOT / "jobs" / "configs" / "7b" / "dpo.yaml"
GUARDED = ROOT / "jobs" / "configs" / "7b" / "ppo_guard.yaml"
REWARD = ROOT / "jobs" / "configs" / "tiny" / "reward_model.yaml"
FILES = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))
READ = lru_cache(read_architecture)


def question(path: Path, *overrides: str, gpu_gib: float = 80) -> Question:
    return Question(schema_of(path, overrides), path, overrides, Room(int(gpu_gib * GIB), 24 * GIB), READ)


@pytest.mark.parametrize("path", [PPO_7B, GUARDED, *PPO_7B.parent.glob("ppo_seed*.yaml")], ids=lambda path: path.stem)
def test_ppo_of_7b_fits_eight_gpus_of_80_gb(path: Path) -> None:
    """80 GB are 74.5 GiB: the presets fit even those."""
    asked = question(path, gpu_gib=74.5)
    sized = size(asked)
    assert sized.gpus == 8
    assert [sized.problems(device, asked.room) for device in sized.devices] == [[]] * 8


def test_roles_of_a_dpo_run_that_never_meet_share_no_device_and_count_once() -> None:
    """The same eight GPUs for the reference's columns, the policy, and answers; a reference beside it needs more."""
    answered = ("data.evaluation=./world/test.json", "roles.rollout.colocate_with=policy")
    asked = question(DPO_7B, *answered, gpu_gib=74.5)
    sized = size(asked)
    assert sized.gpus == 8
    assert [{role for at in phase for role, _ in at.ranks} for phase in sized.phases] == [
        {"rollout"}, {"reference"}, {"policy"},
    ]  # fmt: skip
    assert [sized.problems(device, asked.room) for device in sized.devices] == [[]] * 24
    assert size(question(DPO_7B, "reference.source=prefetch")).gpus == 16
    free = size(question(DPO_7B, "algorithm={loss: simpo, beta: 2.0}", "roles.reference=null"))
    assert set(free.roles) == {"policy"}


def test_the_7b_policy_has_the_model_states_of_the_presets_own_comment() -> None:
    """16 bytes per parameter: 6.8 G / 4 = 27 GB for the policy, 6.7 G / 2 = 54 GB for the critic."""
    roles = {role.role: role.footprint for role in online_roles(load(OnlineConfig, PPO_7B), 80 * GIB, READ)}
    for name, gigabytes in (("policy", 27), ("critic", 53)):
        one = roles[name]
        tower = 2 * 303_507_456
        assert (one.weights - tower + one.gradients + one.optimizer) / 1e9 == pytest.approx(gigabytes, abs=0.6)


def test_a_role_that_cannot_fit_gets_remedies_that_are_enough() -> None:
    asked = question(PPO_7B, "roles.critic.ranks=1")
    sized = size(asked)
    (device,) = [at for at in sized.devices if ("critic", 0) in at.ranks]
    assert "80.0" in sized.problems(device, asked.room)[0]
    lines = remedies(asked, sized, device)
    assert any("roles.critic.ranks=2" in line for line in lines)
    for line in lines:
        changed = size(asked, line.split("set ")[1].split(":")[0].split())
        assert not any(changed.problems(at, asked.room) for at in changed.devices)


def test_where_no_single_change_is_enough_several_are_named_together() -> None:
    asked = question(
        REWARD, "model.path=llava-hf/llava-1.5-13b-hf", "model.max_length=2048", "model.dtype=bfloat16",
        "workers.gpus=1", "workers.ranks=4",
    )  # fmt: skip
    sized = size(asked)
    (line,) = remedies(asked, sized, sized.devices[0])
    assert line.startswith("set together batch.micro_rows=")
    keys = line.removeprefix("set together ").split(":")[0].split()
    assert len({key.partition("=")[0] for key in keys}) == len(keys)
    changed = size(asked, keys)
    assert not changed.problems(changed.devices[0], asked.room)


def test_a_model_that_no_setting_can_hold_is_said_to_be_so() -> None:
    asked = question(PPO_7B, gpu_gib=8)
    sized = size(asked)
    (device,) = [at for at in sized.devices if ("reference", 0) in at.ranks]
    (line,) = remedies(asked, sized, device)
    assert line.startswith("no setting is enough")


def test_colocated_roles_are_added_and_the_others_are_not() -> None:
    sized = size(question(PPO_7B))
    shared = [device for device in sized.devices if len(device.ranks) > 1]
    assert [device.ranks for device in shared] == [[("reference", 0), ("reward", 0)]]
    parts = [sized.roles[name].footprint.total for name in ("reference", "reward")]
    assert sized.total(shared[0]) == sum(parts)


def test_an_engine_fills_its_share_and_must_hold_one_answer() -> None:
    asked = question(PPO_7B)
    footprint = size(asked).roles["rollout"].footprint
    assert footprint.total - footprint.runtime == pytest.approx(0.85 * 80 * GIB, rel=1e-6)
    small = question(PPO_7B, "rollout.gpu_memory_share=0.19")
    assert "one answer may need rollout.max_length=2,048" in size(small).roles["rollout"].problem
    exact = size(question(PPO_7B, "rollout.kv_cache_mb=2048")).roles["rollout"]
    assert exact.footprint.kv_cache == 2 * GIB
    assert exact.notes == ("the KV cache holds 4,096 tokens: 2 answers of full length at once",)


def test_a_guard_in_the_reward_is_an_engine_beside_the_reward_model() -> None:
    """It adds its share of the device, and no process of its own."""
    plain, guarded = (size(question(path)).roles["reward"] for path in (PPO_7B, GUARDED))
    assert guarded.footprint.total - plain.footprint.total == pytest.approx(0.35 * 80 * GIB, rel=1e-6)
    assert guarded.footprint.weights - plain.footprint.weights == 2 * (8_030_348_832 + 2 * 64 * 3584)
    assert guarded.footprint.runtime == plain.footprint.runtime
    tokens = guarded.footprint.kv_cache // (2 * 2 * 28 * 4 * 128)  # key and value, bf16, 28 layers, 4 heads of 128
    assert guarded.notes[-1].startswith(f"guard: the KV cache holds {tokens:,} tokens: ")
    small = size(question(GUARDED, "reward.rewards.1.reward.rollout.gpu_memory_share=0.2")).roles["reward"]
    assert "one answer may need reward.rewards.1.reward.rollout.max_length=16,384" in small.problem


def test_a_guard_that_cannot_fit_gets_remedies_inside_its_mixture() -> None:
    asked = question(GUARDED, "reward.rewards.1.reward.rollout.gpu_memory_share=0.8")
    sized = size(asked)
    (device,) = [at for at in sized.devices if ("reward", 0) in at.ranks]
    assert "the device has 80.0" in sized.problems(device, asked.room)[0]
    lines = remedies(asked, sized, device)
    assert any("reward.rewards.1.reward.rollout.gpu_memory_share=0.4" in line for line in lines)
    for line in lines:
        changed = size(asked, line.split("set ")[1].split(":")[0].split())
        assert not any(changed.problems(at, asked.room) for at in changed.devices)


def test_all_of_a_mixture_is_in_one_process_and_an_endpoint_takes_nothing() -> None:
    learned = {"kind": "learned", "model": {"path": "llava-hf/llava-1.5-7b-hf"}}
    mixture = {
        "kind": "mixture",
        "rewards": [{"name": "a", "weight": 1.0, "reward": learned}],
        "costs": [{"name": "b", "reward": learned}],
    }
    endpoint = {"kind": "guard", "endpoint": {"base_url": "http://localhost:1/v1", "model": "g"}}
    one, two, none = (size(question(PPO_7B, f"reward={json.dumps(reward)}")) for reward in (learned, mixture, endpoint))
    assert two.roles["reward"].footprint.weights == 2 * one.roles["reward"].footprint.weights
    assert two.roles["reward"].footprint.runtime == one.roles["reward"].footprint.runtime
    assert none.roles["reward"].footprint.total == one.roles["reward"].footprint.runtime
    assert none.gpus == one.gpus == 8


def test_lora_makes_the_policy_small() -> None:
    full, lora = (
        size(question(PPO_7B, *more)).roles["policy"].footprint for more in ((), ("policy.trainable.lora.rank=256",))
    )
    assert lora.optimizer < 0.11 * full.optimizer
    assert lora.weights > full.weights  # the base stays, adapters and the first projector come on top


def test_row21_row30_the_doctor_counts_quantised_weights_and_refuses_to_partition_them() -> None:
    """A reward model under LoRA with ZeRO-2: 6.5 G matrix elements of 2 bytes, of 1, and of half a byte and a bit."""
    path = ROOT / "jobs" / "configs" / "7b" / "reward_model_lora.yaml"
    weights = {}
    for quantise in ("none", "int8", "nf4"):
        asked = question(path, "deepspeed.zero_stage=2", f"model.quantise={quantise}")
        role = size(asked).roles["workers"]
        assert role.problem == ""
        assert (("deepspeed.zero_stage=3",) in role.levers) == (quantise == "none")
        weights[quantise] = role.footprint.weights / GIB
    assert weights["none"] - weights["int8"] == pytest.approx(6.03, abs=0.01)
    assert weights["none"] - weights["nf4"] == pytest.approx(8.95, abs=0.01)
    whole = size(question(path, "model.quantise=nf4"))
    assert whole.problems(whole.devices[0], Room(80 * GIB, 24 * GIB))[0].startswith("model.quantise=nf4: ZeRO-3 cannot")


def test_a_quantised_reward_model_is_smaller_inside_the_rewards_process() -> None:
    plain, small = (
        size(question(PPO_7B, f"reward.model.quantise={quantise}")).roles["reward"] for quantise in ("none", "nf4")
    )
    assert (plain.footprint.weights - small.footprint.weights) / GIB == pytest.approx(8.95, abs=0.01)


def test_row21_a_reference_that_is_shared_out_needs_its_share_and_the_layers_in_use() -> None:
    """Seven billion parameters in bf16 over four ranks; the tower is whole, and DeepSpeed keeps 1 G elements live."""

    def reference(*more: str) -> Footprint:
        return size(question(PPO_7B, "roles.reference.ranks=4", *more)).roles["reference"].footprint

    whole, parted, away = (
        reference(f"roles.reference.weights={name}") for name in ("whole", "partitioned", "offloaded")
    )
    tower, inside = 2 * 303_507_456, 2 * (7_063_427_072 - 303_507_456)
    assert whole.weights == tower + inside
    assert parted.weights - tower == pytest.approx(inside / 4, rel=1e-3)
    assert away.weights == tower
    assert away.host - parted.host == parted.weights - tower
    assert parted.buffers == away.buffers == 2 * LIVE_PARAMETERS
    assert parted.gradients == parted.optimizer == 0
    asked = question(PPO_7B, "roles.reference.colocate_with=null", "roles.reference.gpus=1", gpu_gib=12)
    sized = size(asked)
    (device,) = [at for at in sized.devices if at.ranks == [("reference", 0)]]
    assert any("roles.reference.weights=offloaded" in line for line in remedies(asked, sized, device))
    small = question(PPO_7B, "roles.reward.weights=partitioned", "reward.model.quantise=nf4")
    assert "ZeRO-3 cannot partition" in size(small).roles["reward"].problem


def test_a_reward_models_batch_holds_both_answers(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    config = load(RewardJobConfig, REWARD, [f"model.path={model.path}"])
    (pairs,), (single,) = (supervised_roles(config, kind, READ) for kind in ("scalar", "policy"))  # type: ignore[arg-type]
    assert pairs.footprint.features > single.footprint.features
    assert pairs.levers[0] == ("batch.micro_rows=16",)


@pytest.mark.parametrize("file", ["7b/pretrain", "7b/sft", "7b/sft_lora", "05b/sft"])
def test_safe_llava_presets_fit_eight_gpus_of_80_gb(file: str) -> None:
    """7B as if the first model were there already, which has the shapes of the hub's."""
    path = ROOT / "jobs" / "configs" / f"{file}.yaml"
    overrides = ("model.path=llava-hf/llava-1.5-7b-hf",) if file.startswith("7b") else ()
    asked = question(path, *overrides, gpu_gib=74.5)
    sized = size(asked)
    assert sized.gpus == 8
    assert [sized.problems(device, asked.room) for device in sized.devices] == [[]] * 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_training_configuration_can_be_sized(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not re.search(r"^(algorithm|optimizer):", path.read_text(), re.MULTILINE):
        pytest.skip("nothing is trained by it")
    overrides = []
    if re.search(r"^model:\s*{?\s*path: ./runs", path.read_text(), re.MULTILINE):
        overrides.append(f"model.path={tiny_model(tmp_path_factory.mktemp('tiny')).path}")
    sized = size(question(path, *overrides))
    assert all(role.footprint.total > 0 for role in sized.roles.values())


def test_a_missing_first_model_is_refused_and_a_later_one_assumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run the stage that writes it first"):
        size(question(PPO_7B, f"model.path={tmp_path}/nothing"))
    with pytest.raises(ConfigError, match="download it first"):
        size(question(PPO_7B, "model.path=nobody/unknown-model"))
    assert "sized as llava-hf/llava-1.5-7b-hf" in size(question(PPO_7B)).roles["critic"].notes[0]


def test_devices_are_shared_as_ray_shares_them() -> None:
    roles = {
        "a": RoleConfig(ranks=2, gpus=1),
        "b": RoleConfig(gpus=0.5),
        "c": RoleConfig(gpus=0.5),
        "d": RoleConfig(gpus=0.5, colocate_with="c"),
        "e": RoleConfig(gpus=2),
        "f": RoleConfig(),
    }
    found = devices(plan(roles), roles)
    assert [[role for role, _ in device.ranks] for device in found] == [
        ["a"], ["a"], ["b"], ["c", "d"], ["e"], ["e"], ["f"],
    ]  # fmt: skip
    assert [device.index for device in found] == [0, 1, 2, 3, 4, 5, -1]
    roles["c"] = RoleConfig(gpus=0.25)
    del roles["d"]
    assert ["b", "c"] in [[role for role, _ in device.ranks] for device in devices(plan(roles), roles)]


def _doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "jobs.doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_says_what_fits_and_refuses_what_does_not() -> None:
    good = _doctor("--config", str(PPO_7B), "--device-gib", "80")
    assert good.returncode == 0, good.stderr
    assert "fits 8 GPUs of 80 GiB" in good.stdout
    assert "arXiv 2205.05198" in good.stdout
    bad = _doctor("--config", str(PPO_7B), "--device-gib", "40", "roles.reference.gpus=1", "roles.reward.gpus=0")
    assert bad.returncode == 1
    assert "does not fit: critic" in bad.stdout
    assert "roles.critic.ranks=4" in bad.stdout
    wrong = _doctor("--config", str(PPO_7B), "policy.micro_row=2")
    assert wrong.returncode == 2
    assert "did you mean policy.micro_rows?" in wrong.stderr
    assert "Traceback" not in good.stderr + bad.stderr + wrong.stderr
