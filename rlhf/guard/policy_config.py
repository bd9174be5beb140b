"""A policy as a section of a configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from rlhf.config import Config, resolve
from rlhf.errors import ConfigError
from rlhf.guard.policy import KEYS, Policy, age_policy, build_policy, file_hashes, load_policy
from rlhf.guard.taxonomy import taxonomy


class PolicyConfig(Config):
    """What is allowed: a taxonomy with variants, a text as it is, or what an age may see."""

    taxonomy: str = "default"
    """A packaged taxonomy (default, eu, tiny, tiny_answers) or a YAML file of the same form ("./mine.yaml")."""
    overrides: dict[str, str] = Field(default_factory=dict)
    """Variants by category: default, exempt or sensitive."""
    text: str | None = None
    """A file with the policy's own words, for weights that were trained on them; the taxonomy names its categories."""
    sha256: str | None = None
    """text: refuse another file; of the file, of it without its image tag (both are published), or of `Policy.text`."""
    age: int | None = None
    """The age-rated policy for viewers of 3, 7, 12, 16 or 18 years instead."""
    keys: tuple[str, ...] = KEYS
    """Keys of an answer, in the order in which the guard gives them."""

    @model_validator(mode="after")
    def _one_of_them(self) -> PolicyConfig:
        problems = []
        if self.age is not None and (self.text is not None or self.overrides):
            problems.append("policy.age: the age-rated policy has no text and no overrides; remove them")
        if self.text is not None and self.overrides:
            problems.append("policy.overrides: a policy.text is taken as it is; remove them or the text")
        if self.sha256 is not None and self.text is None:
            problems.append("policy.sha256: belongs to policy.text, which is unset")
        if problems:
            raise ConfigError(problems)
        return self

    def build(self) -> Policy:
        """The policy. Raises PolicyError or ConfigError for what is unknown, empty or not the file that was meant."""
        if self.age is not None:
            return age_policy(self.age).policy
        chosen = taxonomy(resolve(self.taxonomy))
        if self.text is None:
            return build_policy(chosen, self.overrides, self.keys)
        path = Path(resolve(self.text))
        policy = load_policy(path, chosen.names, self.keys)
        hashes = {**file_hashes(path), "sha256_of_policy": policy.sha256}
        if self.sha256 is not None and self.sha256 not in hashes.values():
            has = ", ".join(f"{name} {value}" for name, value in hashes.items())
            raise ConfigError([f"policy.sha256: {policy.name} has {has}, expected {self.sha256}"])
        return policy
