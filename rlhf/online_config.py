"""The configuration of an online run (PPO), and what must fit together in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.algorithms.ppo import PPOConfig
from rlhf.config import Config, DeepSpeedConfig, ModelConfig, OptimizerConfig, RoleConfig, RunConfig, TrainableConfig
from rlhf.rewards import RewardConfig
from rlhf.rollout.base import RolloutConfig, Sampling


class PromptDataConfig(Config):
    """Prompts, as preference files in SPA-VL's format (their answers are not used by PPO)."""

    train: str
    """Keyword configuration: a JSON map from keyword to file (seed page 1.1)."""
    keywords: tuple[str, ...]
    """Which of its files, in this order."""
    image_root: str
    """Folder that the rows' image paths are relative to."""
    evaluation: str | None = None
    """Keyword configuration of evaluation prompts; the keyword is their kind (harmful, biometric, benign)."""
    evaluation_image_root: str | None = None
    """Folder of the evaluation images; image_root if unset."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of rows is unusable."""
    label: str = ""
    """What the data are; stands above every result."""


class LearnerConfig(Config):
    """How one learning role (policy or critic) is trained."""

    trainable: TrainableConfig = TrainableConfig()
    optimizer: OptimizerConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    micro_rows: int = Field(default=1, ge=1)
    """Rows per forward pass on one rank."""


class LoopConfig(Config):
    """The walk of rlhf/online.py."""

    iterations: int = Field(ge=1)
    """Rounds of rollout and update."""
    prompts_per_iteration: int = Field(ge=1)
    """Prompts per round, one answer each."""
    logprob_gap_bound: float = Field(default=1.0, gt=0)
    """Stop if engine and learner differ by more than this on any sampled token (nats)."""
    max_staleness: int = Field(default=0, ge=0)
    """Policy versions that a rollout may be behind."""
    canary_prompts: int = Field(default=8, ge=1)
    """Fixed image prompts scored by engine and learner after every weight sync."""
    canary_bound: float = Field(default=0.5, gt=0)
    """Stop if they differ by more than this on any token (nats); 1e-3 suits float32."""
    samples_per_iteration: int = Field(default=8, ge=0)
    """Rollouts written to samples.jsonl per iteration."""


class RolesConfig(Config):
    """Ray resources of every role."""

    policy: RoleConfig
    critic: RoleConfig
    reference: RoleConfig
    reward: RoleConfig
    rollout: RoleConfig
    backend: Literal["gloo", "nccl"] = "gloo"
    """Collectives of the policy's and the critic's ranks: nccl on GPUs, gloo on CPUs."""


class OnlineConfig(Config):
    """One PPO run."""

    run: RunConfig
    model: ModelConfig
    """The policy at the start, which is also the reference."""
    data: PromptDataConfig
    reward: RewardConfig
    critic_from: ModelConfig
    """The critic at the start: a reward-model directory."""
    policy: LearnerConfig
    critic: LearnerConfig
    algorithm: PPOConfig
    sampling: Sampling
    rollout: RolloutConfig
    loop: LoopConfig
    roles: RolesConfig

    @model_validator(mode="after")
    def _numbers_fit(self) -> OnlineConfig:
        problems = []
        rows, mini = self.loop.prompts_per_iteration, self.algorithm.mini_batch_size
        if rows % mini:
            problems.append(f"loop.prompts_per_iteration={rows} is not a multiple of algorithm.mini_batch_size={mini}")
        for name, role, learner in (
            ("policy", self.roles.policy, self.policy),
            ("critic", self.roles.critic, self.critic),
        ):
            unit = role.ranks * learner.micro_rows
            if mini % unit:
                problems.append(
                    f"algorithm.mini_batch_size={mini} does not divide into roles.{name}.ranks={role.ranks} x "
                    f"{name}.micro_rows={learner.micro_rows}: choose a multiple of {unit}"
                )
        if self.sampling.max_new_tokens >= self.rollout.max_length:
            problems.append("sampling.max_new_tokens leaves no room for a prompt in rollout.max_length")
        if self.rollout.max_length > self.model.max_length:
            problems.append("rollout.max_length exceeds model.max_length")
        if self.policy.trainable.vision_tower or self.critic.trainable.vision_tower:
            problems.append("trainable.vision_tower: the vision tower is frozen in online training")
        if self.sampling.temperature == 0 or self.sampling.top_p != 1 or self.sampling.top_k != 0:
            problems.append("sampling: PPO's ratio needs temperature > 0, top_p = 1 and top_k = 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def total_optimizer_steps(self) -> int:
        """Optimizer steps of the policy (and of the critic) over the whole run."""
        per_epoch = self.loop.prompts_per_iteration // self.algorithm.mini_batch_size
        return self.loop.iterations * self.algorithm.epochs * per_epoch
