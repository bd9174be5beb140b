"""Typed configuration: frozen pydantic models, YAML files, dotted overrides, every problem in one message.

A job's schema is a `Config` whose fields are the sections below or an algorithm's own config. Keys are documented by
the string under each field; `describe` turns those into `--help`. A relative local path starts with "./" and is
resolved against `home()`; anything else that names a model is a hub id.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from rlhf.errors import ConfigError


class Config(BaseModel):
    """Base of every section: immutable, unknown keys refused, documented by attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


Schema = TypeVar("Schema", bound=Config)


class RunConfig(Config):
    """Where a run writes and what makes it repeatable."""

    name: str
    """Folder of the run below `root`, for example "tiny/ppo"."""
    root: str = "./runs"
    """Storage root: "./folder" (below the project), an absolute path, or an fsspec URI such as "s3://bucket/runs"."""
    seed: int = 0
    """Seeds weights, data order and sampling."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps (PPO: iterations) between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many complete checkpoints stay on disk, beside the best so far of a run with `selection`."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    max_restarts: int = Field(default=2, ge=0)
    """How often dead workers are replaced before the run gives up."""


class ModelConfig(Config):
    """A model directory and how to load it."""

    path: str
    """"./folder" or absolute: a transformers directory (safetensors); otherwise a hub id."""
    adapter: str | None = None
    """PEFT LoRA directory of this very model, merged into the weights after loading. Engines cannot: see
    jobs/convert_llava.py direction=merge."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of weights and arithmetic."""
    quantise: Literal["none", "int8", "nf4"] = "none"
    """Hold the language model's frozen matrices in 8 or 4 bits (QLoRA; needs the `qlora` extra)."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; flash_attention_2 needs a GPU and the `flash` extra."""
    max_length: int = Field(default=2048, ge=16)
    """Context: prompt, image tokens and response together, in tokens."""
    template: Literal["v1", "plain", "llava_hf", "qwen", "qwen_vl"] = "v1"
    """Prompt format, shared by training, rollouts, reward and evaluation; qwen_vl is that of Qwen2(.5)-VL."""
    pad_to_square: bool = True
    """Pad images to a square with the image processor's mean colour (CLIP's in LLaVA-1.5) first, as LLaVA does."""
    feature_cache_mb: int = Field(default=1024, ge=0)
    """Memory for cached features of a frozen vision tower, per process."""
    feature_store: str | None = None
    """Folder ("./x" or absolute) that keeps these features for all roles and later runs; unset: memory only."""


