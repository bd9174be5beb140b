"""Frozen matrices in 8 or 4 bits under LoRA adapters (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

Only the decoder's linear layers are quantised: tower, projector, embeddings, norms and LM head keep `model.dtype`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rlhf.config import ModelConfig, TrainableConfig
from rlhf.errors import ConfigError

_WHOLE = [
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.visual",
    "lm_head",
]  # matched from the start of a name


def quantisation(config: ModelConfig, trainable: TrainableConfig | None) -> dict[str, Any]:
    """Arguments for `from_pretrained`. Raises ConfigError where weights that learn would be quantised."""
    if config.quantise == "none":
        return {}
    if trainable is not None and trainable.language_model and trainable.lora is None:
        raise ConfigError([f"model.quantise={config.quantise} freezes the language model: set trainable.lora"])
    if find_spec("bitsandbytes") is None:
        raise ConfigError([f"model.quantise={config.quantise} needs bitsandbytes: install the `qlora` extra"])
    import torch
    from transformers import BitsAndBytesConfig

    if config.quantise == "int8":
        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_WHOLE)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if config.dtype == "bfloat16" else torch.float32,
            llm_int8_skip_modules=_WHOLE,
        )
    return {"quantization_config": settings}


def partition_problem(config: ModelConfig, partitioned: bool) -> str:
    """Why quantised weights cannot be shared out over ranks, if they are to be; "" if they can."""
    if config.quantise == "none" or not partitioned:
        return ""
    return f"model.quantise={config.quantise}: ZeRO-3 cannot partition quantised weights; use stage 2, or whole weights"
