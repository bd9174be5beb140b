"""The guard's reward: what a guard makes of answers to questions, and of their images, under a policy text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from rlhf.batch import Prompt, Score
from rlhf.config import Config, ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError, PromptTooLongError, RowError
from rlhf.guard.guards import ChatGuard, EndpointConfig, EngineGuard, Guard, GuardDecoding
from rlhf.guard.policy import Policy
from rlhf.guard.policy_config import PolicyConfig
from rlhf.guard.prompt import GuardRequest, require_room
from rlhf.guard.verdict import Verdict
from rlhf.roles import Rollout
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, ignored_by_engines

ANSWER_PART, IMAGE_PART = "guard_answer", "guard_image"
"""What the verdicts are called among a score's parts."""


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
                f"reward: invalid <= unsafe <= safe must hold, found {self.invalid:g}, {self.unsafe:g}, {self.safe:g}; "
                "a cost gets its sign from reward.costs: scale -0.5 and offset 0.5 make 1 of Unsafe and 0 of Safe"
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
        self._processor = Processor.load(config.model) if config.model else None
        self._guard = _guard(config, self._policy, self._processor)
        self._images: dict[str, Verdict] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Weighted worth of the verdicts, with a part for each, and which of them are invalid.

        So is the verdict on an answer that leaves no room in the guard's context. Raises RowError for a prompt without
        an image.
        """
        images = [_image_of(one.prompt) for one in rollouts]
        config = self._config
        verdicts: list[dict[str, tuple[float, Verdict]]] = [{} for _ in rollouts]
        if config.answer_weight:
            asked = [_about_answer(one.prompt, self._policy, one.completion.text) for one in rollouts]
            for mine, verdict in zip(verdicts, self._judge(asked), strict=True):
                mine[ANSWER_PART] = config.answer_weight, verdict
        if config.image_weight:
            new = [image for image in dict.fromkeys(images) if image not in self._images]
            made = self._judge([GuardRequest(image, image, self._policy) for image in new])
            found = self._images | dict(zip(new, made, strict=True))
            self._images = {image: verdict for image, verdict in found.items() if not verdict.silent}  # those ask again
            for mine, image in zip(verdicts, images, strict=True):
                mine[IMAGE_PART] = config.image_weight, found[image]
        return [self._score(mine) for mine in verdicts]

    def _score(self, verdicts: Mapping[str, tuple[float, Verdict]]) -> Score:
        worth = {"Safe": self._config.safe, "Unsafe": self._config.unsafe, None: self._config.invalid}
        parts = {name: weight * worth[verdict.rating] for name, (weight, verdict) in verdicts.items()}
        invalid = {name: verdict.rating is None for name, (_, verdict) in verdicts.items()}
        return Score(sum(parts.values()), parts, invalid=invalid)

    def _judge(self, requests: Sequence[GuardRequest]) -> list[Verdict]:
        """A verdict on each; engines refuse a whole batch for one request that is too long, so that one stays out."""
        try:
            return self._guard.judge(requests)
        except PromptTooLongError:
            if self._processor is None:
                raise
            problems = [_too_long(one, self._config, self._processor) for one in requests]
        asked = [one for one, problem in zip(requests, problems, strict=True) if not problem]
        found = iter(self._guard.judge(asked) if asked else ())
        return [Verdict("invalid", None, (), "", "", problem) if problem else next(found) for problem in problems]


def require_judgeable(config: GuardRewardConfig, prompts: Sequence[Prompt], answer_tokens: int) -> None:
    """Refuse, before a run starts, prompts that the guard cannot judge with answers of up to so many tokens.

    Looked at are all images, and the room for the longest question, beside its own image. Tokens are the guard's: where
    the policy's are others, an answer may still turn out too long, and is then an invalid verdict. What an endpoint has
    room for is not known. Raises RowError or PromptTooLongError.
    """
    for one in prompts:
        _image_of(one)
    if config.model is None or not prompts:
        return
    policy, budget = config.policy.build(), config.decoding.max_new_tokens
    longest = max(prompts, key=lambda one: len(one.question))
    request = GuardRequest(longest.id, _image_of(longest), policy)
    if config.answer_weight:
        request, budget = _about_answer(longest, policy, ""), budget + answer_tokens
    require_room(request, Processor.load(config.model), config.rollout.max_length, budget)


def _guard(config: GuardRewardConfig, policy: Policy, processor: Processor | None) -> Guard:
    if config.endpoint is not None:
        chat = config.endpoint.chat(config.decoding.max_new_tokens)
        return ChatGuard(chat, config.decoding, config.endpoint.concurrency)
    if config.model is None or processor is None:
        raise ConfigError(["reward: kind guard needs either model or endpoint"])
    request = GuardRequest(policy.name, "", policy)
    require_room(request, processor, config.rollout.max_length, config.decoding.max_new_tokens, with_image=False)
    return EngineGuard(build_engine(config.model, config.rollout, processor), config.decoding)


def _about_answer(prompt: Prompt, policy: Policy, said: str) -> GuardRequest:
    return GuardRequest(prompt.id, _image_of(prompt), policy, said, prompt.question)


def _too_long(request: GuardRequest, config: GuardRewardConfig, processor: Processor) -> str:
    """Why the guard has no room for a request; "" where it has."""
    try:
        require_room(request, processor, config.rollout.max_length, config.decoding.max_new_tokens)
    except PromptTooLongError as error:
        return error.reason
    return ""


def _image_of(prompt: Prompt) -> str:
    if prompt.image is None:
        raise RowError("a guard judges images, and this prompt has none; leave such prompts out", source=prompt.id)
    return prompt.image
