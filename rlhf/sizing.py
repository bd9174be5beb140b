"""The memory of every role of a configuration, and which keys would lower it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.config import DeepSpeedConfig, FrozenRoleConfig, ModelConfig, RoleConfig, TrainableConfig, resolve
from rlhf.memory import (
    GIB,
    RUNTIME_CPU,
    RUNTIME_GPU,
    WIDTHS,
    Footprint,
    Kind,
    Load,
    Split,
    activations,
    dequantised,
    frozen_bytes,
    image_features,
    kv_bytes_per_token,
    model_states,
    split,
)
from rlhf.models.architecture import Architecture, read_architecture
from rlhf.models.quantised import partition_problem
from rlhf.online_config import LearnerConfig, OnlineConfig
from rlhf.preference_config import PreferenceConfig
from rlhf.rewards import single_rewards
from rlhf.rewards.guard import GuardRewardConfig
from rlhf.rewards.learned import LearnedRewardConfig
from rlhf.rollout.base import RolloutConfig
from rlhf.supervised import SupervisedConfig

Lever = tuple[str, ...]
"""Overrides (`section.key=value`) that together lower a role's memory."""

MIB = 2**20
CPU_CACHE_MB = 256  # rlhf/rollout/vllm_engine.py, where kv_cache_mb is unset
BATCHED_TOKENS = 16384  # vLLM's own default on large GPUs: tokens of one prefill step


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """One role: what each of its ranks needs on a device, and how to need less, cheapest way first."""

    role: str
    placed: RoleConfig
    footprint: Footprint
    levers: tuple[Lever, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Architectures of the models that a configuration names; a directory yet to be written has its origin's."""

    origin: Architecture
    read: Callable[[str], Architecture] = read_architecture

    def of(self, model: ModelConfig) -> tuple[Architecture, tuple[str, ...]]:
        """The architecture, and a note where it had to be assumed."""
        folder = Path(resolve(model.path))
        if folder.is_absolute() and not (folder / "config.json").exists():
            return self.origin, (f"{model.path} is not there yet; sized as {self.origin.name}",)
        return self.read(model.path), ()


def online_roles(config: OnlineConfig, device_bytes: int, read: Callable[[str], Architecture]) -> list[RoleMemory]:
    """Policy, critic, reference, reward and rollout of a PPO run. Raises ConfigError if model.path cannot be sized."""
    sizes = Sizes(read(config.model.path), read)
    length = min(config.model.max_length, config.rollout.max_length)
    roles = config.roles

    def learner(role: str, part: LearnerConfig, model: ModelConfig, kind: Kind, placed: RoleConfig) -> RoleMemory:
        architecture, notes = sizes.of(model)
        answers = config.sampling.max_new_tokens if kind == "policy" else 0
        load = Load(part.micro_rows, length, answers, model.attention, part.micro_rows)
        footprint = learning(architecture, model, part.trainable, part.deepspeed, load, kind, placed)
        levers = learner_levers(f"{role}.", f"{role}.micro_rows", f"roles.{role}", part.micro_rows, placed, model)
        problem = partition_problem(model, part.deepspeed.zero_stage == 3)
        return RoleMemory(role, placed, footprint, (*levers, *apart(role, placed)), notes, problem)

    found = [learner("policy", config.policy, config.model, "policy", roles.policy)]
    if config.critic and roles.critic:
        found.append(learner("critic", config.critic, config.critic.model, "scalar", roles.critic))
    if roles.reference:  # else the policy is its own reference
        rows = config.policy.micro_rows
        load = Load(rows, length, config.sampling.max_new_tokens, config.model.attention, rows)
        footprint = frozen(sizes.origin, config.model, load, "policy", roles.reference)
        levers = frozen_levers("reference", roles.reference)
        found.append(RoleMemory("reference", roles.reference, footprint, levers))
    found.append(reward_role(config, sizes, length, device_bytes))
    found.append(
        engine_role("rollout", config.rollout, "rollout", config.model, sizes.origin, roles.rollout, device_bytes)
    )
    return found


def reward_role(config: OnlineConfig, sizes: Sizes, length: int, device: int) -> RoleMemory:
    """One rank of the reward: reward models, guards in engines and rules of a mixture share its process.

    `length` tokens of policy rows are what a reward model reads. A guard behind an endpoint takes nothing here.
    """
    placed, levers, notes, problems = config.roles.reward, list[Lever](), list[str](), list[str]()
    footprint = Footprint(runtime=_runtime(placed.gpus > 0))
    for key, one in single_rewards(config.reward):
        if isinstance(one, LearnedRewardConfig):
            architecture, about = sizes.of(one.model)
            load = Load(one.micro_rows, length, 0, one.model.attention, one.micro_rows)
            footprint += replace(frozen(architecture, one.model, load, "scalar", placed), runtime=0)
            levers.append((f"{key}.micro_rows=1",))
            notes += about
            if problem := partition_problem(one.model, placed.weights != "whole"):
                problems.append(problem)
        elif isinstance(one, GuardRewardConfig) and one.model is not None:
            architecture, about = sizes.of(one.model)
            engine = engine_role("reward", one.rollout, f"{key}.rollout", one.model, architecture, placed, device)
            footprint += replace(engine.footprint, runtime=0)
            levers += engine.levers
            notes += [*about, *(f"guard: {note}" for note in engine.notes)]
            problems += [engine.problem] if engine.problem else []
    levers += frozen_levers("reward", placed)
    return RoleMemory("reward", placed, footprint, tuple(levers), tuple(notes), "; ".join(problems))


def preference_roles(
    config: PreferenceConfig, device_bytes: int, read: Callable[[str], Architecture]
) -> list[RoleMemory]:
    """The roles that take part in a DPO run: policy, reference, and the engine when the other two are gone.

    Rows are pairs.
    """
    architecture, model, roles = read(config.model.path), config.model, config.roles
    placed = {name: role for together in config.phases().values() for name, role in together.items()}
    answer = model.max_length - (architecture.image_tokens or 0)
    part, rows = config.policy, 2 * config.policy.micro_rows
    load = Load(rows, model.max_length, answer, model.attention, rows)
    footprint = learning(architecture, model, part.trainable, part.deepspeed, load, "policy", roles.policy)
    levers = learner_levers("policy.", "policy.micro_rows", "roles.policy", part.micro_rows, roles.policy, model)
    levers = (*levers, *apart("policy", roles.policy))
    problem = partition_problem(model, part.deepspeed.zero_stage == 3)
    found = [RoleMemory("policy", roles.policy, footprint, levers, problem=problem)]
    if (reference := roles.reference) is not None and "reference" in placed:
        rows = 2 * config.reference.micro_rows
        load = Load(rows, model.max_length, answer, model.attention, rows)
        footprint = frozen(architecture, model, load, "policy", reference)
        levers = (("reference.micro_rows=1",), *frozen_levers("reference", reference))
        notes = ("it runs alone, before training",) if config.reference.source == "columns" else ()
        problem = partition_problem(model, reference.weights != "whole")
        found.append(RoleMemory("reference", reference, footprint, levers, notes, problem))
    if alone := placed.get("rollout"):
        one = engine_role("rollout", config.answers.engine, "answers.engine", model, architecture, alone, device_bytes)
        found.append(replace(one, notes=(*one.notes, "it runs alone, before and after training")))
    return found


def supervised_roles(config: SupervisedConfig, kind: Kind, read: Callable[[str], Architecture]) -> list[RoleMemory]:
    """The workers of a supervised job. A scalar model's batch holds both answers of a pair."""
    architecture = read(config.model.path)
    rows, length = config.batch.micro_rows * (2 if kind == "scalar" else 1), config.model.max_length
    load = Load(rows, length, length - (architecture.image_tokens or 0), config.model.attention, rows)
    footprint = learning(architecture, config.model, config.trainable, config.deepspeed, load, kind, config.workers)
    levers = learner_levers("", "batch.micro_rows", "workers", config.batch.micro_rows, config.workers, config.model)
    problem = partition_problem(config.model, config.deepspeed.zero_stage == 3)
    return [RoleMemory("workers", config.workers, footprint, levers, problem=problem)]


def learning(
    architecture: Architecture,
    model: ModelConfig,
    trainable: TrainableConfig,
    deepspeed: DeepSpeedConfig,
    load: Load,
    kind: Kind,
    placed: RoleConfig,
) -> Footprint:
    """One rank of a role that learns. A frozen vision tower is whole on every rank, beside DeepSpeed."""
    on_gpu = placed.gpus > 0
    sizes = split(architecture, trainable, kind, model.quantise)
    states = model_states(sizes, deepspeed, placed.ranks, model.dtype, on_gpu)
    working = activations(architecture, load, trainable, kind, model.dtype)
    working += dequantised(architecture, model.dtype, model.quantise)
    rest = Footprint(activations=working, runtime=_runtime(on_gpu))
    if trainable.lora is not None and trainable.projector:  # its first state, for the reference inside the policy
        rest += Footprint(weights=WIDTHS[model.dtype] * architecture.count("projector"))
    return states + rest + (Footprint() if trainable.vision_tower else _tower(architecture, model, load))


def frozen(
    architecture: Architecture, model: ModelConfig, load: Load, kind: Kind, placed: FrozenRoleConfig
) -> Footprint:
    """One rank of a role that never learns, forward passes only. Its tower is whole whatever `weights` says."""
    working = activations(architecture, load, None, kind, model.dtype)
    rest = Footprint(
        activations=working + dequantised(architecture, model.dtype, model.quantise), runtime=_runtime(placed.gpus > 0)
    )
    if placed.weights == "whole":
        states = Footprint(weights=frozen_bytes(architecture, model.dtype, model.quantise))
    else:
        sizes = Split((), tuple(one.elements for one in architecture.of(["projector", "language", "lm_head"])))
        stage = DeepSpeedConfig(zero_stage=3, offload=placed.weights == "offloaded")
        # as on a CPU: without gradients there is no bucket of a fixed size to reduce them in
        states = model_states(sizes, stage, placed.ranks, model.dtype, on_gpu=False)
    return states + rest + _tower(architecture, model, load)


def engine_role(
    role: str,
    engine: RolloutConfig,
    key: str,
    model: ModelConfig,
    architecture: Architecture,
    placed: RoleConfig,
    device: int,
) -> RoleMemory:
    """One device (of so many bytes) of an engine that a role holds and whose configuration has this key.

    vLLM fills its share of the device with KV cache after weights and activations.
    """
    width, parallel = WIDTHS[engine.dtype], engine.tensor_parallel
    weights = width * architecture.count() // parallel
    per_token = kv_bytes_per_token(architecture, engine.dtype) // parallel
    if engine.engine == "transformers":
        load = Load(1, engine.max_length, 1, model.attention, 1)
        working = activations(architecture, load, None, "policy", engine.dtype)
        cache = per_token * engine.max_length
    else:
        working = BATCHED_TOKENS * width * (4 * architecture.hidden + 3 * architecture.intermediate) // parallel
        working += 8 * engine.max_sequences * architecture.vocabulary
        cache = int(engine.gpu_memory_share * device) - weights - working
        if engine.kv_cache_mb is not None or placed.gpus == 0:
            cache = (engine.kv_cache_mb or CPU_CACHE_MB) * MIB
    footprint = Footprint(
        weights=weights, activations=working, kv_cache=max(0, cache), runtime=_runtime(placed.gpus > 0)
    )
    fitting = max(0, cache) // per_token
    note = f"the KV cache holds {fitting:,} tokens: {fitting // engine.max_length} answers of full length at once"
    problem = ""
    if fitting < engine.max_length:
        problem = f"the KV cache holds {fitting:,} tokens, one answer may need {key}.max_length={engine.max_length:,}"
    return RoleMemory(role, placed, footprint, _engine_levers(engine, key, role), (note,), problem)


def _engine_levers(engine: RolloutConfig, key: str, role: str) -> tuple[Lever, ...]:
    wider = 2 * engine.tensor_parallel
    cache = () if engine.kv_cache_mb is None else ((f"{key}.kv_cache_mb=null",),)
    shares = [share for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3) if share != engine.gpu_memory_share]
    return (
        *cache,
        *((f"{key}.gpu_memory_share={share}",) for share in shares),
        (f"{key}.tensor_parallel={wider}", f"roles.{role}.gpus={wider}"),
    )


