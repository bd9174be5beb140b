"""What survives a kill, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import CheckpointError, DataError
from rlhf.ledger import Ledger, write_whole

BINDING = {"model": "m"}


def test_entries_come_back_and_the_later_value_wins(tmp_path: Path) -> None:
    with Ledger(tmp_path, BINDING) as ledger:
        ledger.add("a", {"x": 1})
        ledger.add("b", {"x": "é\n"})
    with Ledger(tmp_path, BINDING) as ledger:
        assert ledger.entries == {"a": {"x": 1}, "b": {"x": "é\n"}}
        ledger.add("a", {"x": 2})
    assert Ledger(tmp_path, BINDING).entries["a"] == {"x": 2}
    assert sorted(path.name for path in tmp_path.glob("part-*")) == ["part-0001.jsonl", "part-0002.jsonl"]


@pytest.mark.parametrize("kept", [1, 20, 44])
def test_a_torn_last_line_is_left_out_and_never_appended_to(tmp_path: Path, kept: int) -> None:
    with Ledger(tmp_path, BINDING) as ledger:
        ledger.add("a", {"text": "first"})
        whole = (tmp_path / "part-0001.jsonl").read_bytes()
        ledger.add("b", {"text": "second, which a kill tears"})
    torn = (tmp_path / "part-0001.jsonl").read_bytes()[: len(whole) + kept]
    (tmp_path / "part-0001.jsonl").write_bytes(torn)
    with Ledger(tmp_path, BINDING) as ledger:
        assert list(ledger.entries) == ["a"]
        ledger.add("b", {"text": "again"})
    assert Ledger(tmp_path, BINDING).entries == {"a": {"text": "first"}, "b": {"text": "again"}}
    assert (tmp_path / "part-0001.jsonl").read_bytes() == torn


def test_damage_in_the_middle_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with Ledger(tmp_path, BINDING) as ledger:
        ledger.add("a", {})
    (tmp_path / "part-0001.jsonl").write_text('{"key": "a"\n{"key": "b", "value": {}}\n')
    with pytest.raises(DataError, match="part-0001"):
        Ledger(tmp_path, BINDING)


def test_results_of_something_else_are_refused_by_name(tmp_path: Path) -> None:
    with Ledger(tmp_path, {"model": "before", "decoding": "greedy"}) as ledger:
        ledger.add("a", {})
    with pytest.raises(CheckpointError, match=r"model: 'before' then, 'after' now") as caught:
        Ledger(tmp_path, {"model": "after", "decoding": "greedy"})
    assert "decoding" not in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_part_numbers_grow_past_9999(tmp_path: Path) -> None:
    with Ledger(tmp_path, BINDING):
        (tmp_path / "part-9999.jsonl").write_text('{"key": "a", "value": {"x": 1}}\n')
        (tmp_path / "part-10000.jsonl").write_text('{"key": "a", "value": {"x": 2}}\n')
    with Ledger(tmp_path, BINDING) as ledger:
        assert ledger.entries["a"] == {"x": 2}  # by number, not by name
        ledger.add("b", {})
    assert (tmp_path / "part-10001.jsonl").exists()


WRITER = """
import sys
from pathlib import Path
from rlhf.ledger import Ledger
with Ledger(Path(sys.argv[1]), {"model": "m"}) as ledger:
    for number in range(100_000):
        ledger.add(str(number), {"text": "x" * 300, "number": number})
        if number == 20:
            print("ready", flush=True)
"""


def test_sigkill_in_mid_write_loses_no_finished_entry(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    entries = Ledger(tmp_path, BINDING).entries
    assert len(entries) > 20
    assert list(entries) == [str(number) for number in range(len(entries))]
    assert all(entry == {"text": "x" * 300, "number": int(key)} for key, entry in entries.items())


def test_a_whole_file_replaces_the_old_one_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_whole(path, "old")
    write_whole(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [path]
