"""The preparation job on Ray Data: killed half way, run again, asked for a subset, refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub import Hub, write_hub

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
IMAGES = 200


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """600 rows, two to a unit: long enough to be killed on the way."""
    return write_hub(tmp_path_factory.mktemp("hub"), images=IMAGES, row_group=2)


def command(hub: Hub, folder: Path, *overrides: str) -> list[str]:
    settings = [
        f"folder={folder}/out",
        f"converted={folder}/converted",
        f"source.parquet=[{hub.parquet}]",
        f"source.meta_files={hub.meta}",
        f"source.expected_rows={3 * IMAGES}",
        "workers=2",
        *overrides,
    ]
    config = ROOT / "jobs" / "configs" / "7b" / "prepare_spa_vl.yaml"
    return [sys.executable, str(ROOT / "jobs" / "prepare_spa_vl.py"), "--config", str(config), *settings]


def run(environment: dict[str, str], hub: Hub, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(hub, folder, *overrides), env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "converted" / "parts").glob("*/*.jsonl"))


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(hub: Hub, ray_head: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(ray_head, hub, folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


def test_row03_sigkill_half_way_then_the_same_command_gives_the_same_bytes(
    undisturbed: Path, hub: Hub, ray_head: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(hub, tmp_path), env=ray_head, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 200
    while len(parts(tmp_path)) < 20:
        assert process.poll() is None, "the job ended too early"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # Ray ends the workers of a dead driver
    survived = {path: path.stat().st_mtime_ns for path in parts(tmp_path)}
    assert 20 <= len(survived) < 300
    assert not (tmp_path / "out").exists()
    again = run(ray_head, hub, tmp_path)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert f"{len(survived)} of 300 units are converted" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in survived} == survived  # finished units were not done again
    assert tree(tmp_path / "out") == tree(undisturbed / "out")
    ids = [
        row["id"]
        for kind in ("easy", "hardq", "hards")
        for row in json.loads((tmp_path / f"out/{kind}.json").read_text())
    ]
    assert sorted(ids) == list(range(3 * IMAGES))


def test_row31_a_subset_comes_from_the_same_conversion_without_a_cluster(
    undisturbed: Path, hub: Hub, ray_head: dict[str, str]
) -> None:
    nowhere = {**ray_head, "RAY_ADDRESS": "127.0.0.1:1"}
    done = run(nowhere, hub, undisturbed, "subset.size=100", f"folder={undisturbed}/hundred")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "300 of 300 units are converted" in done.stdout
    whole = json.loads((undisturbed / "out/easy.json").read_text())
    some = json.loads((undisturbed / "hundred/easy.json").read_text())
    assert some == [row for row in whole if row["id"] in {one["id"] for one in some}]
    again = run(nowhere, hub, undisturbed, "subset.size=100", f"folder={undisturbed}/hundred")
    assert again.returncode == 0
    assert again.stdout.splitlines()[0].endswith("keywords " + str(json.loads(
        (undisturbed / "hundred/manifest.json").read_text())["keywords"]))  # fmt: skip


def test_bad_requests_are_refused_before_a_cluster_is_sought(
    hub: Hub, ray_head: dict[str, str], tmp_path: Path
) -> None:
    nowhere = {**ray_head, "RAY_ADDRESS": "127.0.0.1:1"}
    large = run(nowhere, hub, tmp_path, "subset.size=601")
    assert large.returncode == 2
    assert "subset.size: 601 rows are asked for, " in large.stderr
    assert "train-00001-of-00002.parquet have 600; lower it" in large.stderr
    blind = run(nowhere, hub, tmp_path, "source.meta_files=null", "subset.question_types=[easy]", "subset.class1=[x]",
                "subset.response_models=[Otter]")  # fmt: skip
    assert blind.returncode == 2
    for key in ("subset.question_types", "subset.class1", "subset.response_models", "set source.meta_files"):
        assert key in blind.stderr
    assert not parts(tmp_path)
