"""Checkpoints of the original LLaVA code (`LlavaLlamaForCausalLM`) <-> the hub layout that everything here uses.

Native: Llama's own names, `model.mm_projector.{0,2}`, no `<image>` token, and the vision tower elsewhere, named by
`mm_vision_tower`. Hub layout: `LlavaForConditionalGeneration` with the tower inside and a vocabulary extended by
`<image>` and `<pad>`, rounded up to 64 rows. New rows are the mean of the old ones, as in transformers' own conversion
but without its noise, so that a conversion repeats byte for byte. Every other tensor is copied as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.data.template import IMAGE_TAG
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.conversion import Aside, Expected, find, read_json, renamed
from rlhf.models.keys import LLAVA, from_hub, to_hub
from rlhf.models.shards import ShardWriter, read_tensors
from rlhf.models.tiny import CHAT_TEMPLATE, PAD

ROUND_VOCABULARY = 64
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "bos_token_id",
    "eos_token_id",
)
_TO_MEMORY = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.vision_tower.vision_tower.", "model.vision_tower."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
_VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
_TOWER = "vision_tower."
_KIND = "LLaVA-1.5"
_BUFFERS = ("rotary_emb.inv_freq", "position_ids")  # old versions wrote them; today they are computed


def native_to_hub(name: str) -> str:
    """Hub name of a native parameter; raises KeyError for a name of another architecture."""
    for prefix, replacement in _TO_MEMORY:
        if name.startswith(prefix):
            return to_hub(replacement + name[len(prefix) :], LLAVA)
    raise KeyError(name)


def hub_to_native(name: str) -> str:
    """The inverse of `native_to_hub`."""
    inside = from_hub(name, LLAVA)
    for prefix, replacement in _TO_MEMORY:
        if inside.startswith(replacement):
            return prefix + inside[len(replacement) :]
    raise KeyError(name)


def to_hub_layout(source: str, target: Path, vision_tower: str | None = None) -> None:
    """Convert a native checkpoint. `vision_tower` overrides the checkpoint's own `mm_vision_tower`.

    Nothing is left at `target` if it fails. Raises ConfigError for another architecture, a target that exists or a
    tower that cannot be found, CheckpointError for unknown, missing or misshapen tensors.
    """
    folder = find(source, "source")
    native = read_json(folder / "config.json")
    _require_native(native, folder)
    tower = find(vision_tower or native["mm_vision_tower"], "vision_tower")
    write_hub_layout(folder, native, tower, target)


def write_hub_layout(
    folder: Path, native: Mapping[str, Any], tower: Path, target: Path, more: Sequence[tuple[str, Tensor]] = ()
) -> None:
    """A native checkpoint and a CLIP directory as one model; `more` are tensors by hub name that neither has."""
    config = hub_config(native, tower_config(tower))
    old = int(native["vocab_size"])
    expected = Expected(_shapes(config))
    with Aside(target) as aside, ShardWriter(aside) as writer:
        for name, tensor in read_tensors(folder):
            if name.endswith(_BUFFERS):
                continue
            hub = renamed(name, native_to_hub, folder, _KIND)
            if hub in _VOCABULARY:
                tensor = _extended(tensor, old, config.text_config.vocab_size, f"{folder}: {name}")
            expected.see(hub, tensor, folder)
            writer.add(hub, tensor)
        for name, tensor in more:
            expected.see(name, tensor, folder)
            writer.add(name, tensor)
        if not any(name.startswith(_TOWER) for name in expected.seen):
            for name, tensor in _tower_tensors(tower):
                expected.see(name, tensor, tower)
                writer.add(name, tensor)
        expected.require_all(folder)
        _write_hub_rest(config, folder, tower, aside)


def to_native_layout(source: str, target: Path, vision_tower: str) -> None:
    """Convert a hub-layout directory whose tower is that of `vision_tower` (the native layout only names it).

    Raises what `to_hub_layout` raises; CheckpointError too if the tower differs, because it would be lost.
    """
    folder, tower = find(source, "source"), find(vision_tower, "vision_tower")
    config = _hub_config_of(folder)
    expected = Expected(_shapes(config))
    words, originals = int(config.image_token_index), dict(_tower_tensors(tower))
    with Aside(target) as aside, ShardWriter(aside) as writer:
        for name, tensor in read_tensors(folder):
            if name.endswith(_BUFFERS):
                continue
            native = renamed(name, hub_to_native, folder, _KIND)
            expected.see(name, tensor, folder)
            if name.startswith(_TOWER):
                _require_same_tower(name, tensor, originals, folder, tower)
            else:
                writer.add(native, tensor[:words].clone() if name in _VOCABULARY else tensor)
        expected.require_all(folder)
        content = native_config(config, vision_tower)
        (aside / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        _write_native_tokenizer(folder, aside, words)


def hub_config(native: Mapping[str, Any], vision: Any) -> Any:
    """`LlavaConfig` of a native `config.json` and the tower's configuration."""
    from transformers import LlamaConfig, LlavaConfig

    words = int(native["vocab_size"])
    text = {key: native[key] for key in _TEXT_KEYS if native.get(key) is not None}
    if native.get("rope_theta") is not None:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": native["rope_theta"]}
    rows = -(-(words + 2) // ROUND_VOCABULARY) * ROUND_VOCABULARY
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=rows, pad_token_id=words + 1, tie_word_embeddings=False, **text),
        image_token_index=words,
        pad_token_id=words + 1,
        vision_feature_layer=native["mm_vision_select_layer"],
        vision_feature_select_strategy=_STRATEGIES[native.get("mm_vision_select_feature", "patch")],
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        dtype=native.get("torch_dtype", "float16"),
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def native_config(config: Any, vision_tower: str) -> dict[str, Any]:
    """`config.json` of the native layout; raises ConfigError for what that layout cannot say."""
    text = config.text_config
    if not isinstance(config.vision_feature_layer, int):
        raise ConfigError(["source: the native layout reads one vision layer, this model reads several"])
    kept = {key: getattr(text, key) for key in _TEXT_KEYS}
    rope = getattr(text, "rope_parameters", None) or {}
    strategies = {value: key for key, value in _STRATEGIES.items()}
    return {
        **kept,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": int(config.image_token_index),
        "pad_token_id": 0,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "tie_word_embeddings": False,
        "torch_dtype": str(config.dtype or "float16").removeprefix("torch."),
        "image_aspect_ratio": "pad",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": strategies[config.vision_feature_select_strategy],
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": vision_tower,
        "use_mm_proj": True,
    }


