"""The README tells the truth about files, commands and keys."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_file_and_only_those() -> None:
    listed: set[str] = set()
    folder = ""
    tree = README.split("## The tree")[1].split("```")[1]
    for line in tree.splitlines():
        if match := re.match(r"(\w[\w/]*/)", line):
            folder = match[1]
        elif match := re.match(r"  (\S+\.(?:py|sh|yaml))\s", line):
            listed.add(folder + match[1])
    there = {
        str(path.relative_to(ROOT))
        for package in ("rlhf", "actors", "cluster", "jobs")
        for pattern in ("*.py", "*.sh", "*.yaml")
        for path in (ROOT / package).rglob(pattern)
        if path.name != "__init__.py"
    }
    assert listed == there


def test_files_in_commands_exist() -> None:
    named = set(re.findall(r"\b((?:jobs|tests|rlhf|cluster)/[\w/]+\.(?:py|yaml|sh))", README))
    assert {"jobs/ppo_spa_vl.py", "jobs/configs/7b/ppo.yaml", "jobs/doctor.py"} <= named
    assert [name for name in named if not (ROOT / name).exists() and "yours" not in name] == []


def test_make_targets_in_the_readme_are_targets() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)(?= )", README.split("## Two commands")[1].split("```")[1])) <= targets
