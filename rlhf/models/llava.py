"""Loading, freezing and running LLaVA and its relatives (`rlhf/models/families.py`).

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
from rlhf.errors import DataError, TrainingError
from rlhf.models.adapters import check_adapter
from rlhf.models.families import FAMILIES, Family, family_of
from rlhf.models.features import FrozenTower, TensorCache, as_crops
from rlhf.models.keys import to_hub
from rlhf.models.lora import adapters_off, attach, is_adapter, merge_into
from rlhf.models.quantised import quantisation
from rlhf.models.token_logprobs import TokenHead

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class VisionLanguage(nn.Module):
    """A vision-language model as a function from tokens and images to hidden states, with its LM head apart."""

    def __init__(self, vlm: Any, processor: Processor, tower: FrozenTower | None) -> None:
        super().__init__()
        vlm.lm_head = TokenHead.around(vlm.lm_head)
        self.vlm = vlm
        self.family: Family = family_of(vlm.config)
        self.pack = self.family.packer(vlm.model)
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
        visual = self._visual(list(distinct), device)  # one [visual tokens, H] per image
        if paths:
            places = (input_ids == self.processor.image_id) & ~tokens.response_mask.to(device)  # [B, T]
            needed = [0 if path is None else len(visual[distinct[path]]) for path in tokens.images]
            if (found := places.sum(dim=1).tolist()) != needed:
                raise DataError(f"rows have {found} placeholders, their images need {needed}")
            flat = torch.cat([visual[distinct[path]] for path in paths])
            embeddings = embeddings.masked_scatter(places[..., None], flat.to(embeddings.dtype))
        elif self.training:
            embeddings = embeddings + 0.0 * visual[0].sum()
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

    def _visual(self, paths: Sequence[str], device: torch.device) -> tuple[Tensor, ...]:
        """One [visual tokens, H] per image, or of a blank if there is none."""
        sizes = [self.processor.image_size(path) for path in paths] or [self.family.blank]
        projector = self.vlm.model.multi_modal_projector
        if self._as_first and self._first_projector:
            projector = self._first_projector[0].to(device)
        packed = self.pack(projector(self._states(paths, device)), sizes)
        return torch.split(packed, [self.family.image_tokens(size) for size in sizes])

    def _states(self, paths: Sequence[str], device: torch.device) -> Tensor:
        """[crops, tokens, width] hidden states of the tower, of a blank's crops if there is no image."""
        crops = self.family.crops(self.family.blank)
        if self.tower is not None:
            if paths:
                return self.tower.features(paths).to(device)
            width = self.vlm.model.multi_modal_projector.linear_1.in_features
            return torch.zeros(crops, self.family.crop_tokens, width, dtype=self.vlm.dtype, device=device)
        pixels = [as_crops(self.pixels.get(path, self.processor.pixels)) for path in paths]
        batch = torch.cat(pixels or [torch.zeros(crops, 3, *self.family.blank)])
        return self.family.states(self.vlm.model.vision_tower, batch.to(device, self.vlm.dtype))


def load(config: ModelConfig, trainable: TrainableConfig | None, processor: Processor | None = None) -> VisionLanguage:
    """Read a model directory; `trainable=None` freezes everything (reference, reward model).

    Under a live `HfDeepSpeedConfig` of stage 3 the parameters arrive partitioned; a frozen tower is gathered whole.
    Raises ConfigError if there is no model, one of another architecture, or an adapter of another base.
    """
    from transformers import AutoModelForImageTextToText

    path = resolve(config.path)
    check_architecture(config)
    check_adapter(config)
    processor = processor or Processor.load(config)
    vlm = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=DTYPES[config.dtype],
        attn_implementation=config.attention,
        **quantisation(config, trainable),
    )
    tower = None
    if trainable is None or not trainable.vision_tower:
        tower = FrozenTower(_detach_tower(vlm), family_of(vlm.config), processor)
    if config.adapter is not None:
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
    config.architectures = [FAMILIES[config.model_type].architecture]
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
        elif name == "model.image_newline":
            learns = trainable.projector and trainable.lora is None  # PEFT's format has no place for it
        elif trainable.lora is not None:
            learns = is_adapter(name)
        else:
            learns = trainable.language_model
        parameter.requires_grad_(learns)
