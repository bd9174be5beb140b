"""The configuration of an online run (PPO, GRPO, RLOO), and what must fit together in it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.algorithms import AlgorithmConfig
from rlhf.config import (
    Config,
    DeepSpeedConfig,
    FrozenRoleConfig,
    ModelConfig,
    OptimizerConfig,
    RoleConfig,
    RunConfig,
    TrainableConfig,
    resolve,
)
from rlhf.constraints import ConstraintConfig
from rlhf.rewards import RewardConfig, learned_rewards
from rlhf.rewards.mixture import MixtureRewardConfig
from rlhf.rollout.base import RolloutConfig, Sampling, devices_missing, ignored_by_engines
from rlhf.selection import SelectionConfig


class OnlineRunConfig(RunConfig):
    """The run, whose steps are iterations."""

    log_every: int = Field(default=1, ge=1)
    """Iterations between lines of metrics.jsonl; one that is evaluated, and the last, always have theirs."""


class PromptDataConfig(Config):
    """Prompts, as files in SPA-VL's format; the answers of preference files are not looked at."""

    train: str
    """Keyword configuration: a JSON map from keyword to file (seed page 1.1)."""
    keywords: tuple[str, ...]
    """Which of its files, in this order."""
    image_root: str
    """Folder that the rows' image paths are relative to."""
    evaluation: str | None = None
    """Keyword configuration of evaluation prompts; the keyword is their kind (harmful, biometric, benign)."""
    validation: str | None = None
    """The same for prompts that `selection` chooses the checkpoint by; none of them may be an evaluation prompt."""
    evaluation_image_root: str | None = None
    """Folder of the images of evaluation and validation; image_root if unset."""
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


class CriticConfig(LearnerConfig):
    """The critic; PPO needs one."""

    model: ModelConfig
    """Where it starts: a reward-model directory."""


class LoopConfig(Config):
    """The walk of rlhf/online.py."""

    iterations: int = Field(ge=1)
    """Rounds of rollout and update."""
    prompts_per_iteration: int = Field(ge=1)
    """Prompts per round; GRPO and RLOO draw algorithm.group_size answers to each."""
    logprob_gap_bound: float = Field(default=1.0, gt=0)
    """Stop if engine and learner differ by more than this on any sampled token (nats)."""
    canary_prompts: int = Field(default=8, ge=1)
    """The first prompts with an image (if any has one), scored by engine and learner after every weight sync."""
    canary_bound: float = Field(default=0.5, gt=0)
    """Stop if they differ by more than this on any token (nats); 1e-3 suits float32."""
    samples_per_iteration: int = Field(default=8, ge=0)
    """Rollouts written to samples.jsonl per iteration."""


class RolesConfig(Config):
    """Ray resources of every role."""

    policy: RoleConfig
    critic: RoleConfig | None = None
    """Only for algorithms with a critic (PPO)."""
    reference: FrozenRoleConfig | None = None
    """Unset: the policy's own ranks with their adapters off (needs policy.trainable.lora); costs no memory."""
    reward: FrozenRoleConfig
    """`weights` is about reward models; a guard's engine loads its own whole."""
    rollout: RoleConfig
    backend: Literal["gloo", "nccl"] = "gloo"
    """Collectives of the policy's and the critic's ranks: nccl on GPUs, gloo on CPUs."""

    def present(self) -> dict[str, RoleConfig]:
        """The roles that have actors of their own, by name."""
        named = {name: getattr(self, name) for name in ("policy", "critic", "reference", "reward", "rollout")}
        return {name: role for name, role in named.items() if role is not None}