def learner_levers(
    section: str, rows_key: str, placed_key: str, rows: int, placed: RoleConfig, model: ModelConfig
) -> tuple[Lever, ...]:
    """What may lower a learning role's memory, cheapest first; not every lever helps or is allowed."""
    partition = () if model.quantise != "none" else ((f"{section}deepspeed.zero_stage=3",),)
    smaller = tuple((f"{rows_key}={size}",) for size in (rows // 2, rows // 4, 1) if 1 <= size < rows)
    return (
        *dict.fromkeys(smaller),
        (f"{section}trainable.gradient_checkpointing=true",),
        *partition,
        *((f"{placed_key}.ranks={placed.ranks * factor}",) for factor in (2, 4, 8)),
        (f"{section}deepspeed.offload=true",),
    )


def frozen_levers(role: str, placed: FrozenRoleConfig) -> tuple[Lever, ...]:
    """What may lower the memory of a role that never learns, fastest first."""
    fewer = () if placed.weights == "offloaded" else ((f"roles.{role}.weights=offloaded",),)
    return (*apart(role, placed), *fewer)


def apart(role: str, placed: RoleConfig) -> tuple[Lever, ...]:
    """Give a role a device of its own."""
    if placed.colocate_with is None and placed.gpus in (0, 1):
        return ()
    return ((f"roles.{role}.colocate_with=null", f"roles.{role}.gpus=1"),)


def _tower(architecture: Architecture, model: ModelConfig, load: Load) -> Footprint:
    return Footprint(
        weights=WIDTHS[model.dtype] * architecture.count("tower"),
        features=image_features(architecture, load, model.dtype),
        host=model.feature_cache_mb * MIB,
    )


def _runtime(on_gpu: bool) -> int:
    return RUNTIME_GPU if on_gpu else RUNTIME_CPU


def gib(amount: int) -> float:
    """GiB of so many bytes."""
    return amount / GIB
