"""A submitted job runs in an uploaded copy: results belong to the project all the same, and bulk stays at home."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

PROBE = (
    "import json, os, rlhf\n"
    "from rlhf.config import home, resolve\n"
    "print('PROBE', json.dumps({'cwd': os.getcwd(), 'home': str(home()), 'runs': resolve('./runs'),\n"
    "      'code': rlhf.__file__, 'top': sorted(os.listdir('.'))}))\n"
)


def test_a_submitted_job_writes_to_the_project_and_uploads_no_bulk(ray_head: dict[str, str]) -> None:
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir", ".", "--"]
    environment = {**ray_head, "RAY_ADDRESS": ray_head["SAFEVL_JOBS"]}
    environment.pop("SAFEVL_HOME", None)
    done = subprocess.run(
        [*command, "python", "-c", PROBE],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    line = next((line for line in output.splitlines() if line.startswith("PROBE")), None)
    assert line is not None, output[-3000:]
    seen = json.loads(line.removeprefix("PROBE "))
    assert Path(seen["cwd"]) != ROOT
    assert (seen["home"], seen["runs"]) == (str(ROOT), str(ROOT / "runs"))
    assert seen["code"].startswith(seen["cwd"])  # the uploaded code runs, not the installed one
    assert {"jobs", "rlhf", "actors", "cluster"} <= set(seen["top"])
    assert not {".venv", "runs", ".git", ".mypy_cache"} & set(seen["top"])
