"""Architectures that are sized without a download: the `config.json` of hub models, with library defaults written out.

Source: the files of the hub repositories named below. Their Llama and CLIP parts are Vicuna-v1.5 and
openai/clip-vit-large-patch14-336, their Qwen2 and SigLIP parts Qwen2-0.5B or 7B and google/siglip-so400m-patch14-384;
Qwen2.5-VL's are its own. A test compares the counted parameters with the published totals.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

_CLIP_L_14_336: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_VICUNA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32064,
}
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}


def _llava(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": _CLIP_L_14_336,
    }


_ONEVISION_05B: dict[str, Any] = {
    "model_type": "llava_onevision",
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_token_index": 151646,
    "video_token_index": 151647,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "vocab_size": 152000,
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_ONEVISION_7B = _ONEVISION_05B | {
    "tie_word_embeddings": False,
    "text_config": _ONEVISION_05B["text_config"]
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152128,
        "tie_word_embeddings": False,
    },
}
_QWEN_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3584,
    },
}
_QWEN_VL_3B = _QWEN_VL_7B | {
    "tie_word_embeddings": True,
    "text_config": _QWEN_VL_7B["text_config"]
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "vision_config": _QWEN_VL_7B["vision_config"] | {"out_hidden_size": 2048},
}
_KNOWN = {
    "llava-hf/llava-1.5-7b-hf": _llava(_VICUNA_7B),
    "llava-hf/llava-1.5-13b-hf": _llava(_VICUNA_13B),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": _ONEVISION_05B,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": _ONEVISION_7B,
    "Qwen/Qwen2.5-VL-3B-Instruct": _QWEN_VL_3B,
    "Qwen/Qwen2.5-VL-7B-Instruct": _QWEN_VL_7B,
    # fine-tuned, so with the shapes of the two above (LlavaGuard page, sections 3 and 4)
    "AIML-TUDA/LlavaGuard-v1.2-0.5B-OV-hf": _ONEVISION_05B,
    "AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf": _ONEVISION_7B,
}


def known_config(name: str) -> dict[str, Any] | None:
    """Content of `config.json` of a hub model, None for one that is not described here."""
    return deepcopy(_KNOWN.get(name))


def known_names() -> tuple[str, ...]:
    """The hub ids that `known_config` describes."""
    return tuple(_KNOWN)
