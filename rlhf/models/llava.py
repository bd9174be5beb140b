"""Loading, freezing and running LLaVA.

`VisionLanguage` is the module that DeepSpeed wraps: language model, projector, and the vision tower only if it learns.
A frozen tower lives outside it (`FrozenTower`), whole on every rank: its features are computed once per image, ZeRO-3
never gathers it, and a rank whose batch has no image cannot leave the others waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.batch import TokenBatch
from rlhf.config import LoraConfig, ModelConfig, TrainableConfig, resolve
from rlhf.data.processor import Processor, check_architecture
from rlhf.errors import ConfigError, DataError, TrainingError
from rlhf.models.features import FrozenTower, TensorCache
from rlhf.models.keys import to_hub
from rlhf.models.lora import adapters_off, attach, is_adapter, merge_into
from rlhf.models.quantised import quantisation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class VisionLanguage(nn.Module):
    """LLaVA as a function from tokens and images to hidden states, with its LM head apart."""

    def __init__(self, vlm: Any, processor: Processor, tower: FrozenTower | None) -> None:
        super().__init__()
        self.vlm = vlm
        self.processor = processor
        self.tower = tower  # no nn.Module, hence no parameters of this module
        self.pixels = TensorCache(processor.config.feature_cache_mb * 2**20)  # for a tower that learns
        self.lora: LoraConfig | None = None
        # a tuple, so that this copy is no parameter of this module either
        self._first_projector: tuple[nn.Module, ...] = ()
        self._as_first = False

    def adapt(self, lora: LoraConfig, projector: bool) -> None:
        """Put adapters into the language model; with a projector that will learn, remember it as it is now."""
        attach(self.vlm.model.language_model, lora)
        self.lora = lora
        if projector:
            self._first_projector = (
                _whole_copy(self.vlm.model.multi_modal_projector, self.vlm.config).requires_grad_(False),
            )

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """Inside, the model computes as it did before training: adapters off, first projector (LoRA only)."""
        if self.lora is None:
            raise TrainingError("only a model with LoRA adapters can still compute what it was before training")
        self._as_first = True
        try:
            with adapters_off(self.vlm.model.language_model):
                yield
        finally:
            self._as_first = False

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.vlm.config.text_config.hidden_size)

    def hidden(
        self, tokens: TokenBatch, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """[B, T, H] hidden states after the final norm; an image that several rows share is encoded once.

        `attention_mask` [B, 1, T, T] bool (True: the query sees the key) and `position_ids` [B, T] replace the usual
        ones of `tokens` for rows that are no plain sequences (rlhf/models/pairs.py); SDPA only.

        Placeholders are found in prompts only: a policy may sample the placeholder's id, and then it is an ordinary
        token. A batch without images still runs the projector (and a learning tower) on a blank, times zero: under
        ZeRO-3 every rank must gather the same parameters.
        """
        model = self.vlm.model
        device = self.vlm.lm_head.weight.device
        input_ids = tokens.input_ids.to(device)
        paths = [path for path in tokens.images if path is not None]
        embeddings = model.get_input_embeddings()(input_ids)  # [B, T, H]
        distinct = {path: place for place, path in enumerate(dict.fromkeys(paths))}
        features = self._projected(list(distinct), device)  # [images, visual tokens, H]
        if paths:
            if len(distinct) < len(paths):
                features = features[[distinct[path] for path in paths]]
            places = (input_ids == self.processor.image_id) & ~tokens.response_mask.to(device)  # [B, T]
            if int(places.sum()) != features.shape[0] * features.shape[1]:
                raise DataError(f"{int(places.sum())} placeholders for {len(paths)} images x {features.shape[1]}")
            embeddings = embeddings.masked_scatter(places[..., None], features.to(embeddings.dtype))
        elif self.training:
            embeddings = embeddings + 0.0 * features.sum()
        return model.language_model(
            inputs_embeds=embeddings,
            attention_mask=tokens.attention_mask.to(device) if attention_mask is None else attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state

    def named_state(self) -> dict[str, Tensor]:
        """Every parameter by its name in the transformers model, frozen tower included. Not gathered."""
        state = dict(self.vlm.named_parameters())
        if self.tower is not None:
            state.update(self.tower.state_dict())
        return state

    def _projected(self, paths: Sequence[str], device: torch.device) -> Tensor:
        if self.tower is None:
            size = self.vlm.config.vision_config.image_size
            pixels = [self.pixels.get(path, self.processor.pixels) for path in paths] or [torch.zeros(3, size, size)]
            batch = torch.stack(pixels).to(device, self.vlm.dtype)
            return torch.stack(list(self.vlm.model.get_image_features(batch, return_dict=True).pooler_output))
        projector = self.vlm.model.multi_modal_projector
        if self._as_first and self._first_projector:
            projector = self._first_projector[0].to(device)
        if not paths:
            return projector(torch.zeros(1, 1, projector.linear_1.in_features, dtype=self.vlm.dtype, device=device))
        return projector(self.tower.features(paths).to(device))


def load(config: ModelConfig, trainable: TrainableConfig | None, processor: Processor | None = None) -> VisionLanguage:
    """Read a LLaVA directory; `trainable=None` freezes everything (reference, reward model).

    Under a live `HfDeepSpeedConfig` of stage 3 the parameters arrive partitioned; a frozen tower is gathered whole.
    Raises ConfigError if there is no model, or one of another architecture.
    """
    from transformers import LlavaForConditionalGeneration

    path = resolve(config.path)
    check_architecture(config)
    processor = processor or Processor.load(config)
    vlm = LlavaForConditionalGeneration.from_pretrained(
        path,
        dtype=DTYPES[config.dtype],
        attn_implementation=config.attention,
        **quantisation(config, trainable),
    )
    tower = None
    if trainable is None or not trainable.vision_tower:
        tower = FrozenTower(_detach_tower(vlm), vlm.config, processor)
    if config.adapter is not None:
        if config.quantise != "none":
            raise ConfigError(["model.adapter cannot be merged into quantised weights: set model.quantise=none"])
        merge_into(vlm, Path(resolve(config.adapter)))
    if trainable is not None and trainable.gradient_checkpointing:
        vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backbone = VisionLanguage(vlm, processor, tower)
    if trainable is not None and trainable.lora is not None:
        backbone.adapt(trainable.lora, trainable.projector)
    _set_trainable(vlm, trainable)
    return backbone


def save_pretrained(config: Any, generation_config: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write config and safetensors in the hub's layout; `state` has in-memory names, all gathered."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    named = {to_hub(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_torch_state_dict(named, folder, max_shard_size="5GB")
    config.architectures = ["LlavaForConditionalGeneration"]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is written is whole
    config.save_pretrained(folder)
    generation_config.save_pretrained(folder)


def _detach_tower(vlm: Any) -> nn.Module:
    tower: nn.Module = vlm.model.vision_tower
    vlm.model.vision_tower = None
    return _whole_copy(tower, vlm.config.vision_config) if hasattr(next(tower.parameters()), "ds_id") else tower


def _whole_copy(module: nn.Module, config: Any) -> nn.Module:
    """The same module with weights of its own, which ZeRO-3 does not partition."""
    parameters = list(module.parameters())
    copy = type(module)(config).to(parameters[0].dtype)
    if not hasattr(parameters[0], "ds_id"):
        copy.load_state_dict(module.state_dict())
        return copy
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        copy.load_state_dict(module.state_dict())
    return copy


def _set_trainable(vlm: Any, trainable: TrainableConfig | None) -> None:
    for name, parameter in vlm.named_parameters():
        if trainable is None:
            learns = False
        elif name.startswith("model.vision_tower."):
            learns = trainable.vision_tower
        elif name.startswith("model.multi_modal_projector."):
            learns = trainable.projector
        elif trainable.lora is not None:
            learns = is_adapter(name)
        else:
            learns = trainable.language_model
        parameter.requires_grad_(learns)