def _require_native(native: Mapping[str, Any], folder: Path) -> None:
    problems = []
    kinds = native.get("architectures") or ["nothing"]
    if kinds[0] not in ("LlavaLlamaForCausalLM", "LlavaForCausalLM"):
        problems.append(
            f"architectures is {kinds[0]}, only LlavaLlamaForCausalLM and LlavaQwenForCausalLM are converted"
        )
    elif lacking := [key for key in ("vocab_size", "mm_vision_tower", "mm_vision_select_layer") if key not in native]:
        problems.append(f"lacks {', '.join(lacking)}")
    elif native.get("mm_projector_type", "linear") != "mlp2x_gelu":
        kind = native.get("mm_projector_type", "linear")
        problems.append(f"mm_projector_type is {kind}, only mlp2x_gelu (LLaVA-1.5) has a place in the hub layout")
    elif native.get("mm_vision_select_feature", "patch") not in _STRATEGIES:
        problems.append(f"mm_vision_select_feature is {native['mm_vision_select_feature']!r}")
    elif native.get("mm_use_im_start_end") or native.get("tie_word_embeddings") or native.get("rope_scaling"):
        problems.append("image start and end tokens, tied embeddings and scaled positions are not supported")
    if problems:
        raise ConfigError([f"{folder / 'config.json'}: {problem}" for problem in problems])


