"""A model small enough to train from nothing on two CPU cores, written as an ordinary transformers directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from rlhf.config import Config
from rlhf.data.template import IMAGE_TAG

BOS, EOS, UNK, PAD = "<s>", "</s>", "<unk>", "<pad>"
VIDEO_TAG = "<video>"  # LLaVA-OneVision's processor wants one; no prompt of ours has it

TinyKind = Literal["llava", "llava_interleave", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl"]
_SIGLIP: tuple[TinyKind, ...] = ("llava_interleave", "llava_onevision")
_QWEN_VL: tuple[TinyKind, ...] = ("qwen2_vl", "qwen2_5_vl")
_QWEN = (*_SIGLIP, *_QWEN_VL)
_QWEN_VL_TAGS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


class TinyConfig(Config):
    """Sizes of the embedded model."""

    kind: TinyKind = "llava"
    """llava, llava_next: CLIP and Llama; llava_interleave, llava_onevision: SigLIP and Qwen2 with tied embeddings;
    qwen2_vl, qwen2_5_vl: their own tower and decoder, tied, for images of up to 4 x `image_size`^2 pixels."""
    vocabulary: int = Field(default=700, ge=300)
    """Byte-level BPE tokens, learned from the training text."""
    hidden: int = Field(default=128, ge=8)
    """Width of the language model and of the vision tower."""
    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    vision_layers: int = Field(default=3, ge=2)
    """Layers of the tower; CLIP's features are those of the last but one, SigLIP's those of the last."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of both."""
    image_size: int = Field(default=48, ge=8)
    """Pixels per side."""
    patch_size: int = Field(default=8, ge=2)
    """Pixels per patch side."""
    context: int = Field(default=512, ge=64)
    """Longest sequence, image tokens included."""


def build(config: TinyConfig, corpus: Iterable[str], folder: Path, seed: int = 0) -> None:
    """Write a randomly initialised model with its own tokenizer and image processor into `folder`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    tokenizer = _train_tokenizer(config, corpus)
    settings = (_qwen_vl if config.kind in _QWEN_VL else _llava)(config, tokenizer)
    torch.manual_seed(seed)
    architecture = AutoConfig.for_model("llava" if config.kind == "llava_interleave" else config.kind, **settings)
    model = AutoModelForImageTextToText.from_config(architecture)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    folder.mkdir(parents=True, exist_ok=True)
    from rlhf.models.llava import save_pretrained

    save_pretrained(model.config, model.generation_config, dict(model.named_parameters()), folder)
    processor = _qwen_vl_processor if config.kind in _QWEN_VL else _processor
    processor(config, tokenizer).save_pretrained(folder)


def _llava(config: TinyConfig, tokenizer: Any) -> dict[str, Any]:
    siglip = config.kind in _SIGLIP
    settings: dict[str, Any] = {
        "vision_config": _siglip(config) if siglip else _clip(config),
        "text_config": _decoder(config, tokenizer),
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE_TAG),
        "vision_feature_layer": -1 if siglip else -2,
        "vision_feature_select_strategy": "full" if siglip else "default",
        "tie_word_embeddings": siglip,
    }
    if config.kind in ("llava_next", "llava_onevision"):
        settings["image_grid_pinpoints"] = _grid(config)
    if config.kind == "llava_onevision":
        settings["video_token_index"] = tokenizer.convert_tokens_to_ids(VIDEO_TAG)
    return settings


def _qwen_vl(config: TinyConfig, tokenizer: Any) -> dict[str, Any]:
    """The decoder's settings of M-RoPE are in the proportions of the published models: a quarter for time."""
    text = _decoder(config, tokenizer).to_dict()
    half = config.hidden // config.heads // 2
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}
    sizes: dict[str, Any] = {"depth": config.vision_layers, "num_heads": config.heads, "patch_size": config.patch_size}
    if config.kind == "qwen2_vl":
        vision = {**sizes, "embed_dim": config.hidden, "hidden_size": config.hidden, "mlp_ratio": 4}
    else:
        vision = {**sizes, "hidden_size": config.hidden, "intermediate_size": 4 * config.hidden}
        # windows of two by two tokens in all layers but the last
        windows = {"window_size": 4 * config.patch_size, "fullatt_block_indexes": [config.vision_layers - 1]}
        vision |= {"out_hidden_size": config.hidden, **windows}
    names = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>", "image": "<|image_pad|>"}
    ids = {name: tokenizer.convert_tokens_to_ids(tag) for name, tag in {**names, "video": "<|video_pad|>"}.items()}
    named = {f"{name}_token_id": number for name, number in ids.items()}
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **named}


