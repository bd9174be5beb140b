"""A policy as a section of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from rlhf.config import Config, resolve
from rlhf.errors import ConfigError, PolicyError
from rlhf.guard.policy import KEYS, Policy, age_policy, build_policy, load_policy
from rlhf.guard.taxonomy import taxonomy, taxonomy_file

_NOT_OF_AN_AGE = ("taxonomy", "overrides", "text", "keys")


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
    def _can_be_built(self) -> PolicyConfig:
        problems = []
        if self.age is not None:
            plain = PolicyConfig.model_construct()
            given = [key for key in _NOT_OF_AN_AGE if getattr(self, key) != getattr(plain, key)]
            problems += [f"policy.{key}: the age-rated policy has its own; remove it, or policy.age" for key in given]
        elif self.text is not None and self.overrides:
            problems.append("policy.overrides: a policy.text is taken as it is; remove them or the text")
        if self.sha256 is not None and self.text is None:
            problems.append("policy.sha256: belongs to policy.text, which is unset")
        files = [taxonomy_file(resolve(self.taxonomy)), *([Path(resolve(self.text))] if self.text is not None else [])]
        if problems := problems or mistakes("policy", self.build, files):
            raise ConfigError(problems)
        return self

    def build(self) -> Policy:
        """The policy. Raises PolicyError or ConfigError for what is unknown, empty or not the file that was meant."""
        if self.age is not None:
            return age_policy(self.age).policy
        chosen = taxonomy(resolve(self.taxonomy))
        if self.text is None:
            return build_policy(chosen, self.overrides, self.keys)
        policy = load_policy(Path(resolve(self.text)), chosen.names, self.keys)
        if self.sha256 not in (None, policy.sha256, *policy.file_hashes.values()):
            raise ConfigError([f"policy.sha256: expected {self.sha256}, found {policy.words}"])
        return policy


def mistakes(key: str, build: Callable[[], Policy], files: Sequence[Path]) -> list[str]:
    """Why the policy of a configuration's section cannot be built; nothing where one of its files is not here."""
    if not all(file.is_file() for file in files):
        return []
    try:
        build()
    except PolicyError as error:
        return [f"{key}: {error}"]
    except ConfigError as error:
        return error.problems
    return []
