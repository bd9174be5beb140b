"""Jobs that are made of other jobs: their commands, run side by side with a log each, and a summary with its page."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.checkpoint import RunFolder
from rlhf.config import Config, RunConfig, resolve
from rlhf.errors import ConfigError, WorkerLostError
from rlhf.ledger import write_whole
from rlhf.metrics import Progress

_PROJECT = Path(__file__).parents[1]
_LOOK = 1.0  # seconds between looks at the processes
_TOLD = 15  # lines of a log that an error shows


def run_steps(
    run: RunConfig,
    whole: Config,
    steps: Callable[[Path], dict[str, Any]],
    page: Callable[[Path, Mapping[str, Any]], Path],
    free: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Let `steps` do what is not finished yet in the run's folder; write and show the summary that they return.

    A summary has `measures`, numbers by name and then by what was measured. Steps that are finished are not done again.
    """
    folder = RunFolder(run, whole, free=free)
    try:
        began = time.monotonic()
        summary = steps(folder.path)
        write_whole(folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        written = page(folder.path, summary)
        folder.mark_complete()
        for name, values in summary["measures"].items():
            print(f"  {name}: " + ", ".join(f"{what} {_shown(value)}" for what, value in values.items()), flush=True)
        print(f"{run.name}: {time.monotonic() - began:.0f} s, report: {written}", flush=True)
        return summary
    finally:
        folder.close()


def command(script: Sequence[str], settings: str, run: RunConfig, name: str, *overrides: str) -> list[str]:
    """What a person would type for the step `name` of a run. Raises ConfigError where the settings are no file."""
    if not Path(resolve(settings)).is_file():
        raise ConfigError([f"settings of {name}: no such file {resolve(settings)}; mend the path"])
    place = [f"run.name={run.name}/{name}", f"run.root={run.root}"]
    return [sys.executable, *script, "--config", resolve(settings), *place, *overrides]


def run_together(commands: Mapping[str, Sequence[str]], folder: Path, what: str) -> None:
    """Run every command to its end; logs are `folder/<name>_<what>.log`. Raises WorkerLostError with a log's end."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    logs = {name: folder / f"{name}_{what}.log" for name in commands}
    try:
        for name, command in commands.items():
            with logs[name].open("wb") as log:
                running[name] = subprocess.Popen(command, cwd=_PROJECT, stdout=log, stderr=subprocess.STDOUT)
        began = time.monotonic()
        with Progress(f"{what} of {' and '.join(commands)}", len(commands)) as progress:
            while any(process.poll() is None for process in running.values()):
                time.sleep(_LOOK)
                _refuse_failed(running, logs, what)
                done = sum(process.poll() is not None for process in running.values())
                progress.advance(done, {"seconds": time.monotonic() - began})
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
    _refuse_failed(running, logs, what)


def _refuse_failed(running: Mapping[str, subprocess.Popen[bytes]], logs: Mapping[str, Path], what: str) -> None:
    for name, process in running.items():
        if process.poll():
            lines = logs[name].read_text(errors="replace").splitlines()[-_TOLD:]
            raise WorkerLostError(f"{what} of {name}", "\n".join([f"the end of {logs[name]}:", *lines]))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
