"""A guard in an engine of ours, asked about many images: its configuration, and requests as prompts of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pydantic import model_validator

from rlhf.batch import Prompt
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.guard.guards import GuardDecoding
from rlhf.guard.prompt import GuardRequest, guard_prompt, require_room
from rlhf.inference import GenerationConfig
from rlhf.rollout.base import RolloutConfig


class GuardGenerationConfig(GenerationConfig):
    """What asking a guard about many images needs; jobs add where the images come from."""

    sampling: GuardDecoding = GuardDecoding()

    @model_validator(mode="after")
    def _engine_can_hold_answers(self) -> GuardGenerationConfig:
        if problems := misheld(self.sampling, self.rollout):
            raise ConfigError(problems)
        return self


def misheld(decoding: GuardDecoding, rollout: RolloutConfig, key: str = "sampling") -> list[str]:
    """What is wrong if the engine cannot hold answers to JSON; `key` is the configuration's name of the decoding."""
    if not decoding.constrained or rollout.engine == "vllm":
        return []
    return [
        f"{key}.constrained: the {rollout.engine} engine cannot hold answers to a schema; "
        "set it to false, or rollout.engine=vllm"
    ]


Asking = TypeVar("Asking", bound=GuardGenerationConfig)


def held_to(config: Asking, request: GuardRequest) -> Asking:
    """The configuration with the schema of the request's policy.

    Policies of one taxonomy with the same keys have one schema: overrides change the text, not the categories.
    """
    return config.model_copy(update={"sampling": config.sampling.for_request(request)})


def batch_prompt(request: GuardRequest, source: str, row: int) -> Prompt:
    """The prompt of a request under an id that names its row, so that a refused one can be found."""
    return replace(guard_prompt(request), id=f"{source}:{row}")


def require_room_for(
    config: GuardGenerationConfig, requests: Sequence[GuardRequest], processor: Processor, with_image: bool = True
) -> None:
    """Refuse a policy that does not fit before an engine starts. Raises PromptTooLongError with its tokens.

    The longest text is looked at with its own image, if that is known; images that make more tokens are refused later,
    one by one.
    """
    longest = max(requests, key=lambda one: len(one.text))
    require_room(longest, processor, config.rollout.max_length, config.sampling.max_new_tokens, with_image)
