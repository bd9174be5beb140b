"""Does a job's configuration fit its devices? The tables and remedies of `python jobs/doctor.py --config ...`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.devices import Device, devices
from cluster.doctor import find_gpus, memory_gib
from cluster.placement import plan
from jobs.sft_safe_llava import ImitationConfig
from jobs.train_reward_model import RewardJobConfig
from rlhf.config import Config, RoleConfig, load
from rlhf.errors import ConfigError
from rlhf.memory import GIB
from rlhf.models.architecture import Architecture, read_architecture
from rlhf.online_config import OnlineConfig
from rlhf.preference_config import PreferenceConfig
from rlhf.sizing import Lever, RoleMemory, gib, online_roles, preference_roles, supervised_roles
from rlhf.supervised import SupervisedConfig

SCHEMAS: tuple[type[Config], ...] = (OnlineConfig, PreferenceConfig, RewardJobConfig, ImitationConfig)
DEFAULT_GIB = 80.0
_ROWS = (
    ("weights", "weights"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer"),
    ("buffers", "buffers"),
    ("activations", "activations*"),
    ("step", "step*"),
    ("features", "image features"),
    ("kv_cache", "KV cache"),
    ("runtime", "runtime"),
    ("total", "total"),
)
FORMULAS = """\
w bytes per weight (bf16 2, fp32 4), t trainable and f frozen elements, N ranks, T tokens of a micro-batch, L layers
weights       w (t + f), ZeRO-3: / N; a frozen vision tower is whole on every rank (arXiv 1910.02054, section 3)
gradients     w t, ZeRO-2 and 3: / N
optimizer     Adam's moments 8 t, master weights 4 t (not for fp32 without ZeRO); ZeRO-1 to 3: / N
buffers       DeepSpeed's reduce bucket of 5e8 w; ZeRO-3: twice, and up to 1e9 w of gathered weights
activations*  L layers of T (2 (4 + 2 w) h + 2 w (q + k) + 4 w i + 4 a + 8), with gradient checkpointing w h T L and one
              layer (hidden h, query q, key k, intermediate i, heads a; arXiv 2205.05198, sections 4 and 5); then half a
              layer of gradients in flight, or at the LM head w h + 20 V per response token
