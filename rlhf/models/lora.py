"""Low-rank adapters on the language model (Hu et al. 2021, arXiv 2106.09685). The only file that imports peft.

Three spellings of one parameter: in memory `model.language_model.X.q_proj.lora_A.default.weight`, in a PEFT checkpoint
`base_model.model.model.language_model.X.q_proj.lora_A.weight`; and the frozen matrix under it, in memory
`X.q_proj.base_layer.weight`, which the hub and the engines know as `X.q_proj.weight`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from rlhf.config import LoraConfig
from rlhf.errors import CheckpointError
from rlhf.learner import whole_for_writing
from rlhf.models.draws import fresh_draws
from rlhf.models.keys import Names, is_projector, projector_of, to_hub

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
BASE_DIGEST = "base_digest"  # in the metadata of the weights, where PEFT does not look

_CHECKPOINT_PREFIX = "base_model.model."
_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.")


def attach(language_model: nn.Module, config: LoraConfig) -> None:
    """Put an adapter beside every linear layer of `language_model` that the configuration names.

    The new B matrices are zero, so the model's outputs do not change. Raises CheckpointError if no layer matches.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    adapter = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    try:
        with fresh_draws():
            inject_adapter_in_model(adapter, language_model)
    except ValueError as error:
        raise CheckpointError(f"lora.targets={list(config.targets)}: {error}") from error


@contextmanager
def adapters_off(language_model: nn.Module) -> Iterator[None]:
    """Inside, the language model computes as if it had no adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in language_model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def is_adapter(name: str) -> bool:
    """Whether a parameter, by any of its names, belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def without_adapter(name: str) -> str:
    """The name that a parameter would have if its layer had no adapter."""
    return name.replace(".base_layer.", ".")


def checkpoint_name(name: str) -> str:
    """Name in a PEFT checkpoint of a parameter in memory (an adapter's, or the projector's)."""
    return _CHECKPOINT_PREFIX + name.replace(".default.", ".")


def memory_name(name: str) -> str:
    """The inverse of `checkpoint_name`."""
    inner = name.removeprefix(_CHECKPOINT_PREFIX)
    return inner.replace(".weight", ".default.weight") if is_adapter(name) else inner


def wire_name(name: str, names: Names) -> str:
    """Name under which a trained parameter travels to a rollout engine: a PEFT checkpoint's, or the hub's."""
    return checkpoint_name(name) if is_adapter(name) else to_hub(name, names)


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Names without adapters, each adapted matrix W + scale * B A, computed in float32.

    `state` holds whole tensors under their names in memory, those of other modules untouched.
    """
    result = {without_adapter(name): tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, tensor in state.items():
        if ".lora_A." in name:
            target = name.replace(".lora_A.default.", ".")
            update = state[name.replace(".lora_A.", ".lora_B.")].float() @ tensor.float()
            result[target] = (result[target].float() + scale * update).to(result[target].dtype)
    return result


def save_adapter(state: Mapping[str, Tensor], config: LoraConfig, base: str, projector: bool, folder: Path) -> None:
    """Write what PEFT loads onto `base`: the adapters in `state` and, if it was trained, the projector (trap T6).

    `state` has the base's own weights, too: their digest is written beside, by which another base is refused.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        checkpoint_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if is_adapter(name) or (projector and is_projector(name))
    }
    own = {without_adapter(name): tensor for name, tensor in state.items() if not is_adapter(name)}
    digest = base_digest((name, own[name]) for name in tell_apart(own, projector=not projector))
    save_file(kept, folder / WEIGHTS_FILE, metadata={"format": "pt", BASE_DIGEST: digest})
    module = next((module for name in state if (module := projector_of(name))), None) if projector else None
    (folder / CONFIG_FILE).write_text(json.dumps(peft_config(config, base, module), indent=2) + "\n")


def tell_apart(names: Collection[str], projector: bool) -> list[str]:
    """The parameters that tell a base from others of its shapes: its last decoder layer, and the projector if asked.

    Tuning in full or with merged adapters changes the layer; an adapter that has a projector brings its own.
    """
    numbered = [(match, name) for name in names if (match := _LAYER.match(name))]
    last = max((int(match[1]) for match, _ in numbered), default=0)
    layer = [name for match, name in numbered if int(match[1]) == last]
    return layer + [name for name in names if projector and is_projector(name)]


def base_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors by name, as bfloat16: the precision of the files and that of the training count for nothing."""
    state = xxhash.xxh3_128()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        state.update(f"{name} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def peft_config(config: LoraConfig, base: str, projector: str | None) -> dict[str, Any]:
    """The content of adapter_config.json. The pattern keeps PEFT away from layers of the same names in the tower."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": rf".*language_model\..*\.({'|'.join(config.targets)})",
        "modules_to_save": [projector] if projector else None,
        "bias": "none",
        "inference_mode": True,
    }


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], float]:
    """Tensors of a PEFT LoRA directory under their names in memory, and the scale; `check_adapter` has seen it."""
    from safetensors.torch import load_file

    settings = json.loads((folder / CONFIG_FILE).read_text())
    tensors = load_file(folder / WEIGHTS_FILE)
    scale = float(settings["lora_alpha"]) / int(settings["r"])
    return {memory_name(name): tensor for name, tensor in tensors.items()}, scale


def merge_into(model: nn.Module, folder: Path) -> None:
    """Add a PEFT adapter of this model to its weights, and take its projector if it has one."""
    tensors, scale = read_adapter(folder)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            continue
        if is_adapter(name):
            tensor = scale * (tensors[name.replace(".lora_A.", ".lora_B.")].float() @ tensor.float())
        with whole_for_writing(parameters[name.replace(".lora_A.default.", ".")]) as parameter:
            value = parameter.float() + tensor if is_adapter(name) else tensor
            with torch.no_grad():
                parameter.copy_(value.to(parameter.dtype))
