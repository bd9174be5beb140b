"""Loading, freezing and running LLaVA and its relatives (`rlhf/models/families/`).

`VisionLanguage` is the module that DeepSpeed wraps: language model, projector, and the vision tower only if it learns.
A frozen tower lives outside it (`FrozenTower`), whole on every rank: its features are computed once per image, ZeRO-3
never gathers it, and a rank whose batch has no image cannot leave the others waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.batch import TokenBatch
from rlhf.config import LoraConfig, ModelConfig, TrainableConfig, resolve
from rlhf.data.processor import Processor, check_architecture
from rlhf.errors import DataError, TrainingError
from rlhf.models.adapters import check_adapter
from rlhf.models.families import FAMILIES, Family
from rlhf.models.features import FrozenTower, TensorCache
from rlhf.models.keys import part_of, to_hub
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
        self.family: Family = processor.family
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
            self._first_projector = (_whole_copy(self.projector).requires_grad_(False),)

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
    def projector(self) -> nn.Module:
        """What makes embeddings of the tower's states."""
        module: nn.Module = self.vlm.get_submodule(self.family.projector_path)
        return module

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
        places = (input_ids == self.processor.image_id) & ~tokens.response_mask.to(device)  # [B, T]
        if paths:
            needed = [0 if path is None else len(visual[distinct[path]]) for path in tokens.images]
            if (found := places.sum(dim=1).tolist()) != needed:
                raise DataError(f"rows have {found} placeholders, their images need {needed}")
            flat = torch.cat([visual[distinct[path]] for path in paths])
            embeddings = embeddings.masked_scatter(places[..., None], flat.to(embeddings.dtype))
        elif self.training:
            embeddings = embeddings + 0.0 * visual[0].sum()
        sizes = [None if path is None else self.processor.image_size(path) for path in tokens.images]
        return model.language_model(
            inputs_embeds=embeddings,
            attention_mask=tokens.attention_mask.to(device) if attention_mask is None else attention_mask,
            position_ids=self.family.positions(position_ids, places, sizes),
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
        if self.tower is None:
            pixels = [self.pixels.get(path, self.processor.pixels) for path in paths]
            stacked = self.family.stack(pixels) if pixels else torch.zeros(self.family.blank_pixels)
            projected = self.family.see(self.vlm.model, stacked.to(device, self.vlm.dtype), sizes)
        else:
            if paths:
                states = self.tower.features(paths).to(device)
            else:
                states = torch.zeros(self.family.blank_states, dtype=self.vlm.dtype, device=device)
            first = self._as_first and self._first_projector
            projected = (self._first_projector[0].to(device) if first else self.projector)(states)
        return torch.split(self.pack(projected, sizes), [self.family.image_tokens(size) for size in sizes])


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
        tower = FrozenTower(_detach_tower(vlm, processor.family), processor)
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
    family = FAMILIES[config.model_type]
    named = {to_hub(name, family.names): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_torch_state_dict(named, folder, max_shard_size="5GB")
    config.architectures = [family.architecture]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is written is whole
    config.save_pretrained(folder)
    generation_config.save_pretrained(folder)


def _detach_tower(vlm: Any, family: Family) -> nn.Module:
    tower: nn.Module = vlm.get_submodule(family.tower_path)
    if hasattr(next(tower.parameters()), "ds_id"):
        tower = _whole_copy(tower)
    family.take_tower(vlm.model, tower)
    return tower


def _whole_copy(module: nn.Module) -> nn.Module:
    """The same module with weights of its own, which ZeRO-3 does not partition."""
    parameters = list(module.parameters())
    if not hasattr(parameters[0], "ds_id"):
        return deepcopy(module)
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        return deepcopy(module)


def _set_trainable(vlm: Any, trainable: TrainableConfig | None) -> None:
    for name, parameter in vlm.named_parameters():
        if trainable is None:
            learns = False
        elif part_of(name) == "tower":
            learns = trainable.vision_tower
        elif part_of(name) == "projector":
            learns = trainable.projector
        elif name == "model.image_newline":
            learns = trainable.projector and trainable.lora is None  # PEFT's format has no place for it
        elif trainable.lora is not None:
            learns = is_adapter(name)
        else:
            learns = trainable.language_model
        parameter.requires_grad_(learns)