class LoraConfig(Config):
    """Low-rank adapters on the language model; the defaults are the seed's numbers (seed page 2)."""

    rank: int = Field(default=256, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=512, gt=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' inputs."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the language model that get one; the LM head never does."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


class TrainableConfig(Config):
    """Which parts learn. A frozen tower is kept outside DeepSpeed and its features are computed once per image."""

    vision_tower: bool = False
    """Train the vision tower (the tiny model starts from nothing and needs it)."""
    projector: bool = True
    """Train the multi-modal projector."""
    language_model: bool = True
    """Train the language model, embeddings and LM head; with `lora` its adapters instead."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and leave the language model's own weights alone."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _something_learns(self) -> TrainableConfig:
        if not (self.vision_tower or self.projector or self.language_model):
            raise ValueError("nothing is trainable: set at least one of vision_tower, projector, language_model")
        if self.lora and not self.language_model:
            raise ValueError("lora puts adapters into the language model: set language_model to true")
        if self.lora and self.vision_tower:
            raise ValueError("lora leaves the vision tower alone: set vision_tower to false")
        return self


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    projector_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the multi-modal projector, same schedule; unset: lr."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up (added to warmup_ratio's)."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps that warm up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay on matrices; biases and norms are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's moment decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping by global norm."""


class DeepSpeedConfig(Config):
    """The subset of DeepSpeed that SafeVL drives."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO partitioning stage."""
    offload: bool = False
    """Keep parameters (and optimizer state, where there is one) in host memory."""
    whole_below: int = Field(default=100_000, ge=0)
    """ZeRO-3 keeps parameters with fewer elements whole on every rank, which saves gathers."""
    bucket_elements: int = Field(default=4_000_000, ge=1)
    """Elements per gather when weights are synchronised or exported."""


class RoleConfig(Config):
    """Ray resources of one role."""

    ranks: int = Field(default=1, ge=1)
    """Actors in the group."""
    cpus: float = Field(default=1.0, gt=0)
    """CPUs per actor."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs per actor; a fraction lets roles share a device."""
    threads: int = Field(default=1, ge=1)
    """Torch threads per actor on CPU."""
    colocate_with: str | None = None
    """Share the placement-group bundles of this other role."""


class FrozenRoleConfig(RoleConfig):
    """Ray resources of a role that never learns, and where its weights are."""

    weights: Literal["whole", "partitioned", "offloaded"] = "whole"
    """whole: on every rank, and a rank that dies is replaced alone; partitioned: each rank holds a share (ZeRO-3) and
    fetches the layer that it is at; offloaded: the shares are in host memory, also with one rank."""


class BatchConfig(Config):
    """Batch sizes in rows; global unless the name says otherwise. Nothing is rounded."""

    global_rows: int = Field(ge=1)
    """Rows per optimizer step over all ranks."""
    micro_rows: int = Field(ge=1)
    """Rows per forward pass on one rank."""
    group_by_modality: bool = False
    """Batches of rows with an image or of rows without one; only the run's last batch may hold both."""
    length_window: int = Field(default=1, ge=1)
    """Global batches whose rows are sorted by length before they are cut, so that less is padding; 1: none are."""

    def per_rank(self, ranks: int) -> int:
        """Rows per rank and step; raises ConfigError if the numbers do not divide."""
        if self.global_rows % (ranks * self.micro_rows):
            raise ConfigError(
                [
                    f"batch.global_rows={self.global_rows} does not divide into {ranks} rank(s) x micro batches of "
                    f"{self.micro_rows}: choose a multiple of {ranks * self.micro_rows}"
                ]
            )
        return self.global_rows // ranks


def home() -> Path:
    """The folder that "./" means: $SAFEVL_HOME, else the project of an editable install, else the working directory.

    A job submitted to Ray runs in a temporary copy of the project, so the working directory alone would lose results.
    """
    if "SAFEVL_HOME" in os.environ:
        return Path(os.environ["SAFEVL_HOME"]).resolve()
    for distribution in metadata.distributions(name="safevl"):  # a build leaves a second, poorer record behind
        record = json.loads(distribution.read_text("direct_url.json") or "{}")
        if record.get("dir_info", {}).get("editable") and record["url"].startswith("file://"):
            return Path(record["url"].removeprefix("file://"))
    return Path.cwd()


def resolve(path: str) -> str:
    """Make "./x" absolute against `home()`; absolute paths, URIs and hub ids are returned as they are."""
    return str(home() / path[2:]) if path.startswith("./") else path


def load(schema: type[Schema], path: Path | None, overrides: Sequence[str] = ()) -> Schema:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML) and validate.

    Raises ConfigError with every problem at once: those of `validated`, and overrides that have no place.
    """
    problems: list[str] = []
    tree: Any = {}
    if path is not None:
        tree = read_yaml(path)
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            problems.append(f"override {item!r}: write it as section.key=value")
            continue
        _assign(tree, key.strip().split("."), yaml.safe_load(text), problems)
    return validated(schema, tree, problems)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of keys and values, empty if the file is. Raises ConfigError naming a file that is none."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not YAML: {error}"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    if not isinstance(tree, dict | None):
        raise ConfigError([f"{path}: expected a mapping of sections, found {type(tree).__name__}"])
    return tree or {}


def validated(schema: type[Schema], tree: Mapping[str, Any], known: Sequence[str] = ()) -> Schema:
    """Keys and values as an object of the schema.

    Raises ConfigError with every problem at once, those that are `known` already first: unknown keys (with the nearest
    valid one), missing keys, types.
    """
    problems = list(known)
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        problems.extend(_problem(schema, dict(item)) for item in error.errors())
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return config


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `load` of it gives an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def describe(schema: type[Config]) -> str:
    """One line per key: dotted name, type, default and meaning."""
    lines = []
    for name, field in walk(schema):
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"  {name}  ({_type_name(field.annotation)}, {default})\n      {field.description or ''}".rstrip())
    return "\n".join(lines)


def walk(schema: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf key of a schema with its field, dotted, depth first.

    Where a section has several kinds, the keys of all of them, and under `kind` the one that is documented first.
    """
    for name, field in schema.model_fields.items():
        sections = _sections(field.annotation)
        keys: dict[str, FieldInfo] = {}
        for section in sections:
            for key, leaf in walk(section, f"{prefix}{name}."):
                keys.setdefault(key, leaf)
        if len(sections) > 1:
            kinds = tuple(get_args(section.model_fields["kind"].annotation)[0] for section in sections)
            choice: Any = Literal[kinds]
            about = FieldInfo(annotation=choice, description="Which one; not all keys below are keys of all.")
            keys = {f"{prefix}{name}.kind": about} | {k: v for k, v in keys.items() if k != f"{prefix}{name}.kind"}
        if sections:
            yield from keys.items()
        else:
            yield f"{prefix}{name}", field


