"""Loading, freezing and running LLaVA.

`VisionLanguage` is the module that DeepSpeed wraps: language model, projector, and the vision tower only if it learns.
A frozen tower lives outside it (`FrozenTower`), whole on every rank: its features are computed once per image, ZeRO-3
never gathers it, and a rank whose batch has no image cannot leave the others waiting for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.batch import TokenBatch
from rlhf.config import ModelConfig, TrainableConfig, resolve
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.models.keys import to_hub

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FrozenTower:
    """A vision tower that never learns, with a cache of what it saw.

    Images are encoded one at a time: a batched kernel rounds differently for different batch sizes, and then a resumed
    run would not equal an undisturbed one.
    """

    def __init__(self, tower: nn.Module, config: Any, processor: Processor, cache_bytes: int) -> None:
        self._tower = tower.eval().requires_grad_(False)
        self._config, self._processor, self._room = config, processor, cache_bytes
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self.forwards = 0

    def features(self, paths: Sequence[str]) -> Tensor:
        """[len(paths), tokens, width] on the tower's device: hidden states as the projector expects them."""
        return torch.stack([self._one(path) for path in paths])

    def state_dict(self) -> dict[str, Tensor]:
        """Weights under their full names in the model."""
        return {f"model.vision_tower.{name}": tensor for name, tensor in self._tower.state_dict().items()}

    @torch.no_grad()
    def _one(self, path: str) -> Tensor:
        cached = self._cache.get(path)
        parameter = next(self._tower.parameters())
        if cached is not None:
            self._cache.move_to_end(path)
            return cached.to(parameter.device)
        pixels = self._processor.pixels(path)[None].to(parameter.device, parameter.dtype)
        states = self._tower(pixels, output_hidden_states=True).hidden_states
        layers = self._config.vision_feature_layer
        chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if self._config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]  # drop CLS
        result = torch.cat(chosen, dim=-1)[0]
        self.forwards += 1
        size = result.numel() * result.element_size()
        while self._cache and len(self._cache) * size + size > self._room:
            self._cache.popitem(last=False)
        if size <= self._room:
            self._cache[path] = result.cpu()
        return result


class VisionLanguage(nn.Module):
    """LLaVA as a function from tokens and images to hidden states, with its LM head apart."""

    def __init__(self, vlm: Any, processor: Processor, tower: FrozenTower | None) -> None:
        super().__init__()
        self.vlm = vlm
        self.processor = processor
        self.tower = tower  # no nn.Module, hence no parameters of this module

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.vlm.config.text_config.hidden_size)

    def hidden(self, tokens: TokenBatch) -> Tensor:
        """[B, T, H] hidden states after the final norm.

        A batch without images still runs the projector (and a learning tower) on a blank, times zero: under ZeRO-3
        every rank must gather the same parameters.
        """
        device = self.vlm.lm_head.weight.device
        paths = [path for path in tokens.images if path is not None]
        image = self._image_inputs(paths, device)
        output = self.vlm.model(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            use_cache=False,
            **(image if paths else {}),
        ).last_hidden_state
        if not paths and self.training:
            output = output + 0.0 * sum(feature.sum() for feature in self._projected(image))
        return output

    def named_state(self) -> dict[str, Tensor]:
        """Every parameter by its name in the transformers model, frozen tower included. Not gathered."""
        state = dict(self.vlm.named_parameters())
        if self.tower is not None:
            state.update(self.tower.state_dict())
        return state

    def _image_inputs(self, paths: Sequence[str], device: torch.device) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if self.tower is None:
            size = self.vlm.config.vision_config.image_size
            blank = [torch.zeros(3, size, size)]
            pixels = torch.stack([self.processor.pixels(path) for path in paths] or blank)
            return {"pixel_values": pixels.to(device, self.vlm.dtype)}
        if paths:
            features = self.tower.features(paths)
        else:
            width = self.vlm.model.multi_modal_projector.linear_1.in_features
            features = torch.zeros(1, 1, width, dtype=self.vlm.dtype)
        projected = self.vlm.model.multi_modal_projector(features.to(device))
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}}

    def _projected(self, image: Mapping[str, Any]) -> Sequence[Tensor]:
        if "pixel_values" in image:
            return self.vlm.model.get_image_features(image["pixel_values"], return_dict=True).pooler_output
        return image["mm_encoder_outputs"]["image"].pooler_output


def load(config: ModelConfig, trainable: TrainableConfig | None, processor: Processor | None = None) -> VisionLanguage:
    """Read a LLaVA directory; `trainable=None` freezes everything (reference, reward model).

    Under a live `HfDeepSpeedConfig` of stage 3 the parameters arrive partitioned; a frozen tower is gathered whole.
    """
    from transformers import LlavaForConditionalGeneration

    path = resolve(config.path)
    if path != config.path and not (Path(path) / "config.json").exists():
        raise ConfigError([f"model.path: {path} holds no model; run the stage that writes it first"])
    processor = processor or Processor.load(config)
    vlm = LlavaForConditionalGeneration.from_pretrained(
        path, dtype=DTYPES[config.dtype], attn_implementation=config.attention
    )
    tower = None
    if trainable is None or not trainable.vision_tower:
        tower = FrozenTower(_detach_tower(vlm), vlm.config, processor, config.feature_cache_mb * 2**20)
    _set_trainable(vlm, trainable)
    if trainable is not None and trainable.gradient_checkpointing:
        vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return VisionLanguage(vlm, processor, tower)


def save_pretrained(config: Any, generation_config: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write config and safetensors in the hub's layout; `state` has in-memory names, all gathered."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    named = {to_hub(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_torch_state_dict(named, folder, max_shard_size="5GB")
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    generation_config.save_pretrained(folder)


def _detach_tower(vlm: Any) -> nn.Module:
    tower: nn.Module = vlm.model.vision_tower
    vlm.model.vision_tower = None
    parameters = list(tower.parameters())
    if not hasattr(parameters[0], "ds_id"):
        return tower
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        state = {name: tensor.detach().clone() for name, tensor in tower.state_dict().items()}
    whole = type(tower)(vlm.config.vision_config).to(parameters[0].dtype)
    whole.load_state_dict(state)
    return whole


def _set_trainable(vlm: Any, trainable: TrainableConfig | None) -> None:
    chosen = trainable or None
    for name, parameter in vlm.named_parameters():
        if chosen is None:
            learns = False
        elif name.startswith("model.vision_tower."):
            learns = chosen.vision_tower
        elif name.startswith("model.multi_modal_projector."):
            learns = chosen.projector
        else:
            learns = chosen.language_model
        parameter.requires_grad_(learns)
