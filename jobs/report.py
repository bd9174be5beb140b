"""Write `report.html`: of one run folder, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.command_line import refusals
from rlhf.comparison import write_comparison
from rlhf.report import write_report


def main() -> None:
    """Command line: one run folder, or several and where to write their comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER", help="for example runs/tiny/ppo")
    parser.add_argument("--out", type=Path, help="folder of the comparison; the runs' common parent if unset")
    arguments = parser.parse_args()
    folders: list[Path] = arguments.folders
    with refusals():
        if len(folders) == 1:
            print(write_report(folders[0]))
        else:
            print(write_comparison(folders, arguments.out or folders[0].parent))


if __name__ == "__main__":
    main()
