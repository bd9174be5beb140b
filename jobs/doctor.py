"""Is this machine ready for SafeVL? Prints what is there, what is missing and how to fix it.

With --config FILE of any training job it says instead how much memory every role needs per GPU, without loading or
downloading a model, and what to change if that does not fit.

Exit code 0 if everything is there (if it fits), else 1, and 2 for a configuration that is refused. Where the package
itself is not installed yet, run it from the project folder as `python -m jobs.doctor`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cluster.doctor import Check, examine, is_ready

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[bold red]✗[/]"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="default: gpu where a GPU is found, else cpu")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    parser.add_argument("--config", type=Path, help="YAML file of a job: size its roles")
    parser.add_argument("--device-gib", type=float, help="memory of one GPU; default: the smallest one here, else 80")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override keys of the file")
    arguments = parser.parse_args()
    if arguments.config:
        sys.exit(_size(arguments.config, arguments.overrides, arguments.device_gib))
    if arguments.overrides or arguments.device_gib:
        parser.error("overrides and --device-gib belong to --config")
    project = Path(os.environ.get("SAFEVL_HOME") or Path(__file__).resolve().parents[1])
    platform, checks = examine(project, project / "runs", arguments.platform)
    ready = is_ready(checks)
    if arguments.json:
        print(json.dumps({"platform": platform, "ready": ready, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        _show(platform, checks, ready)
    sys.exit(0 if ready else 1)


def _size(path: Path, overrides: Sequence[str], device_gib: float | None) -> int:
    from jobs.memory import main as size
    from rlhf.errors import ConfigError

    try:
        return size(path, overrides, device_gib)
    except ConfigError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2


def _show(platform: str, checks: Sequence[Check], ready: bool) -> None:
    verdict = f"ready for the {platform} platform" if ready else f"not ready for the {platform} platform"
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # nothing is installed yet: just when a doctor is needed
        for check in checks:
            print(f"{check.level:8} {check.name:18} {check.found}  {check.fix}")
        print(verdict)
        return
    console = Console()
    table = Table("", "what", "found", "tested or wanted", title="SafeVL on this machine", title_justify="left")
    for check in checks:
        table.add_row(_MARKS[check.level], *map(escape, (check.name, check.found, check.wanted)))
    console.print(table)
    for check in checks:
        if check.fix:  # below the table and unwrapped, so that a command can be copied
            console.print(f"{_MARKS[check.level]} {escape(check.name)}: {escape(check.fix)}", soft_wrap=True)
    console.print(f"[bold]{verdict}[/]")


if __name__ == "__main__":
    main()