def _hub_config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    content = read_json(folder / "config.json")
    if content.get("model_type") != "llava" or "text_config" not in content:
        kinds = content.get("architectures") or [content.get("model_type", "nothing")]
        raise ConfigError([f"{folder / 'config.json'}: {kinds[0]} is not LlavaForConditionalGeneration"])
    config = AutoConfig.from_pretrained(folder)
    if config.text_config.model_type != "llama" or config.vision_config.model_type != "clip_vision_model":
        parts = f"{config.text_config.model_type} and {config.vision_config.model_type}"
        raise ConfigError([f"{folder / 'config.json'}: the native layout is for llama and CLIP, not {parts}"])
    if config.image_token_index + ROUND_VOCABULARY < config.text_config.vocab_size:
        at, rows = config.image_token_index, config.text_config.vocab_size
        raise ConfigError([f"{folder / 'config.json'}: {IMAGE_TAG} is {at} of {rows} tokens, not behind all words"])
    return config


def tower_config(tower: Path) -> Any:
    """Configuration of a CLIP directory's image half. Raises ConfigError for another model."""
    from transformers import CLIPVisionConfig

    content = read_json(tower / "config.json")
    if content.get("model_type") not in ("clip", "clip_vision_model"):
        raise ConfigError([f"{tower / 'config.json'}: model_type is {content.get('model_type')}, a CLIP is needed"])
    return CLIPVisionConfig.from_pretrained(tower)


def _tower_tensors(tower: Path) -> Iterator[tuple[str, Tensor]]:
    """Hub names and tensors of a CLIP directory, its text half left out."""
    other = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    for name, tensor in read_tensors(tower):
        if not name.startswith(other) and not name.endswith("position_ids"):
            yield f"{_TOWER}vision_model.{name.removeprefix('vision_model.')}", tensor


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Hub names and shapes of a model of this configuration."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {to_hub(name, LLAVA): tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _require_same_tower(name: str, tensor: Tensor, originals: Mapping[str, Tensor], folder: Path, tower: Path) -> None:
    original = originals.get(name)
    if original is None or not torch.equal(original.to(tensor.dtype), tensor):
        raise CheckpointError(
            f"{folder}: {name} differs from {tower}. A trained vision tower has no place in the native layout, and one "
            "of another source must be named by vision_tower"
        )


def _extended(tensor: Tensor, words: int, rows: int, where: str) -> Tensor:
    if tensor.dim() != 2 or tensor.shape[0] != words:
        raise CheckpointError(f"{where} is {tuple(tensor.shape)}, config.json says vocab_size={words}")
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - words, -1)])


def _write_hub_rest(config: Any, folder: Path, tower: Path, target: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, GenerationConfig, LlavaProcessor

    words, vision = config.image_token_index, config.vision_config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([IMAGE_TAG, PAD], special_tokens=True)
    tokenizer.pad_token = PAD
    found = tokenizer.convert_tokens_to_ids([IMAGE_TAG, PAD])
    if found != [words, words + 1]:
        raise CheckpointError(
            f"{folder}: the tokenizer gives {IMAGE_TAG} and {PAD} the ids {found}, config.json's vocab_size asks for "
            f"{words} and {words + 1}"
        )
    strategy = config.vision_feature_select_strategy
    LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(tower),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE_TAG,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(target)
    config.save_pretrained(target)
    text = config.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=words + 1
    ).save_pretrained(target)


def _write_native_tokenizer(folder: Path, target: Path, words: int) -> None:
    """The tokenizer's files without the ids from `words` on; padding is `<unk>` again."""
    if (folder / "tokenizer.model").exists():
        shutil.copyfile(folder / "tokenizer.model", target / "tokenizer.model")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if not (folder / name).exists():
            continue
        content = read_json(folder / name)
        if name == "tokenizer.json":
            content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < words]
            content["padding"] = None
        else:
            decoder = content.get("added_tokens_decoder", {})
            content["added_tokens_decoder"] = {key: token for key, token in decoder.items() if int(key) < words}
            for key in ("image_token", "processor_class", "extra_special_tokens", "additional_special_tokens"):
                content.pop(key, None)
            content["pad_token"] = content.get("unk_token", "<unk>")
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