class OnlineConfig(Config):
    """One run."""

    run: OnlineRunConfig
    model: ModelConfig
    """The policy at the start, which is also the reference."""
    data: PromptDataConfig
    reward: Annotated[RewardConfig, Field(discriminator="kind")]
    policy: LearnerConfig
    critic: CriticConfig | None = None
    """Only for algorithms with a critic (PPO)."""
    algorithm: Annotated[AlgorithmConfig, Field(discriminator="kind")]
    constraints: tuple[ConstraintConfig, ...] = ()
    """Costs of the reward that may not exceed a bound on average, each with a multiplier of its own."""
    selection: SelectionConfig | None = None
    """Evaluation while training, and by it the checkpoint that becomes the model; unset, the last iteration's does."""
    sampling: Sampling
    rollout: RolloutConfig
    loop: LoopConfig
    roles: RolesConfig

    @model_validator(mode="after")
    def _numbers_fit(self) -> OnlineConfig:
        problems = [*self._roles_that_do_not_fit(), *self._batches_that_do_not_fit(), *self._selection_that_cannot_be()]
        problems += self._constraints_of_nothing()
        if self.sampling.max_new_tokens >= self.rollout.max_length:
            problems.append("sampling.max_new_tokens leaves no room for a prompt in rollout.max_length")
        if self.sampling.max_new_tokens < 2:
            problems.append("sampling.max_new_tokens=1 holds no answer: a token and EOS are the least")
        if self.rollout.max_length > self.model.max_length:
            problems.append("rollout.max_length exceeds model.max_length")
        problems += [
            f"{key}.max_length={model.max_length} is less than rollout.max_length={self.rollout.max_length}: it reads "
            "whole answers with their prompts"
            for key, model in self.scalar_models()
            if model.max_length < self.rollout.max_length
        ]
        problems += devices_missing("rollout", self.rollout, "roles.rollout", self.roles.rollout)
        for name, part in (("policy", self.policy), ("critic", self.critic)):
            if part is not None and part.trainable.vision_tower:
                problems.append(f"{name}.trainable.vision_tower: the vision tower is frozen in online training")
        if self.sampling.temperature == 0 or self.sampling.top_p != 1 or self.sampling.top_k != 0:
            problems.append("sampling: the ratio of probabilities needs temperature > 0, top_p = 1 and top_k = 0")
        if self.sampling.seed:
            problems.append("sampling.seed: every iteration draws with a seed of its own, made of run.seed; set that")
        problems += ignored_by_engines(self.model)  # and the policy must be what answers
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def scalar_models(self) -> list[tuple[str, ModelConfig]]:
        """The models with a scalar head, which read the policy's own tokens, with where they stand: rewards, critic."""
        found = [(f"{key}.model", learned.model) for key, learned in learned_rewards(self.reward)]
        return [*found, ("critic.model", self.critic.model)] if self.critic else found

    def _roles_that_do_not_fit(self) -> list[str]:
        problems = []
        kind, needed = self.algorithm.kind, self.algorithm.needs_critic
        for name, value in (("critic", self.critic), ("roles.critic", self.roles.critic)):
            if needed and value is None:
                problems.append(f"{name} is missing: algorithm.kind={kind} needs a critic")
            if not needed and value is not None:
                problems.append(f"{name} is set, but algorithm.kind={kind} has no critic: remove the section")
        if self.roles.reference is None and self.policy.trainable.lora is None:
            problems.append("roles.reference is missing: only a policy with trainable.lora can be its own reference")
        return problems

    def _batches_that_do_not_fit(self) -> list[str]:
        problems = []
        rows, mini = self.rows_per_iteration, self.algorithm.mini_batch_size
        if rows % mini:
            problems.append(
                f"the {rows} rows of an iteration (loop.prompts_per_iteration={self.loop.prompts_per_iteration} x "
                f"{self.algorithm.answers_per_prompt} answers) are not a multiple of algorithm.mini_batch_size={mini}"
            )
        for name, role, learner in (
            ("policy", self.roles.policy, self.policy),
            ("critic", self.roles.critic, self.critic),
        ):
            if role is None or learner is None:
                continue
            unit = role.ranks * learner.micro_rows
            if mini % unit:
                problems.append(
                    f"algorithm.mini_batch_size={mini} does not divide into roles.{name}.ranks={role.ranks} x "
                    f"{name}.micro_rows={learner.micro_rows}: choose a multiple of {unit}"
                )
        return problems

    def _selection_that_cannot_be(self) -> list[str]:
        problems = []
        validation, evaluation = self.data.validation, self.data.evaluation
        if self.selection and not validation:
            problems.append("selection needs prompts to choose by: set data.validation")
        if validation and not self.selection:
            problems.append("data.validation is used by nothing without selection: set selection.every, or remove it")
        if validation and evaluation and resolve(validation) == resolve(evaluation):
            problems.append(
                "data.validation and data.evaluation are one file: a checkpoint that is chosen by the reported prompts "
                "flatters them, give others"
            )
        if self.selection and self.selection.every >= self.loop.iterations:
            problems.append(
                f"selection.every={self.selection.every} leaves nothing to choose from but the last of "
                f"loop.iterations={self.loop.iterations}: lower it"
            )
        return problems

    def _constraints_of_nothing(self) -> list[str]:
        costs = self.reward.costs if isinstance(self.reward, MixtureRewardConfig) else ()
        known, counts = {one.name for one in costs}, Counter(one.name for one in self.constraints)
        problems = [f"constraints: {name} occurs twice" for name, count in counts.items() if count > 1]
        if unknown := [name for name in counts if name not in known]:
            problems.append(
                f"constraints: {', '.join(unknown)} is no cost of the reward: any reward is one as an entry of "
                "reward.costs of a mixture, {name: ..., reward: {...}, scale: ..., offset: ...}, where `of: NAME` in "
                "place of reward takes one of reward.rewards"
            )
        return problems

    @property
    def rows_per_iteration(self) -> int:
        """Rollouts of one iteration."""
        return self.loop.prompts_per_iteration * self.algorithm.answers_per_prompt

    @property
    def total_optimizer_steps(self) -> int:
        """Optimizer steps of the policy (and of a critic) over the whole run."""
        per_epoch = self.rows_per_iteration // self.algorithm.mini_batch_size
        return self.loop.iterations * self.algorithm.epochs * per_epoch
