"""The scrubbing job on Ray Data: worker and driver killed on the way, run again, refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ROWS, UNIT = 6000, 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of all shapes: strings and integers as ids, several turns, text only, nothing to scrub."""
    path = tmp_path_factory.mktemp("llava") / "mix.json"
    draw, rows = random.Random(0), []
    people, things = ("a young woman", "an old man", "two girls", "the chef"), ("a red bus", "an old church", "a cup")
    for number in range(ROWS):
        who, what = draw.choice(people), draw.choice(things)
        turns = [("<image>\nWhat is there?", f"There is {who} next to {what}."), ("How old is the person?", "40.")]
        chosen = turns[: 1 + number % 2]
        conversation = [
            {"from": speaker, "value": text}
            for pair in chosen
            for speaker, text in zip(("human", "gpt"), pair, strict=True)
        ]
        row = {
            "id": number if number % 3 else str(number),
            "image": f"coco/{number}.jpg",
            "conversations": conversation,
        }
        rows.append(row)
    path.write_text(json.dumps(rows))
    return path


def command(source: Path, folder: Path, *overrides: str) -> list[str]:
    settings = [
        f"sources=[{source}]",
        f"folder={folder}/out",
        f"work={folder}/work",
        "workers=2",
        f"rows_per_unit={UNIT}",
        *overrides,
    ]
    return [sys.executable, str(ROOT / "jobs" / "scrub_safe_llava.py"), *settings]


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "work").glob("*/*.jsonl"))


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def wait_for(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while len(parts(folder)) < count:
        assert process.poll() is None, "the job ended too early"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


def test_safe01_killed_worker_and_driver_cost_nothing_and_double_nothing(
    source: Path, ray_head: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(source, tmp_path), env=ray_head, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(process, tmp_path, 5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # Ray ends the workers of a dead driver
    survived = {path: path.stat().st_mtime_ns for path in parts(tmp_path)}
    assert 5 <= len(survived) < ROWS // UNIT
    assert not (tmp_path / "out").exists()
    process = subprocess.Popen(
        command(source, tmp_path), env=ray_head, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(process, tmp_path, len(survived) + 3)
    workers = [
        one.pid for one in psutil.process_iter(["cmdline"]) if "Scrubber" in " ".join(one.info["cmdline"] or [])[:200]
    ]
    for worker in workers[:1]:
        os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert workers, output[-2000:]
    assert process.returncode == 0, output[-4000:]
    assert f"{len(survived)} of {ROWS // UNIT} units are scrubbed" in output
    assert {path: path.stat().st_mtime_ns for path in survived} == survived  # finished units were not done again
    rows = json.loads((tmp_path / "out" / "mix.json").read_text())
    assert [row["id"] for row in rows] == [row["id"] for row in json.loads(source.read_text())]
    assert "woman" not in json.dumps(rows)

    nowhere = {**ray_head, "RAY_ADDRESS": "127.0.0.1:1"}  # all units are there: no cluster is asked for
    before = tree(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    again = subprocess.run(command(source, tmp_path), env=nowhere, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert tree(tmp_path / "out") == before
    other = subprocess.run(
        command(source, tmp_path, "hair=true"), env=nowhere, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "was scrubbed from or with other hair" in other.stderr
