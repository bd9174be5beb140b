"""The configuration of a preference run (DPO and its relatives), and what must fit together in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.algorithms.dpo import DPOConfig
from rlhf.config import Config, FrozenRoleConfig, ModelConfig, RoleConfig, RunConfig
from rlhf.data.pairs import PairDataConfig
from rlhf.online_config import LearnerConfig
from rlhf.rollout.base import RolloutConfig, devices_missing, ignored_by_engines


class PreferenceDataConfig(PairDataConfig):
    """Preference pairs, and the prompts that are answered before and after training."""

    evaluation: str | None = None
    """Keyword configuration of evaluation prompts; the keyword is their kind (harmful, biometric, benign)."""
    evaluation_image_root: str | None = None
    """Folder of the evaluation images; image_root if unset."""
    label: str = ""
    """What the data are; stands above every result."""


class ReferenceConfig(Config):
    """Where the reference's log-probabilities come from."""

    source: Literal["prefetch", "columns"] = "prefetch"
    """prefetch: for the next batch while the policy trains; columns: computed once before training, stored, reused."""
    folder: str | None = None
    """Where columns are stored ("./folder" or absolute), to share them between runs; unset: in the run folder."""
    micro_rows: int = Field(default=1, ge=1)
    """Pairs per forward pass of one reference actor."""


class AnswersConfig(Config):
    """Greedy answers to the evaluation prompts, before training and by the exported model after it."""

    max_new_tokens: int = Field(default=32, ge=1)
    """Budget of one answer."""
    engine: RolloutConfig = RolloutConfig()


class PreferenceRolesConfig(Config):
    """Ray resources of every role. Engines answer before and after training only, when the other roles are gone."""

    policy: RoleConfig
    reference: FrozenRoleConfig | None = None
    """Unset for a loss without a reference (simpo, reference_free), which starts none."""
    rollout: RoleConfig = RoleConfig()
    backend: Literal["gloo", "nccl"] = "gloo"
    """Collectives of the policy's ranks: nccl on GPUs, gloo on CPUs."""


class PreferenceConfig(Config):
    """One preference run."""

    run: RunConfig
    model: ModelConfig
    """The policy at the start, which is also the reference."""
    data: PreferenceDataConfig
    policy: LearnerConfig
    """How the policy learns; its micro_rows count pairs."""
    algorithm: DPOConfig = DPOConfig()
    reference: ReferenceConfig = ReferenceConfig()
    batch_pairs: int = Field(ge=1)
    """Pairs per optimizer step over all ranks."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs; fractions are allowed."""
    share_prefix: bool = False
    """Run a pair's prompt and image once for both answers (one row, 4-D mask): needs attention sdpa."""
    answers: AnswersConfig = AnswersConfig()
    roles: PreferenceRolesConfig

    @model_validator(mode="after")
    def _numbers_fit(self) -> PreferenceConfig:
        problems = []
        unit = self.roles.policy.ranks * self.policy.micro_rows
        if self.batch_pairs % unit:
            problems.append(
                f"batch_pairs={self.batch_pairs} does not divide into roles.policy.ranks={self.roles.policy.ranks} x "
                f"policy.micro_rows={self.policy.micro_rows}: choose a multiple of {unit}"
            )
        if self.algorithm.needs_reference and self.roles.reference is None:
            problems.append("roles.reference is missing: the loss compares with one, unless algorithm.reference_free")
        if self.share_prefix and self.model.attention != "sdpa":
            problems.append(f"share_prefix needs a 4-D mask: set model.attention=sdpa (not {self.model.attention})")
        if self.policy.trainable.vision_tower:
            problems.append("policy.trainable.vision_tower: the vision tower is frozen in preference training")
        if self.data.evaluation:  # the engine answers with the whole base; only the policy is quantised
            problems += ignored_by_engines(self.model.model_copy(update={"quantise": "none"}))
        if self.answers.engine.max_length > self.model.max_length:
            problems.append("answers.engine.max_length exceeds model.max_length")
        if self.answers.max_new_tokens >= self.answers.engine.max_length:
            problems.append("answers.max_new_tokens leaves no room for a prompt in answers.engine.max_length")
        problems += devices_missing("answers.engine", self.answers.engine, "roles.rollout", self.roles.rollout)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def phases(self) -> dict[str, dict[str, RoleConfig]]:
        """Which roles hold resources at the same time, by what they do then, in the order in which that begins.

        A role that is alone in its phase has nobody to be colocated with.
        """
        roles, found = self.roles, dict[str, dict[str, RoleConfig]]()
        if self.data.evaluation:
            found["answers"] = {"rollout": roles.rollout.model_copy(update={"colocate_with": None})}
        training = {"policy": roles.policy}
        if self.algorithm.needs_reference and roles.reference is not None:
            if self.reference.source == "columns":
                found["columns"] = {"reference": roles.reference.model_copy(update={"colocate_with": None})}
            else:
                training["reference"] = roles.reference
        return {**found, "training": training}

    def total_steps(self, pairs: int) -> int:
        """Optimizer steps for so many pairs, at least one."""
        return max(1, int(self.epochs * pairs // self.batch_pairs))
