"""A LLaVA small enough to train from nothing on two CPU cores, written as an ordinary transformers directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field

from rlhf.config import Config
from rlhf.data.template import IMAGE_TAG

BOS, EOS, UNK, PAD = "<s>", "</s>", "<unk>", "<pad>"


class TinyConfig(Config):
    """Sizes of the embedded model."""

    vocabulary: int = Field(default=700, ge=300)
    """Byte-level BPE tokens, learned from the training text."""
    hidden: int = Field(default=128, ge=8)
    """Width of the language model and of the vision tower."""
    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    vision_layers: int = Field(default=3, ge=2)
    """CLIP layers; the features are those of the last but one, as in LLaVA-1.5."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of both."""
    image_size: int = Field(default=48, ge=8)
    """Pixels per side."""
    patch_size: int = Field(default=8, ge=2)
    """Pixels per patch side."""
    context: int = Field(default=512, ge=64)
    """Longest sequence, image tokens included."""


def build(config: TinyConfig, corpus: Iterable[str], folder: Path, seed: int = 0) -> None:
    """Write a randomly initialised LLaVA with its own tokenizer and image processor into `folder`."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _train_tokenizer(config, corpus)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    vision = CLIPVisionConfig(
        hidden_size=config.hidden,
        intermediate_size=4 * config.hidden,
        projection_dim=config.hidden,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=8 * config.hidden // 3 // 8 * 8,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image_id,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(llava)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    side = {"height": config.image_size, "width": config.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": config.image_size}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TAG,
        chat_template=CHAT_TEMPLATE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    from rlhf.models.llava import save_pretrained

    save_pretrained(model.config, model.generation_config, dict(model.state_dict()), folder)
    processor.save_pretrained(folder)


CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %} "
    "{% else %}ASSISTANT: {% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _train_tokenizer(config: TinyConfig, corpus: Iterable[str]):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [UNK, BOS, EOS, PAD, IMAGE_TAG]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    begin = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE_TAG],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
