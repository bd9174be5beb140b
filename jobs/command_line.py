"""The command line that all jobs share: --config, dotted overrides, --fresh, and --help with every key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rlhf.checkpoint import discard
from rlhf.config import Config, RunConfig, describe, load
from rlhf.errors import ConfigError, SafeVLError

JobConfig = TypeVar("JobConfig", bound=Config)


def main(schema: type[JobConfig], run: Callable[[JobConfig], object], about: str) -> None:
    """Parse, validate, run. Exit code 2 for a refused configuration, 1 for any other error that SafeVL raised."""
    parser = argparse.ArgumentParser(
        description=about,
        epilog="configuration keys:\n" + describe(schema).replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file")
    parser.add_argument("--fresh", action="store_true", help="discard an existing run of this name and begin again")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override keys of the file")
    arguments = parser.parse_args()
    try:
        config = load(schema, arguments.config, arguments.overrides)
        run_section = getattr(config, "run", None)
        if arguments.fresh and isinstance(run_section, RunConfig):
            discard(run_section)
        run(config)
    except ConfigError as error:
        sys.exit(_complain(error, 2))
    except SafeVLError as error:
        sys.exit(_complain(error, 1))


def _complain(error: SafeVLError, code: int) -> int:
    print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return code
