"""Starting the ranks of a process group as real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_ranks(module: str, settings: dict[str, Any], ranks: int) -> None:
    """Run `ranks` processes of a worker module to their end; what they print is shown if one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, json.dumps(settings)]

    def start(rank: int) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )

    with ThreadPoolExecutor(ranks) as pool:
        for done in pool.map(start, range(ranks)):
            assert done.returncode == 0, done.stderr[-3000:]
