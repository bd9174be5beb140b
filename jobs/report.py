"""Write `report.html` of a run folder and print where it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf.errors import SafeVLError
from rlhf.report import write_report


def main() -> None:
    """Command line: one run folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="for example runs/tiny/ppo")
    folder = parser.parse_args().folder
    try:
        print(write_report(folder))
    except SafeVLError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
