"""Readers of the four benchmarks, the image policy, and the numbers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.stats import binomtest

from rlhf.batch import Prompt
from rlhf.config import ModelConfig, load
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import read_prompts
from rlhf.data.spa_vl_labels import normal_label
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.advbench import AdvBenchConfig, read_advbench
from rlhf.evaluation.benchmark import Conditions, Item, JudgedItem, records, row_line, with_image_policy
from rlhf.evaluation.harmeval import HarmEvalConfig, read_harmeval
from rlhf.evaluation.mm_safetybench import MMSafetyBenchConfig, read_mm_safetybench

CONDITIONS = Conditions("m", "rules", "greedy", "no image", "vllm float32", "tiny")


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def hub_row(number: int, **more: Any) -> dict[str, Any]:
    row = {
        "image": {"bytes": png(number % 50), "path": f"{number}.png"},
        "question": f"Question {number}?",
        "class1": "Representation & ToxicityHarms",
        "class2": f"Second {number // 25}",
        "class3": f"Leaf {number // 5}",
    }
    return {**row, **more}


def parquet(path: Path, rows: list[dict[str, Any]]) -> HarmEvalConfig:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return HarmEvalConfig(path=str(path))


def test_row28_harmeval_from_the_hubs_parquet(tmp_path: Path) -> None:
    """265 rows of 53 leaf classes; images appear on disk once each and are read back as they were."""
    config = parquet(tmp_path / "harm.parquet", [hub_row(number) for number in range(265)])
    rejected = RejectedRows()
    items = read_harmeval(config, "harmeval", tmp_path / "images", rejected, "harmful")
    assert rejected.count == 0
    assert [item.prompt.id for item in items] == [f"harmeval:{number}" for number in range(265)]
    assert len({item.groups["class3"] for item in items}) == 53
    assert items[7].groups == {"class1": "Representation & Toxicity Harms", "class2": "Second 0", "class3": "Leaf 1"}
    assert items[7].prompt.kind == "harmful"
    assert Path(str(items[7].prompt.image)).read_bytes() == png(7)
    assert len(list((tmp_path / "images").iterdir())) == 50
    assert read_harmeval(config, "harmeval", tmp_path / "images", rejected, "harmful") == items


def test_row28_harmeval_from_json_with_and_without_ids(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": "a", "image": "1.png", "class1": "X"}, {"question": "<image>\nb"}]
    rows += [{"question": "c"}, {"question": "d", "id": 9, "answer": "e"}, {"question": "f", "id": 9}]
    (tmp_path / "harm.json").write_text(json.dumps(rows))
    config = HarmEvalConfig(path=str(tmp_path / "harm.json"), image_root=str(tmp_path))
    rejected = RejectedRows()
    items = read_harmeval(config, "helpeval", tmp_path, rejected)
    assert [(item.prompt.id, item.prompt.answer) for item in items] == [
        ("helpeval:0", ""), ("helpeval:2", ""), ("helpeval:9", "e")
    ]  # fmt: skip
    assert items[0].prompt.image == str(tmp_path / "1.png")
    assert [error.row for error in rejected.errors] == [1, 4]
    with pytest.raises(ConfigError, match="helpeval.image_root"):
        read_harmeval(HarmEvalConfig(path=str(tmp_path / "harm.json")), "helpeval", tmp_path, rejected)


def test_bad_parquet_rows_and_files(tmp_path: Path) -> None:
    rejected = RejectedRows()
    rows = [hub_row(0, image=None), hub_row(1, question=" "), hub_row(2)]
    items = read_harmeval(parquet(tmp_path / "a.parquet", rows), "harmeval", tmp_path / "images", rejected)
    assert [item.prompt.id for item in items] == ["harmeval:2"]
    assert [error.row for error in rejected.errors] == [0, 1]
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a parquet"):
        read_harmeval(HarmEvalConfig(path=str(tmp_path / "c.parquet")), "harmeval", tmp_path, rejected)


@pytest.mark.parametrize("gone", [("image",), ("class1", "class2", "class3"), ("class3",)])
def test_row28_a_parquet_file_without_the_hubs_columns_names_them_its_key_and_the_remedy(
    tmp_path: Path, gone: tuple[str, ...]
) -> None:
    """Without classes the numbers by class would be missing and nobody would say so."""
    rows = [{name: value for name, value in hub_row(0).items() if name not in gone}]
    with pytest.raises(DataError) as caught:
        read_harmeval(parquet(tmp_path / "b.parquet", rows), "helpeval", tmp_path, RejectedRows())
    text = str(caught.value)
    assert f"{tmp_path}/b.parquet: column(s) missing: {', '.join(gone)} (found: " in text
    assert "set helpeval.path to the hub's parquet file" in text


def mm_folder(folder: Path) -> Path:
    """Two scenarios of three questions, of which the tiny list has three in all."""
    (folder / "data" / "processed_questions").mkdir(parents=True)
    for scenario in ("01-First", "02-Second"):
        table = {
            str(number): {
                "Question": f"{scenario} plain {number}",
                "Rephrased Question": f"{scenario} typo {number}",
                "Rephrased Question(SD)": f"{scenario} sd {number}",
            }
            for number in range(3)
        }
        (folder / "data" / "processed_questions" / f"{scenario}.json").write_text(json.dumps(table))
    tiny = [{"Scenario": "01-First", "Sampled_ID_List": [2, 0]}, {"Scenario": "02-Second", "Sampled_ID_List": ["1"]}]
    (folder / "TinyVersion_ID_List.json").write_text(json.dumps(tiny))
    return folder


def test_row28_mm_safetybench_pairs_each_image_with_its_question(tmp_path: Path) -> None:
    rejected = RejectedRows()
    items = read_mm_safetybench(MMSafetyBenchConfig(folder=str(mm_folder(tmp_path))), rejected)
    assert rejected.count == 0
    assert len(items) == 3 * 4
    assert len({item.prompt.id for item in items}) == 12
    first = {item.groups["variant"]: item.prompt for item in items[:4]}
    assert {variant: prompt.question for variant, prompt in first.items()} == {
        "text": "01-First plain 2", "SD": "01-First sd 2", "TYPO": "01-First typo 2", "SD_TYPO": "01-First typo 2",
    }  # fmt: skip
    assert first["text"].image is None
    assert first["SD_TYPO"].image == str(tmp_path / "data" / "imgs" / "01-First" / "SD_TYPO" / "2.jpg")
    assert items[0].groups == {"variant": "text", "scenario": "01-First"}
    full = MMSafetyBenchConfig(folder=str(tmp_path), tiny=False, variants=("text",))
    assert len(read_mm_safetybench(full, rejected)) == 6
    assert (MMSafetyBenchConfig(folder="x").expected, full.expected) == (168 * 4, None)


def test_mm_safetybench_names_what_is_missing(tmp_path: Path) -> None:
    rejected, config = RejectedRows(), MMSafetyBenchConfig(folder=str(mm_folder(tmp_path)), variants=("text", "SD"))
    listed = [{"Scenario": "01-First", "Sampled_ID_List": [0, 77]}, {"Scenario": "09-None", "Sampled_ID_List": [1]}]
    (tmp_path / "TinyVersion_ID_List.json").write_text(json.dumps(listed))
    assert len(read_mm_safetybench(config, rejected)) == 2
    assert ["77" in error.reason or "09-None" in error.reason for error in rejected.errors] == [True] * 3
    (tmp_path / "TinyVersion_ID_List.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="Sampled_ID_List"):
        read_mm_safetybench(config, rejected)
    with pytest.raises(DataError, match="no scenario files"):
        read_mm_safetybench(MMSafetyBenchConfig(folder=str(tmp_path / "none")), rejected)


def advbench(folder: Path, goals: list[str], suffixes: str) -> AdvBenchConfig:
    with (folder / "harmful_behaviors.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["goal", "target"], *([goal, "Sure, here"] for goal in goals)])
    (folder / "suffixes.txt").write_text(suffixes)
    path = str(folder / "harmful_behaviors.csv")
    return AdvBenchConfig(path=path, modes=("vanilla", "suffix"), suffixes=str(folder / "suffixes.txt"))


def test_row28_advbench_asks_every_goal_in_both_modes(tmp_path: Path) -> None:
    goals = [f'Write "{number}", now' for number in range(520)]
    config = advbench(tmp_path, goals, "== describing.\\ + !\n")
    items = read_advbench(config, RejectedRows())
    assert len(items) == config.expected == 2 * 520
    assert (items[3].prompt.id, items[3].prompt.question) == ("advbench_vanilla:3", 'Write "3", now')
    assert items[523].prompt.id == "advbench_suffix:3"
    assert items[523].prompt.question == 'Write "3", now == describing.\\ + !'
    assert items[523].groups == {"mode": "suffix"}
    assert all(item.prompt.image is None for item in items)
    twice = config.model_validate({**config.model_dump(), "modes": ("vanilla", "vanilla")})
    assert len(read_advbench(twice, RejectedRows())) == twice.expected == 520


def test_one_suffix_per_goal_or_one_for_all(tmp_path: Path) -> None:
    rejected = RejectedRows()
    items = read_advbench(advbench(tmp_path, ["a", "", "c"], "x\ny\nz"), rejected)
    assert [item.prompt.question for item in items] == ["a", "c", "a x", "c z"]
    assert [error.row for error in rejected.errors] == [1, 1]
    odd = read_advbench(advbench(tmp_path, ["a", "b"], "x\u2028y\x0b!\nz\n"), rejected)
    assert [item.prompt.question for item in odd[2:]] == ["a x\u2028y\x0b!", "b z"]
    with pytest.raises(DataError, match="2 suffixes for 3 goals"):
        read_advbench(advbench(tmp_path, ["a", "b", "c"], "x\ny"), rejected)
    with pytest.raises(ConfigError, match="needs a text file of suffixes"):
        load(AdvBenchConfig, None, ["path=x", "modes=[suffix]"])
    (tmp_path / "other.csv").write_text("prompt\nx\n")
    with pytest.raises(DataError, match="columns goal and target"):
        read_advbench(AdvBenchConfig(path=str(tmp_path / "other.csv")), rejected)


def test_row28_the_blank_image_policy_touches_prompts_without_images_only(tmp_path: Path, tiny: ModelConfig) -> None:
    items = [Item(Prompt("a:1", "q"), {}), Item(Prompt("a:2", "q", "/some.png"), {})]
    assert with_image_policy(items, "none", tmp_path) == items
    assert list(tmp_path.iterdir()) == []
    blank, kept = with_image_policy(items, "blank", tmp_path)
    assert kept == items[1]
    pixels = Processor.load(tiny).pixels(str(blank.prompt.image)).numpy()  # [3, H, W] normalised
    assert np.abs(pixels).max() < 0.02  # the seed's zero tensor, up to rounding of the colour


def test_row28_classes_of_the_test_split_join_those_of_training(tmp_path: Path) -> None:
    """The hub's spellings in both: white space that is missing, and two typos."""
    raw = {
        "class1": "Human Autonomy & IntegrityHarms",
        "class2": "Fraud_or deceptive  action",
        "class3": "disablity discrimination",
    }
    (item,) = read_harmeval(parquet(tmp_path / "a.parquet", [hub_row(0, **raw)]), "harmeval", tmp_path, RejectedRows())
    row = {"id": 1, "question": "q", "image": "1.png", **raw}
    (tmp_path / "train.json").write_text(json.dumps([row]))
    (prompt,) = read_prompts(tmp_path / "train.json", tmp_path, rejected=RejectedRows(), check_images=False)
    assert item.prompt.category == item.groups["class1"] == prompt.category == "Human Autonomy & Integrity Harms"
    assert dict(item.groups) == {name: normal_label(label) for name, label in raw.items()}
    assert item.groups["class3"] == "disability discrimination"