step*         fp32 gradients and one temporary of Adam: 8 t / N, ZeRO-3: of at most 1e9 elements at a time
KV cache      2 w L k per token; vLLM takes gpu_memory_share of the device, less weights and activations
runtime       assumed: 1 GiB per process on a GPU (CUDA, NCCL), 0.75 GiB on a CPU
*             not at the same time: the total has the larger one"""


@dataclass(frozen=True)
class Room:
    """Bytes of one GPU and of the host."""

    gpu: int
    host: int

    def of(self, device: Device) -> int:
        """Bytes of a device."""
        return self.gpu if device.index >= 0 else self.host


@dataclass(frozen=True)
class Question:
    """A file with overrides, and where it has to fit."""

    schema: type[Config]
    path: Path
    overrides: tuple[str, ...]
    room: Room
    read: Callable[[str], Architecture]


@dataclass(frozen=True)
class Sized:
    """A configuration with the memory of its roles, and who shares which device in each of its phases."""

    roles: dict[str, RoleMemory]
    phases: list[list[Device]]

    @property
    def devices(self) -> list[Device]:
        """The devices of every phase, one after the other: what runs at different times shares none."""
        return [device for phase in self.phases for device in phase]

    @property
    def gpus(self) -> int:
        """GPUs that the configuration takes at once."""
        return max(sum(device.index >= 0 for device in phase) for phase in self.phases)

    @property
    def host(self) -> int:
        """Host memory of all ranks for offloaded state and caches."""
        return sum(memory.footprint.host * memory.placed.ranks for memory in self.roles.values())

    def total(self, device: Device) -> int:
        """Bytes on a device: peaks are added, because an allocator keeps what it once had."""
        return sum(self.roles[role].footprint.total for role, _ in device.ranks)

    def problems(self, device: Device, room: Room) -> list[str]:
        """Why the ranks on a device cannot run there."""
        found = [memory.problem for role, _ in device.ranks if (memory := self.roles[role]).problem]
        if self.total(device) > room.of(device):
            found.append(f"{gib(self.total(device)):.1f} GiB are needed, the device has {gib(room.of(device)):.1f}")
        return found


def main(path: Path, overrides: Sequence[str], device_gib: float | None) -> int:
    """Print the tables; returns the exit code: 0 if everything fits, 1 if not. Raises ConfigError."""
    room = Room(int((device_gib or _device_gib()) * GIB), int(memory_gib() * GIB))
    question = Question(schema_of(path, overrides), path, tuple(overrides), room, lru_cache(read_architecture))
    sized = size(question)
    console = Console()
    _show_roles(console, path, sized)
    bad = _show_devices(console, sized, room)
    console.print(FORMULAS, highlight=False, style="dim", soft_wrap=True)
    for device, reasons in bad:
        names = " + ".join(dict.fromkeys(role for role, _ in device.ranks))
        for reason in reasons:
            console.print(f"[bold red]does not fit[/]: {names}: {escape(reason)}", soft_wrap=True)
        for line in remedies(question, sized, device):
            console.print(f"  {escape(line)}", soft_wrap=True)
    if not bad:
        console.print(f"[bold]fits[/] {_where(sized, room)}", soft_wrap=True)
    return 1 if bad else 0


def schema_of(path: Path, overrides: Sequence[str]) -> type[Config]:
    """The job that a file configures: the schema that accepts it. Raises the ConfigError of the one that is nearest."""
    errors: list[ConfigError] = []
    for schema in SCHEMAS:
        try:
            load(schema, path, overrides)
        except ConfigError as error:
            errors.append(error)
        else:
            return schema
    raise min(errors, key=lambda error: len(error.problems))


def size(question: Question, changes: Sequence[str] = ()) -> Sized:
    """The memory of a configuration with further overrides. Raises ConfigError."""
    config = load(question.schema, question.path, [*question.overrides, *changes])
    if isinstance(config, OnlineConfig):
        found = online_roles(config, question.room.gpu, question.read)
    elif isinstance(config, PreferenceConfig):
        found = preference_roles(config, question.room.gpu, question.read)
    elif isinstance(config, SupervisedConfig):
        found = supervised_roles(config, "scalar" if isinstance(config, RewardJobConfig) else "policy", question.read)
    else:
        raise ConfigError([f"{question.path}: {question.schema.__name__} has no roles to size"])
    phases: list[dict[str, RoleConfig]] = [{memory.role: memory.placed for memory in found}]
    if isinstance(config, PreferenceConfig):
        phases = list(config.phases().values())
    return Sized({memory.role: memory for memory in found}, [devices(plan(one), one) for one in phases])


def remedies(question: Question, sized: Sized, device: Device) -> list[str]:
    """Single changes with which the roles on `device` fit; if there are none, all that help, one upon the other."""
    names = {role for role, _ in device.ranks}
    levers = dict.fromkeys(lever for role, _ in device.ranks for lever in sized.roles[role].levers)
    single: list[str] = []
    together: dict[str, str] = {}
    lowest, enough = sized.total(device), False
    for lever in levers:
        if (alone := _after(question, names, lever)) and alone.fits:
            single.append(f"set {' '.join(lever)}: {_outcome(alone, sized)}")
        joined = together | {override.partition("=")[0]: override for override in lever}
        if not enough and (after := _after(question, names, tuple(joined.values()))) and after.total < lowest:
            together, lowest, enough = joined, after.total, after.fits
    if single:
        return [f"either {line}" for line in single] if len(single) > 1 else single
    keys = " ".join(together.values()) or "nothing"
    if enough and (after := _after(question, names, tuple(together.values()))):
        return [f"set together {keys}: {_outcome(after, sized)}"]
    return [f"no setting is enough: {keys} gives {gib(lowest):.1f} GiB; use larger devices or LoRA"]


@dataclass(frozen=True)
class _After:
    """The fullest device of some roles after a change, whether all of theirs fit; GPUs and host bytes of all roles."""

    total: int
    fits: bool
    gpus: int
    host: int


def _after(question: Question, names: set[str], changes: Lever) -> _After | None:
    """What a change leads to; None if the configuration refuses it."""
    try:
        other = size(question, changes)
    except ConfigError:
        return None
    theirs = [at for at in other.devices if names & {role for role, _ in at.ranks}]
    fits = not any(other.problems(at, question.room) for at in theirs)
    return _After(max(other.total(at) for at in theirs), fits, other.gpus, other.host)


def _outcome(after: _After, sized: Sized) -> str:
    text, more = f"{gib(after.total):.1f} GiB", after.gpus - sized.gpus
    if more > 0:
        text += f", {more} more GPU{'s' if more > 1 else ''}"
    if after.host > sized.host + GIB:
        text += f", {gib(after.host - sized.host):.0f} GiB more host memory"
    return text


def _show_roles(console: Console, path: Path, sized: Sized) -> None:
    table = Table(title=f"memory of {path}", title_justify="left")
    table.add_column("GiB per rank", no_wrap=True)
    for name, memory in sized.roles.items():
        table.add_column(f"{name}\nx {memory.placed.ranks}", justify="right")
    for field, title in _ROWS:
        cells = (f"{gib(getattr(memory.footprint, field)):.2f}" for memory in sized.roles.values())
        table.add_row(title, *cells, style="bold" if field == "total" else None)
    console.print(table)
    for name, memory in sized.roles.items():
        for note in memory.notes:
            console.print(f"{name}: {escape(note)}", soft_wrap=True)


def _show_devices(console: Console, sized: Sized, room: Room) -> list[tuple[Device, list[str]]]:
    table = Table("devices", "roles", "GiB", "of", "", title_justify="left")
    bad: list[tuple[Device, list[str]]] = []
    groups = Counter(tuple(role for role, _ in device.ranks) for device in sized.devices)
    shown: set[tuple[str, ...]] = set()
    for device in sized.devices:
        names = tuple(role for role, _ in device.ranks)
        if names in shown:
            continue
        shown.add(names)
        total, here = sized.total(device), room.of(device)
        if reasons := sized.problems(device, room):
            bad.append((device, reasons))
        what = "host" if device.index < 0 else f"{groups[names]} GPU" + ("s" if groups[names] > 1 else "")
        verdict = "[bold red]too small[/]" if reasons else f"{total / here:.0%}"
        counted = [f"{role} x {n}" if n > 1 else role for role, n in Counter(names).items()]
        table.add_row(what, " + ".join(counted), f"{gib(total):.1f}", f"{gib(here):.1f}", verdict)
    console.print(table)
    console.print(
        f"beside that, host memory for offloaded state and feature caches: up to {gib(sized.host):.1f} GiB in all",
        soft_wrap=True,
    )
    return bad


def _where(sized: Sized, room: Room) -> str:
    if not sized.gpus:
        return f"this machine of {gib(room.host):.0f} GiB"
    return f"{sized.gpus} GPU{'s' if sized.gpus > 1 else ''} of {gib(room.gpu):.0f} GiB"


def _device_gib() -> float:
    found = find_gpus()
    return min(gpu.memory_gib for gpu in found) if found else DEFAULT_GIB
