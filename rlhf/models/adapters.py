"""PEFT adapters on disk: whether one belongs to a model, asked before anything is loaded, and merging the two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.config import ModelConfig, resolve
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.architecture import Parameter, read_architecture
from rlhf.models.conversion import Aside, find
from rlhf.models.keys import Names, from_hub, is_projector
from rlhf.models.lora import (
    BASE_DIGEST,
    CONFIG_FILE,
    WEIGHTS_FILE,
    base_digest,
    is_adapter,
    memory_name,
    read_adapter,
    tell_apart,
)
from rlhf.models.shards import INDICES, ShardWriter, read_tensors, shard_files

# what adapter_config.json may say without changing what an adapter adds: scale * B A and nothing else
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type",
}  # fmt: skip
_NEUTRAL = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva")}  # other starts change the base, too


@dataclass(frozen=True, slots=True)
class _Header:
    """What an adapter's files say of it; no tensor is read."""

    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # by name in memory
    base: str | None  # digest of the base that it was trained on; PEFT itself writes none

    @property
    def has_projector(self) -> bool:
        return any(is_projector(name) for name in self.shapes)


def check_adapter(config: ModelConfig, key: str = "model.adapter") -> None:
    """Raise ConfigError unless `config.adapter`, if set, is a PEFT LoRA directory that was trained on `config.path`.

    Shapes are compared with those of the model's config.json; of the base's weights one decoder layer is read. `key` is
    what the adapter is called in the configuration.
    """
    if config.adapter is None:
        return
    if config.quantise != "none":
        raise ConfigError([f"{key}: it cannot be merged into quantised weights; set model.quantise=none"])
    folder = Path(resolve(config.adapter))
    try:
        header = _read_header(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            [
                f"{key}: {folder} is no PEFT adapter directory ({error}); name one with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}, such as adapter/ in the model folder of a run with trainable.lora"
            ]
        ) from None
    if problem := _unknown_setting(header.settings):
        raise ConfigError(
            [
                f"{key}: {folder / CONFIG_FILE} has {problem}, which SafeVL cannot apply; merge the adapter with PEFT "
                "(merge_and_unload, save_pretrained) and name the result as the model"
            ]
        )
    if problem := _misfit(header, config, key):
        named = header.settings.get("base_model_name_or_path")
        raise ConfigError(
            [
                f"{key}: {folder / WEIGHTS_FILE} was trained on another base than {resolve(config.path)}: {problem}; "
                f"set the model's path to the adapter's own base ({named}), or name an adapter of this one"
            ]
        )


def merge_directory(config: ModelConfig, target: Path) -> None:
    """Write `config.path` with `config.adapter` merged into it as a model directory, which engines load.

    Each changed matrix is computed in float32 and keeps its precision; one shard is in memory at a time. Nothing is
    left at `target` if it fails. Raises ConfigError for an adapter of another base or a target that exists.
    """
    check_adapter(config, "adapter")
    folder = find(config.path, "source")
    changes, scale = read_adapter(Path(resolve(config.adapter or "")))
    names = read_architecture(config.path).names
    with Aside(target) as aside:
        with ShardWriter(aside) as writer:
            for name, tensor in read_tensors(folder):
                writer.add(name, _changed(_in_memory(name, names), tensor, changes, scale))
        if left := sorted(name for name in changes if ".lora_B." not in name):
            raise CheckpointError(f"{folder} has no weights for {', '.join(left[:3])}")
        weights = {file.name for file in shard_files(folder)} | set(INDICES)
        for file in folder.iterdir():
            if file.is_file() and file.name not in weights and not file.name.startswith("pytorch_model"):
                shutil.copyfile(file, aside / file.name)


def _changed(name: str, tensor: Tensor, changes: dict[str, Tensor], scale: float) -> Tensor:
    """The tensor of the base with what the adapter says of it, which is taken out of `changes`."""
    if name in changes:  # the projector
        return changes.pop(name).to(tensor.dtype)
    adapter = name.removesuffix(".weight") + ".lora_A.default.weight"
    if adapter not in changes:
        return tensor
    update = changes[adapter.replace(".lora_A.", ".lora_B.")].float() @ changes.pop(adapter).float()
    return (tensor.float() + scale * update).to(tensor.dtype)


def _read_header(folder: Path) -> _Header:
    """Raises OSError or ValueError for what is no adapter."""
    from safetensors import SafetensorError, safe_open

    settings = json.loads((folder / CONFIG_FILE).read_text())
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG_FILE} is not of a LoRA")
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            names = list(file.keys())
            shapes = {memory_name(name): tuple(file.get_slice(name).get_shape()) for name in names}
            return _Header(settings, shapes, (file.metadata() or {}).get(BASE_DIGEST))
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS_FILE}: {error}") from None


def _unknown_setting(settings: Mapping[str, Any]) -> str:
    """The first setting under which an adapter would mean something else than scale * B A; "" if there is none."""
    for name, value in settings.items():
        if value and name not in _HARMLESS and value not in _NEUTRAL.get(name, ()):
            return f"{name}={value}"
    return ""


def _misfit(header: _Header, config: ModelConfig, key: str) -> str:
    """Why the adapter is not of this base; "" if it is."""
    architecture = read_architecture(config.path)
    parameters, names = {one.name: one for one in architecture.parameters}, architecture.names
    for name, shape in header.shapes.items():
        if ".lora_B." not in name and (problem := _misshapen(name, shape, header, parameters)):
            return problem
    if header.base is None:  # not written by SafeVL: names are all there is to compare
        return _other_name(str(header.settings.get("base_model_name_or_path") or ""), resolve(config.path))
    wanted = set(tell_apart(parameters, projector=not header.has_projector))
    tensors = read_tensors(find(config.path, key), lambda name: _in_memory(name, names) in wanted)
    if base_digest((_in_memory(name, names), tensor) for name, tensor in tensors) == header.base:
        return ""
    return "shapes are the same, but weights of the last decoder layer or of the projector are not"


def _other_name(named: str, path: str) -> str:
    """A hub id and a directory are one model if their last parts are equal; two directories only if all is."""
    both = Path(resolve(named)), Path(path)
    alike = both[0] == both[1] or (both[0].name == both[1].name and not all(one.is_absolute() for one in both))
    if alike:
        return ""
    return f"{CONFIG_FILE} names {named or 'none'} (write {path} there if that is the same model under another name)"


def _misshapen(name: str, shape: tuple[int, ...], header: _Header, parameters: Mapping[str, Parameter]) -> str:
    """What is wrong with one tensor: an A matrix with its B, or a part of the projector."""
    if not is_adapter(name):
        found = parameters.get(name)
        if found is None or not is_projector(name):
            return f"{name} is neither an adapter nor the projector"
        return "" if found.shape == shape else f"{name} is {shape}, the model's {found.shape}"
    target = name.replace(".lora_A.default.", ".")
    found = parameters.get(target)
    if found is None or found.part in ("tower", "projector"):
        return f"it changes {target}, which is no matrix of this language model"
    changed = (*header.shapes.get(name.replace(".lora_A.", ".lora_B."), ())[:1], *shape[1:])
    if shape[0] != header.settings.get("r") or changed != found.shape:
        return f"it changes {target} as one of shape {changed} and rank {shape[0]}, the model's is {found.shape}"
    return ""


def _in_memory(name: str, names: Names) -> str:
    """A stored parameter's name in memory; transformers may also have stored it under that name itself."""
    if any(name.startswith(prefix) for prefix, _ in names):
        return name
    try:
        return from_hub(name, names)
    except KeyError:
        return name