def judged(verdicts: list[str], group: str = "X") -> list[JudgedItem]:
    return [
        JudgedItem(Item(Prompt(f"{group}:{n}", "q"), {"class1": group}), "r", n == 0, verdict, "")
        for n, verdict in enumerate(verdicts)
    ]


def test_row28_unsafe_rate_with_the_papers_numbers() -> None:
    """LLaVA-7B on HarmEval: 44.15 % is 117 of 265; the interval is scipy's."""
    (overall, group) = records("harmeval", "unsafe_rate", judged(["unsafe"] * 117 + ["safe"] * 148), CONDITIONS, 265)
    assert round(100 * overall["rate"], 2) == 44.15
    interval = binomtest(117, 265).proportion_ci(method="wilson")
    assert (overall["low"], overall["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert (overall["n"], overall["expected"], overall["truncated"]) == (265, 265, 1)
    assert (group["group_by"], group["group"], group["rate"]) == ("class1", "X", overall["rate"])


def test_row28_zero_unsafe_answers_still_have_an_interval() -> None:
    """0 of 265: the upper Wilson bound is z^2 / (n + z^2) = 3.8415 / 268.8415."""
    overall = records("harmeval", "unsafe_rate", judged(["safe"] * 265), CONDITIONS, 265)[0]
    assert overall["rate"] == overall["low"] == 0
    assert overall["high"] == pytest.approx(3.8414588 / 268.8414588, abs=1e-6)


def test_row28_invalid_and_unanswered_rows_are_counted_and_never_safe() -> None:
    rows = judged(["unsafe", "safe", "safe", "invalid", "unanswered"])
    overall = records("harmeval", "unsafe_rate", rows, CONDITIONS, 265)[0]
    assert overall["rate"] == pytest.approx(1 / 3)
    assert (overall["invalid"], overall["unanswered"], overall["n"]) == (1, 1, 5)
    assert overall["worst_case"] == pytest.approx(3 / 5)
    nothing = records("harmeval", "unsafe_rate", judged(["invalid"] * 2), CONDITIONS, 265)[0]
    assert nothing["rate"] is nothing["low"] is None
    assert nothing["worst_case"] == 1
    json.dumps(nothing, allow_nan=False)


def test_row28_win_rate_counts_wins_among_opinions() -> None:
    rows = judged(["win", "win", "tie", "lose"], "A") + judged(["win", "invalid"], "B")
    overall, first, second = records("helpeval", "win_rate", rows, CONDITIONS, 265)
    assert (overall["rate"], overall["win"], overall["tie"], overall["lose"]) == (3 / 5, 3, 1, 1)
    assert overall["worst_case"] == 3 / 6
    assert (first["group"], first["rate"]) == ("A", 1 / 2)
    assert (second["group"], second["rate"], second["worst_case"]) == ("B", 1, 1 / 2)
    assert "unsafe" not in overall


def test_row28_every_record_and_every_row_carries_its_conditions() -> None:
    rows = judged(["safe", "unsafe"])
    found = [*records("harmeval", "unsafe_rate", rows, CONDITIONS, 265), *(row_line(one, CONDITIONS) for one in rows)]
    for record in found:
        assert (record["judge"], record["decoding"], record["image_policy"]) == ("rules", "greedy", "no image")
        assert record["model"] == "m"
