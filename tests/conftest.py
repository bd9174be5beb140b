"""Fixtures that several folders share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.config import ModelConfig
from tests.fakes import draw_images, tiny_model

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the Ray head: `make test` runs it beside the rest."""
    for item in items:
        if "ray_head" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[dict[str, str]]:
    """A Ray head of its own for the whole test session; the environment with which a job finds it."""
    ports = {"SAFEVL_RAY_PORT": "6419", "SAFEVL_DASHBOARD_PORT": "8319", "SAFEVL_RAY_STATE": "/tmp/safevl-test-head"}
    environment = {**os.environ, **ports, "RAY_AUTH_MODE": "token"}
    script = str(ROOT / "cluster" / "local.sh")
    started = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    try:
        yield {**environment, "RAY_ADDRESS": "127.0.0.1:6419", "SAFEVL_JOBS": started.stdout.split()[-1]}
    finally:
        subprocess.run([script, "stop"], env=environment, check=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A random tiny LLaVA; nobody may write to its folder."""
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four different PNG pictures, two of them not square."""
    return draw_images(tmp_path_factory.mktemp("pictures"))
