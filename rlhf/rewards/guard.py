"""The guard's reward: what a guard makes of answers to questions, and of their images, under a policy text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from rlhf.batch import Score
from rlhf.config import Config, ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError, RowError
from rlhf.guard.guards import ChatGuard, EndpointConfig, EngineGuard, Guard, GuardDecoding
from rlhf.guard.policy import Policy
from rlhf.guard.policy_config import PolicyConfig
from rlhf.guard.prompt import GuardRequest, require_room
from rlhf.guard.verdict import Verdict
from rlhf.roles import Rollout
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, ignored_by_engines


class GuardRewardConfig(Config):
    """A guard model directory or an endpoint, a policy, and what verdicts are worth."""

    kind: Literal["guard"] = "guard"
    """Which reward this is."""
    model: ModelConfig | None = None
    """Directory of a guard; or leave it out and give an endpoint."""
    rollout: RolloutConfig = RolloutConfig()
    """model: the engine that it answers in."""
    endpoint: EndpointConfig | None = None
    """A guard behind an OpenAI-compatible endpoint."""
    policy: PolicyConfig = PolicyConfig()
    decoding: GuardDecoding = GuardDecoding()
    safe: float = 1.0
    """Worth of a Safe verdict."""
    unsafe: float = -1.0
    """Worth of an Unsafe verdict."""
    invalid: float = -1.0
    """Worth of a verdict that cannot be read; at most that of Unsafe, or confusing the guard would pay."""
    answer_weight: float = Field(default=1.0, ge=0)
    """Of the verdict on the answer, which the guard reads beside image and question; 0 asks for none."""
    image_weight: float = Field(default=0.0, ge=0)
    """Of the verdict on the image alone, the same for all answers about it; 0 asks for none."""

    @model_validator(mode="after")
    def _fits(self) -> GuardRewardConfig:
        problems = []
        if (self.model is None) == (self.endpoint is None):
            problems.append("reward: kind guard needs either model or endpoint")
        if self.model is not None:
            problems += ignored_by_engines(self.model, "reward.model")
        if self.model is not None and self.rollout.engine == "transformers" and self.decoding.constrained:
            problems.append("reward.decoding.constrained: the transformers engine cannot; set it to false or use vllm")
        if not self.invalid <= self.unsafe <= self.safe:
            problems.append(
                f"reward: invalid <= unsafe <= safe must hold, found {self.invalid:g}, {self.unsafe:g}, {self.safe:g}"
            )
        if self.answer_weight == self.image_weight == 0:
            problems.append("reward: answer_weight and image_weight are both 0, so every score would be 0")
        if problems:
            raise ConfigError(problems)
        return self


class GuardReward:
    """Asks a guard about every answer, and once about every image."""

    def __init__(self, config: GuardRewardConfig) -> None:
        """Raises PolicyError for a policy that is wrong, PromptTooLongError for one that the guard has no room for."""
        self._config, self._policy = config, config.policy.build()
        self._guard = _guard(config, self._policy)
        self._images: dict[str, Verdict] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Weighted worth of the verdicts, with a part for each. Raises RowError for a prompt without an image."""
        images = [_image_of(one) for one in rollouts]
        config = self._config
        parts: list[dict[str, float]] = [{} for _ in rollouts]
        if config.answer_weight:
            asked = [
                GuardRequest(one.prompt.id, image, self._policy, one.completion.text, one.prompt.question)
                for one, image in zip(rollouts, images, strict=True)
            ]
            for part, verdict in zip(parts, self._guard.judge(asked), strict=True):
                part["guard_answer"] = config.answer_weight * self._worth(verdict)
        if config.image_weight:
            new = [image for image in dict.fromkeys(images) if image not in self._images]
            found = self._guard.judge([GuardRequest(image, image, self._policy) for image in new])
            self._images.update(zip(new, found, strict=True))
            for part, image in zip(parts, images, strict=True):
                part["guard_image"] = config.image_weight * self._worth(self._images[image])
        return [Score(sum(part.values()), part) for part in parts]

    def _worth(self, verdict: Verdict) -> float:
        worth = {"Safe": self._config.safe, "Unsafe": self._config.unsafe, None: self._config.invalid}
        return worth[verdict.rating]


def _guard(config: GuardRewardConfig, policy: Policy) -> Guard:
    if config.endpoint is not None:
        chat = config.endpoint.chat(config.decoding.max_new_tokens)
        return ChatGuard(chat, config.decoding, config.endpoint.concurrency)
    if config.model is None:
        raise ConfigError(["reward: kind guard needs either model or endpoint"])
    processor = Processor.load(config.model)
    request = GuardRequest(policy.name, "", policy)
    require_room(request, processor, config.rollout.max_length, config.decoding.max_new_tokens, with_image=False)
    return EngineGuard(build_engine(config.model, config.rollout, processor), config.decoding)


def _image_of(rollout: Rollout) -> str:
    if rollout.prompt.image is None:
        raise RowError(
            "a guard judges images, and this prompt has none; leave such prompts out", source=rollout.prompt.id
        )
    return rollout.prompt.image