def _clip(config: TinyConfig) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(projection_dim=config.hidden, **_tower(config))


def _siglip(config: TinyConfig) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(vision_use_head=False, **_tower(config))


def _tower(config: TinyConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden,
        "intermediate_size": 4 * config.hidden,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }


def _decoder(config: TinyConfig, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    qwen = config.kind in _QWEN
    return (Qwen2Config if qwen else LlamaConfig)(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=8 * config.hidden // 3 // 8 * 8,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=qwen,
    )


def _grid(config: TinyConfig) -> list[list[int]]:
    """Heights and widths that crops may tile: up to three of them in a row or column, or two by two."""
    side = config.image_size
    return [[side * rows, side * columns] for rows, columns in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]


def _processor(config: TinyConfig, tokenizer: Any) -> Any:
    from transformers import (
        CLIPImageProcessor,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        LlavaProcessor,
        SiglipImageProcessor,
    )

    side = {"height": config.image_size, "width": config.image_size}
    crop = {"size": {"shortest_edge": config.image_size}, "crop_size": side}
    about: dict[str, Any] = {"tokenizer": tokenizer, "image_token": IMAGE_TAG, "chat_template": CHAT_TEMPLATE}
    patches = {"patch_size": config.patch_size}
    if config.kind == "llava_onevision":
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=_grid(config)),
            video_processor=LlavaOnevisionVideoProcessor(size=side),
            num_image_tokens=(config.image_size // config.patch_size) ** 2,
            vision_feature_select_strategy="full",
            video_token=VIDEO_TAG,
            **about,
        )
    if config.kind == "llava_interleave":
        about |= {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
        return LlavaProcessor(image_processor=SiglipImageProcessor(size=side), **about, **patches)
    about |= {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if config.kind == "llava_next":
        images = LlavaNextImageProcessor(image_grid_pinpoints=_grid(config), **crop)
        return LlavaNextProcessor(image_processor=images, **about, **patches)
    return LlavaProcessor(image_processor=CLIPImageProcessor(**crop), **about, **patches)


def _qwen_vl_processor(config: TinyConfig, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": config.image_size**2, "longest_edge": 4 * config.image_size**2}
    about: dict[str, Any] = {"size": size, "patch_size": config.patch_size}
    kind = Qwen2VLProcessor if config.kind == "qwen2_vl" else Qwen2_5_VLProcessor
    return kind(
        image_processor=Qwen2VLImageProcessor(**about),
        video_processor=Qwen2VLVideoProcessor(**about),
        tokenizer=tokenizer,
        chat_template=QWEN_VL_CHAT_TEMPLATE,
    )


CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %} "
    "{% else %}ASSISTANT: {% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_VL_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _train_tokenizer(config: TinyConfig, corpus: Iterable[str]):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    qwen = config.kind in _QWEN  # whose tokenizer puts nothing before a text
    eos = "<|im_end|>" if config.kind in _QWEN_VL else EOS
    tags = _QWEN_VL_TAGS if config.kind in _QWEN_VL else (IMAGE_TAG,)
    special = [UNK, BOS, eos, PAD, *tags, *([VIDEO_TAG] if config.kind == "llava_onevision" else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    begin = tokenizer.token_to_id(BOS)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if not qwen:
        steps.append(processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)]))
    tokenizer.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=None if qwen else BOS,
        eos_token=eos,
        pad_token=PAD,
        additional_special_tokens=special[4:],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
