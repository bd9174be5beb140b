"""Mixtures of safety and helpful rows: sizes, samples, ids, ablations."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.mix_vlguard import MixConfig, run
from rlhf.config import load
from rlhf.data.llava_format import read_examples
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError
from tests.vlguard_files import put


def talk(identifier: Any, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Q {identifier}"}, {"from": "gpt", "value": f"A {identifier}"}]
    return {"id": identifier, **more, "conversations": turns}


def guard(folder: Path, size: int = 2000) -> Path:
    """Converted safety rows, half of them of unsafe images of two categories, one id twice (as in the train split)."""
    rows = [
        talk(f"g{n}", safe=True) if n % 2 else talk(f"g{n}", harmful_category=("privacy", "deception")[n % 4 // 2])
        for n in range(size - 1)
    ]
    return put(folder / "guard.json", [*rows, talk("g0", harmful_category="privacy")])


def helpful(folder: Path, size: int = 12_000) -> Path:
    return put(folder / "base.json", [talk(n) for n in range(size)])


def mixed(folder: Path, *overrides: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    files = [f"safety={folder}/guard.json", f"output={folder}/out.json"]
    base = [f"helpful={folder}/base.json"] if (folder / "base.json").exists() else []
    manifest = run(load(MixConfig, None, [*files, *base, *overrides]))
    return json.loads((folder / "out.json").read_text()), manifest


@pytest.mark.parametrize("count", [0, 5000, 10_000])
def test_vlguard04_so_many_rows_without_replacement_and_every_id_once(tmp_path: Path, count: int) -> None:
    guard(tmp_path)
    helpful(tmp_path)
    rows, manifest = mixed(tmp_path, f"helpful_rows={count}", "seed=3")
    assert len(rows) == count + 2000 == len({str(row["id"]) for row in rows})
    drawn = [row["id"] for row in rows[:count]]
    assert drawn == sorted(drawn)  # file order
    assert manifest["safety_share"] == pytest.approx(2000 / (count + 2000))
    assert manifest["renamed"] == {"g0#2": "g0"}
    assert mixed(tmp_path, f"helpful_rows={count}", "seed=3")[0] == rows
    rejected = RejectedRows()
    assert len(read_examples(tmp_path / "out.json", tmp_path, rejected=rejected)) == len(rows)
    assert rejected.count == 0
    if count == 5000:
        other = {row["id"] for row in mixed(tmp_path, "helpful_rows=5000", "seed=4")[0][:count]}
        assert 1800 < len(other & set(drawn)) < 2400  # of 5,000, by chance 2,083
        larger = {row["id"] for row in mixed(tmp_path, "helpful_rows=10000", "seed=3")[0][:10_000]}
        assert set(drawn) < larger


def test_vlguard06_mixing_takes_everything_once_and_says_the_share(tmp_path: Path) -> None:
    guard(tmp_path)
    helpful(tmp_path)
    rows, manifest = mixed(tmp_path, "helpful_rows=null")
    assert (manifest["helpful"], manifest["safety"], len(rows)) == (12_000, 2000, 14_000)
    assert [row["id"] for row in rows[:12_000]] == list(range(12_000))
    assert json.loads((tmp_path / "out.manifest.json").read_text())["safety_share"] == 2000 / 14_000
    assert {one["name"] for one in manifest["sources"]} == {"guard.json", "base.json"}


def test_vlguard04_a_safety_rows_id_is_no_candidate_and_repeated_ids_are_renamed(tmp_path: Path) -> None:
    put(tmp_path / "guard.json", [talk("1"), talk("x")])
    put(tmp_path / "base.json", [talk(1), talk("2"), talk("2"), talk("3")])
    rows, manifest = mixed(tmp_path, "helpful_rows=3")
    assert [row["id"] for row in rows] == ["2", "2#2", "3", "1", "x"]
    assert (manifest["pool"], manifest["renamed"]) == (3, {"2#2": "2"})
    with pytest.raises(ConfigError, match="4 are asked for, .* has 3 without a safety row's id"):
        mixed(tmp_path, "helpful_rows=4")
    rows, manifest = mixed(tmp_path, "helpful_rows=null")
    assert [row["id"] for row in rows] == [1, "2", "2#2", "3", "1#2", "x"]
    assert manifest["renamed"] == {"2#2": "2", "1#2": "1"}


def test_vlguard04_all_conversations_about_an_image_are_drawn_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaVA's mix has one id for several conversations; 2,000 of 300 x 10 rows are two thirds of the first ones."""
    put(tmp_path / "guard.json", [talk("x")])
    put(tmp_path / "base.json", [talk(image, turn=turn) for turn in range(10) for image in range(300)])
    rows, manifest = mixed(tmp_path, "helpful_rows=2000")
    assert manifest["pool"] == 3000
    turns = [row.get("turn") for row in rows]
    assert all(160 < turns.count(turn) < 240 for turn in range(10))  # 200 each by chance, spread 8
    assert len({str(row["id"]) for row in rows}) == 2001
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2  # not a line for each of the 1,700
    assert f"{len(manifest['renamed'])} rows have a new id, because theirs was taken, such as " in said[1]
    assert said[1].count("#") == 3


