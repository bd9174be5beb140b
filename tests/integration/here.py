"""Jobs that are refused before they need a cluster, run in the test's own process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

import pytest


def refused(
    command: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int | str | None, str]:
    """Exit code and standard error of `command` (Python, a job's file, its arguments), which must not succeed."""
    monkeypatch.setattr(sys, "argv", list(command[1:]))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # whoever looks for a cluster fails
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[1], run_name="__main__")
    return ended.value.code, capsys.readouterr().err