def _sections(annotation: Any) -> tuple[type[Config], ...]:
    """The sections that an annotation allows: one, several of a union, or none for a leaf."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return (annotation,)
    return tuple(section for part in get_args(annotation) for section in _sections(part))


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _assign(tree: dict[str, Any], keys: list[str], value: Any, problems: list[str]) -> None:
    """Set one key; in a list, a number names the entry."""
    here: Any = tree
    for place, key in enumerate(keys):
        name: Any = key
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                listed = ".".join(keys[:place])
                problems.append(f"override {'.'.join(keys)}: {listed} has {len(here)} entries, counted from 0")
                return
            name = int(key)
        elif not isinstance(here, dict):
            problems.append(f"override {'.'.join(keys)}: {keys[place - 1]} is not a section")
            return
        if place == len(keys) - 1:
            here[name] = value
        else:
            here = here[name] if isinstance(here, list) else here.setdefault(name, {})


def _problem(schema: type[Config], error: dict[str, Any]) -> str:
    location = _without_kinds(schema, [str(part) for part in error["loc"]])
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = [key for key, _ in walk(schema)] + list(schema.model_fields)
        parent = ".".join(location[:-1])
        if name in known:
            return f"{name}: unknown key for this {parent}.kind; remove it"
        siblings = [key for key in known if key.rpartition(".")[0] == parent] or known
        nearest = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5) or difflib.get_close_matches(
            name, known, n=1, cutoff=0.5
        )
        return f"{name}: unknown key" + (f"; did you mean {nearest[0]}?" if nearest else "")
    if error["type"] == "missing":
        return f"{name}: required key is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name or 'configuration'}: {message} (got {error.get('input')!r})" if location else message


def _without_kinds(schema: type[Config], location: list[str]) -> list[str]:
    """A key path as the file has it: pydantic puts the kind of a section behind its name."""
    if not location:
        return location
    head, rest = location[0], location[1:]
    sections = _sections(schema.model_fields[head].annotation) if head in schema.model_fields else ()
    if len(sections) > 1 and rest:
        kinds = {get_args(section.model_fields["kind"].annotation)[0]: section for section in sections}
        if rest[0] in kinds:
            return [head, *_without_kinds(kinds[rest[0]], rest[1:])]
    return [head, *(_without_kinds(sections[0], rest) if sections else rest)]
