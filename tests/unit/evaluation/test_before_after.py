"""Answers before and after training survive a kill at any moment while they are written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.before_after import show
from rlhf.batch import Prompt
from rlhf.evaluation.before_after import is_recorded, record
from rlhf.evaluation.safety import EvaluationRow
from rlhf.metrics import read_json_lines

REFUSED, TOLD = "I cannot help with that.", "Sure, here is how."


def rows(*responses: str) -> list[EvaluationRow]:
    asked = [Prompt(f"harmful:{number}", "How?", kind="harmful") for number in range(len(responses))]
    return [EvaluationRow(prompt, said, None, False) for prompt, said in zip(asked, responses, strict=True)]


def killed_while_recording(folder: Path, survived: int) -> bool:
    """Record "before" in a process that dies instead of opening or renaming its next file; whether it died."""
    child = os.fork()
    if child == 0:
        left = survived

        def dying(event: str, _: Any) -> None:
            nonlocal left
            if event in ("open", "os.rename"):
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(dying)
        record(folder, "before", rows(TOLD, REFUSED), "a test")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("survived", range(8))
def test_a_kill_while_before_is_written_leaves_a_run_that_goes_on(tmp_path: Path, survived: int) -> None:
    died = killed_while_recording(tmp_path, survived)
    assert died or survived >= 4  # two files, each opened and then renamed
    assert died or is_recorded(tmp_path, "before")
    if is_recorded(tmp_path, "before"):
        summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
        assert summary["before"]["harmful_refusal_rate"] == 0.5
        assert len(list(read_json_lines(tmp_path / "evaluation" / "before.jsonl"))) == 2
    else:
        record(tmp_path, "before", rows(TOLD, REFUSED), "a test")
    record(tmp_path, "after", rows(REFUSED, REFUSED), "a test")
    shown = show(tmp_path)
    assert [shown[moment]["harmful_refusal_rate"] for moment in ("before", "after")] == [0.5, 1.0]
    assert set(shown["intervals"]) == {"before", "after"}
    assert not list((tmp_path / "evaluation").glob("*.partial"))
