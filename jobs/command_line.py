"""The command line that all jobs share: --config, dotted overrides, --fresh, --help with every key; how errors end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rlhf.checkpoint import discard
from rlhf.config import Config, RunConfig, describe, load
from rlhf.errors import ConfigError, DataError, SafeVLError

JobConfig = TypeVar("JobConfig", bound=Config)


def main(
    schema: type[JobConfig], run: Callable[[JobConfig], object], about: str, arguments: Sequence[str] | None = None
) -> None:
    """Parse, validate, run; `arguments` are those of the process if unset. Errors end as `refusals` says."""
    parser = argparse.ArgumentParser(
        description=about,
        epilog="configuration keys:\n" + describe(schema).replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file")
    parser.add_argument("--fresh", action="store_true", help="discard an existing run of this name and begin again")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override keys of the file")
    chosen = parser.parse_args(arguments)
    with refusals():
        config = load(schema, chosen.config, chosen.overrides)
        run_section = getattr(config, "run", None)
        if chosen.fresh and isinstance(run_section, RunConfig):
            discard(run_section)
        run(config)


@contextmanager
def refusals() -> Iterator[None]:
    """Say an error in one line and exit: code 2 for a refused configuration, 1 for any other error that SafeVL raised.

    1, too, where the system refuses a file, or nobody reads the output any more (`| head`).
    """
    try:
        yield
        sys.stdout.flush()
    except ConfigError as error:
        sys.exit(_complain(error, 2))
    except (SafeVLError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # Python would try to write what is left once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_complain(error, 1))


def claim_output(output: Path, *inputs: Path) -> None:
    """Make the folder of a file that a job is going to write, before it works for hours.

    Raises DataError for a folder in its place, and for a file that the job reads.
    """
    if output.is_dir():
        raise DataError("is a folder; name a file for the output", source=str(output))
    if output.exists() and any(one.exists() and output.samefile(one) for one in inputs):
        raise DataError("is read by this job; name another file for the output", source=str(output))
    output.parent.mkdir(parents=True, exist_ok=True)


def _complain(error: Exception, code: int) -> int:
    print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return code