def test_vlguard04_an_id_of_all_rows_costs_no_square_and_an_id_that_looks_new_is_not_taken_twice(
    tmp_path: Path,
) -> None:
    put(tmp_path / "guard.json", [talk("a")])
    put(tmp_path / "base.json", [talk("a#3"), *[talk("a")] * 20_000])
    began = time.process_time()
    rows, _ = mixed(tmp_path, "helpful_rows=null")
    assert time.process_time() - began < 20
    assert [row["id"] for row in rows[:4]] == ["a#3", "a", "a#2", "a#4"]
    assert rows[-1]["id"] == "a#20002"
    assert len({row["id"] for row in rows}) == 20_002


def test_vlguard04_vlguard16_a_text_only_source(tmp_path: Path) -> None:
    put(tmp_path / "guard.json", [talk("g")])
    alpaca = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "Hi."},
    ]
    put(tmp_path / "base.json", alpaca)
    rows, _ = mixed(tmp_path, "helpful_rows=null", "helpful_format=alpaca")
    assert [row["id"] for row in rows] == ["alpaca_0", "alpaca_1", "g"]
    assert [turn["value"] for turn in rows[0]["conversations"]] == ["Add.\n1 and 2", "3"]
    assert rows[1]["conversations"][0]["value"] == "Say hi."
    assert "image" not in rows[0]
    with pytest.raises(DataError, match="row 0: expected an object with id and conversations"):
        mixed(tmp_path, "helpful_rows=null")
    put(tmp_path / "base.json", [*alpaca, {"instruction": "x", "output": ""}])
    with pytest.raises(DataError, match="row 2: 'instruction' or 'output' is missing or empty"):
        mixed(tmp_path, "helpful_rows=null", "helpful_format=alpaca")


def test_vlguard16_size_sweep_and_category_hold_out(tmp_path: Path) -> None:
    guard(tmp_path, 400)
    sizes = {}
    for size in (100, 200):
        sizes[size] = {row["id"] for row in mixed(tmp_path, "helpful_rows=0", f"safety_rows={size}")[0]}
        assert len(sizes[size]) == size
    assert sizes[100] < sizes[200]
    rows, manifest = mixed(tmp_path, "helpful_rows=0", "hold_out=[privacy]")
    categories = [row.get("harmful_category") for row in rows]
    assert manifest["safety"] == len(rows) == 400 - 101
    assert (categories.count("deception"), categories.count(None), "privacy" in categories) == (100, 199, False)
    with pytest.raises(ConfigError, match="no category violence in .*; there are deception, privacy"):
        mixed(tmp_path, "helpful_rows=0", "hold_out=[violence]")
    with pytest.raises(ConfigError, match="safety_rows: 300 are asked for, .* has 299"):
        mixed(tmp_path, "helpful_rows=0", "hold_out=[privacy]", "safety_rows=300")


def test_vlguard04_what_cannot_be_mixed_is_said(tmp_path: Path) -> None:
    put(tmp_path / "guard.json", [{"id": "a", "instr-resp": []}])
    with pytest.raises(DataError, match="convert with jobs/prepare_vlguard.py first"):
        mixed(tmp_path, "helpful_rows=0")
    put(tmp_path / "guard.json", [talk("a"), {"conversations": []}])
    with pytest.raises(DataError, match=r"guard\.json, row 1: key 'id' is missing"):
        mixed(tmp_path, "helpful_rows=0")
    with pytest.raises(ConfigError, match="name the file of helpful rows, or set helpful_rows to 0"):
        load(MixConfig, None, ["safety=a", "output=b"])
    put(tmp_path / "guard.json", [])
    assert mixed(tmp_path, "helpful_rows=0")[0] == []
