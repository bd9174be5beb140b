"""Checkpoints of LLaVA-OneVision's own code (`LlavaQwenForCausalLM`), LlavaGuard's among them <-> the hub layout.

Native: Qwen2's own names, `model.mm_projector.{0,2}`, `model.image_newline`, and the SigLIP tower inside, because it
was trained; its last layer and its head are left away. Hub layout: `LlavaOnevisionForConditionalGeneration`. Every
tensor is copied as it is: Qwen2's matrices have rows to spare for `<image>` and `<video>`, and only where they have
not, rows that are the mean of the others are added, up to a multiple of 64.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.data.template import IMAGE_TAG
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.conversion import Aside, Expected, find, read_json, renamed
from rlhf.models.keys import LLAVA, to_hub
from rlhf.models.native import ROUND_VOCABULARY, hub_to_native, native_to_hub
from rlhf.models.shards import ShardWriter, read_tensors
from rlhf.models.tiny import VIDEO_TAG

NATIVE, HUB = "LlavaQwenForCausalLM", "llava_onevision"
SIGLIP = "google/siglip-so400m-patch14-384"
_KIND = "LLaVA-OneVision"
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
    "tie_word_embeddings",
)
_NEEDED = ("vocab_size", "mm_vision_tower", "image_grid_pinpoints", *_TEXT_KEYS[:5])
_FIXED = {"mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad"}
_NEWLINE = ("model.image_newline", "image_newline")
_EMBEDDING, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_TOWER = "vision_tower."
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def is_onevision(content: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family, in either layout."""
    return content.get("model_type") == HUB or NATIVE in (content.get("architectures") or ())


def to_hub_layout(source: str, target: Path, vision_tower: str | None = None) -> None:
    """Convert a native checkpoint. `vision_tower` overrides the SigLIP directory that the checkpoint names.

    The tower's weights are those of the checkpoint, if it has any; its sizes and image processor are the directory's.
    Nothing is left at `target` if it fails. Raises ConfigError for another architecture, a target that exists or a
    tower that cannot be found, CheckpointError for unknown, missing or misshapen tensors.
    """
    folder = find(source, "source")
    native = read_json(folder / "config.json")
    _require_native(native, folder)
    tower = find(vision_tower or native["mm_vision_tower"], "vision_tower")
    tokenizer = _tokenizer(folder)
    config = hub_config(native, tower_config(tower), tokenizer.convert_tokens_to_ids([IMAGE_TAG, VIDEO_TAG]))
    expected, words = Expected(_shapes(config)), int(native["vocab_size"])
    named = ((renamed(name, _to_hub, folder, _KIND), tensor) for name, tensor in read_tensors(folder))
    with Aside(target) as aside, ShardWriter(aside) as writer:
        for name, tensor in _without_tied_head(named, config, folder):
            if name in (_EMBEDDING, _HEAD):
                tensor = _extended(tensor, words, config.text_config.vocab_size, f"{folder}: {name}")
            expected.see(name, tensor, folder)
            writer.add(name, tensor)
        if not any(name.startswith(_TOWER) for name in expected.seen):
            for name, tensor in _tower_tensors(tower, config.vision_config.num_hidden_layers):
                expected.see(name, tensor, tower)
                writer.add(name, tensor)
        expected.require_all(folder)
        _write_hub_rest(config, tokenizer, tower, aside)


