"""Who may import whom (architecture, section 1), read from the source, and the library without Ray, run for real."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "rlhf": {"rlhf"},
    "cluster": {"cluster", "rlhf"},
    "actors": {"actors", "cluster", "rlhf"},
    "jobs": {"jobs", "actors", "cluster", "rlhf"},
}
ONLY_IN = {
    "vllm": {"rlhf/rollout/vllm_engine.py", "rlhf/rollout/vllm_chat.py"},
    "deepspeed": {"rlhf/learner.py", "rlhf/models/llava.py"},
    "ray": {"actors", "cluster", "jobs"},
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_along_the_arrows_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in _imports(path)
        if (top := name.split(".")[0]) in ALLOWED and top not in ALLOWED[package]
    ]
    assert wrong == []


def test_cluster_knows_nothing_about_learning() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in (ROOT / "cluster").rglob("*.py")
        for name in _imports(path)
        if name.startswith("rlhf") and name not in ("rlhf.config", "rlhf.errors")
    ]
    assert wrong == []


@pytest.mark.parametrize("engine", ONLY_IN)
def test_heavy_engines_stay_where_they_belong(engine: str) -> None:
    allowed = ONLY_IN[engine]
    wrong = []
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if any(found.split(".")[0] == engine for found in _imports(path)) and not (
                name in allowed or package in allowed
            ):
                wrong.append(name)
    assert wrong == []


def test_only_actors_and_jobs_without_remote_decorators_in_jobs() -> None:
    assert not [path.name for path in (ROOT / "jobs").rglob("*.py") if "ray.remote" in path.read_text()]


def test_the_library_imports_without_ray_vllm_and_deepspeed() -> None:
    """Every module of rlhf, in a process where those packages cannot be found."""
    modules = [
        str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in sorted((ROOT / "rlhf").rglob("*.py"))
    ]
    script = (
        "import sys, importlib\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'vllm', 'deepspeed'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"[importlib.import_module(name) for name in {modules!r}]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
