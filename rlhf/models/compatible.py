"""Do two models read the same thing? Checked from their directories, before any weights are loaded."""

from __future__ import annotations

import json

from rlhf.config import ModelConfig, resolve
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError

# spellings on which tokenizers with one vocabulary still differ: spaces, line ends, case, numbers, bytes
_PROBE = "Q: Why?\n\nIs  this (1,234) it's caf\u00e9 \u4f60 A: So."
_SHOWN = 3


def check_same_inputs(policy: ModelConfig, other: ModelConfig, key: str = "reward.model") -> None:
    """Refuse a reward model or critic (`key` in the configuration) that would misread the policy's tokens or images.

    Such a model gets the policy's own token ids and opens the same images, so it must agree with it on vocabulary,
    special ids, tokens per image, image settings and template. Raises ConfigError with every difference.
    """
    ours, theirs = Processor.load(policy), Processor.load(other, key)
    problems = [*_tokenizers(ours, theirs), *_images(ours, theirs)]
    if policy.template != other.template:
        problems.append(f"{key}.template is {other.template}, model.template is {policy.template}")
    if problems:
        remedy = (
            f"set {key}.path to one trained from the policy's own base "
            "(jobs/train_reward_model.py with the policy as model.path), with the same template and pad_to_square"
        )
        raise ConfigError(
            [
                f"{key}: {resolve(other.path)} does not read what the policy {resolve(policy.path)} writes and sees: "
                f"{'; '.join(problems)}. {remedy}"
            ]
        )


def _tokenizers(ours: Processor, theirs: Processor) -> list[str]:
    left, right = ours.tokenizer.get_vocab(), theirs.tokenizer.get_vocab()
    differing = sorted(token for token in left.keys() | right.keys() if left.get(token) != right.get(token))
    if differing:
        some = ", ".join(
            f"{token!r} is {right.get(token)} instead of {left.get(token)}" for token in differing[:_SHOWN]
        )
        return [f"{len(differing)} tokens of its tokenizer have other ids ({some})"]
    problems = [
        f"its {name} id is {theirs_} instead of {ours_}"
        for name in ("image", "eos", "pad")
        if (ours_ := getattr(ours, f"{name}_id")) != (theirs_ := getattr(theirs, f"{name}_id"))
    ]
    if ours.tokenizer.bos_token_id != theirs.tokenizer.bos_token_id:
        problems.append(f"its bos id is {theirs.tokenizer.bos_token_id} instead of {ours.tokenizer.bos_token_id}")
    if not problems and ours.tokenizer(_PROBE)["input_ids"] != theirs.tokenizer(_PROBE)["input_ids"]:
        problems.append("its tokenizer splits the same text into other tokens")
    return problems


def _images(ours: Processor, theirs: Processor) -> list[str]:
    problems = []
    if ours.tokens_per_image != theirs.tokens_per_image:
        left, right = (one.tokens_per_image or "a varying number of" for one in (ours, theirs))
        problems.append(f"an image is {right} tokens instead of {left}")
    mine, other = (_settings(one) for one in (ours, theirs))
    problems.extend(
        f"its image processor has {name}={other.get(name)} instead of {mine.get(name)}"
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name)
    )
    return problems


def _settings(processor: Processor) -> dict[str, object]:
    settings = json.loads(processor.image_processor.to_json_string())
    settings.pop("processor_class", None)  # who saved it, not what it does
    return {**settings, "pad_to_square": processor.config.pad_to_square}