def to_native_layout(source: str, target: Path, vision_tower: str = SIGLIP) -> None:
    """Convert a hub-layout directory; the tower goes into the checkpoint, `vision_tower` is the name it is given.

    Raises what `to_hub_layout` raises.
    """
    from transformers import AutoConfig

    folder = find(source, "source")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != HUB:
        raise ConfigError([f"{folder / 'config.json'}: model_type is {kind}, {HUB} is needed"])
    config = AutoConfig.from_pretrained(folder)
    parts = (config.text_config.model_type, config.vision_config.model_type)
    if parts != ("qwen2", "siglip_vision_model"):
        raise ConfigError([f"{folder / 'config.json'}: the native layout is for qwen2 and SigLIP, not {parts}"])
    expected = Expected(_shapes(config))
    with Aside(target) as aside, ShardWriter(aside) as writer:
        for name, tensor in _without_tied_head(read_tensors(folder), config, folder):
            native = renamed(name, _to_native, folder, _KIND)
            expected.see(name, tensor, folder)
            writer.add(native, tensor)
        expected.require_all(folder)
        content = native_config(config, vision_tower)
        (aside / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        for name in _TOKENIZER:  # with the tags of images and videos, which the native code adds itself if they lack
            if (folder / name).exists():
                shutil.copyfile(folder / name, aside / name)


def hub_config(native: Mapping[str, Any], vision: Any, tags: list[int]) -> Any:
    """`LlavaOnevisionConfig` of a native `config.json`, the whole tower's configuration and the ids of both tags."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    text = {key: native[key] for key in _TEXT_KEYS if native.get(key) is not None}
    if native.get("rope_theta") is not None:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": native["rope_theta"]}
    rows = int(native["vocab_size"])
    if max(tags) >= rows:
        rows = -(-(max(tags) + 1) // ROUND_VOCABULARY) * ROUND_VOCABULARY
    shorter = {"num_hidden_layers": vision.num_hidden_layers - 1, "vision_use_head": False}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig.from_dict({**vision.to_dict(), **shorter}),
        text_config=Qwen2Config(vocab_size=rows, **text),
        image_token_index=tags[0],
        video_token_index=tags[1],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=native["image_aspect_ratio"],
        image_grid_pinpoints=native["image_grid_pinpoints"],
        tie_word_embeddings=bool(native.get("tie_word_embeddings")),
        dtype=native.get("torch_dtype", "bfloat16"),
    )
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    return config


def native_config(config: Any, vision_tower: str) -> dict[str, Any]:
    """`config.json` of the native layout."""
    text = config.text_config
    rope = getattr(text, "rope_parameters", None) or {}
    return {
        **{key: getattr(text, key) for key in _TEXT_KEYS},
        **_FIXED,
        "architectures": [NATIVE],
        "model_type": "llava",
        "vocab_size": text.vocab_size,
        "image_token_index": config.image_token_index,
        "rope_theta": rope.get("rope_theta", 1_000_000.0),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "torch_dtype": str(config.dtype or "bfloat16").removeprefix("torch."),
        "image_aspect_ratio": config.vision_aspect_ratio,
        "image_grid_pinpoints": config.image_grid_pinpoints,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": vision_tower,
        "use_mm_proj": True,
    }


def tower_config(tower: Path) -> Any:
    """Configuration of a SigLIP directory's image half. Raises ConfigError for another model."""
    from transformers import SiglipVisionConfig

    content = read_json(tower / "config.json")
    if content.get("model_type") not in ("siglip", "siglip_vision_model"):
        kind = content.get("model_type")
        raise ConfigError([f"{tower / 'config.json'}: model_type is {kind}, a SigLIP is needed"])
    return SiglipVisionConfig.from_pretrained(tower)


def _require_native(native: Mapping[str, Any], folder: Path) -> None:
    problems = []
    kinds = native.get("architectures") or ["nothing"]
    aspect, grid = str(native.get("image_aspect_ratio")), native.get("image_grid_pinpoints")
    if kinds[0] != NATIVE:
        problems.append(f"architectures is {kinds[0]}, {NATIVE} is needed")
    elif lacking := [key for key in _NEEDED if key not in native]:
        problems.append(f"lacks {', '.join(lacking)}")
    else:
        wrong = [f"{key} is {native.get(key)}, only {value} is converted" for key, value in _FIXED.items()]
        problems += [one for one, key in zip(wrong, _FIXED, strict=True) if native.get(key) != _FIXED[key]]
        if not aspect.startswith("anyres_max_") or not isinstance(grid, list):
            problems.append(
                f"image_aspect_ratio {aspect} with image_grid_pinpoints {grid}: only anyres_max_N with a list"
            )
        if native.get("mm_use_im_start_end") or native.get("rope_scaling") or native.get("use_sliding_window"):
            problems.append("image start and end tokens, scaled positions and sliding windows are not supported")
    if problems:
        raise ConfigError([f"{folder / 'config.json'}: {problem}" for problem in problems])


def _to_hub(name: str) -> str:
    return _NEWLINE[1] if name == _NEWLINE[0] else native_to_hub(name)


def _to_native(name: str) -> str:
    if name == _NEWLINE[1]:
        return _NEWLINE[0]
    native = hub_to_native(name)
    inside = "model.vision_tower.vision_tower."
    return native.replace(inside, f"{inside}vision_model.", 1) if native.startswith(inside) else native


def _tower_tensors(tower: Path, layers: int) -> Iterator[tuple[str, Tensor]]:
    """Hub names and tensors of a SigLIP directory without its text half, its head and its last layer."""
    last = f"vision_model.encoder.layers.{layers}."
    other = ("text_model.", "logit_", "vision_model.head.", last)
    for name, tensor in read_tensors(tower):
        if not name.startswith(other) and not name.endswith("position_ids"):
            yield f"{_TOWER}{name}", tensor


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Hub names and shapes of a model of this configuration; a tied head is not among them."""
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    return {to_hub(name, LLAVA): tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _without_tied_head(tensors: Iterable[tuple[str, Tensor]], config: Any, at: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors by hub name without a head that is tied to the embedding. Raises CheckpointError if the two differ."""
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if config.tie_word_embeddings and name in (_EMBEDDING, _HEAD):
            held[name] = tensor
        if name != _HEAD or not config.tie_word_embeddings:
            yield name, tensor
    if _HEAD in held and not torch.equal(held[_HEAD], held[_EMBEDDING]):
        raise CheckpointError(f"{at}: the LM head is not the embedding, but config.json says tie_word_embeddings")


def _extended(tensor: Tensor, words: int, rows: int, where: str) -> Tensor:
    if tensor.dim() != 2 or tensor.shape[0] != words:
        raise CheckpointError(f"{where} is {tuple(tensor.shape)}, config.json says vocab_size={words}")
    if rows == words:
        return tensor
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - words, -1)])


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([IMAGE_TAG, VIDEO_TAG], special_tokens=True)
    return tokenizer


def _write_hub_rest(config: Any, tokenizer: Any, tower: Path, target: Path) -> None:
    from transformers import (
        GenerationConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    vision, text = config.vision_config, config.text_config
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor.from_pretrained(
            tower, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        video_processor=LlavaOnevisionVideoProcessor(size={"height": vision.image_size, "width": vision.image_size}),
        tokenizer=tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
        image_token=IMAGE_TAG,
        video_token=VIDEO_TAG,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(target)
    config.save_pretrained(target)
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(target)
