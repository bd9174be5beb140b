"""VLGuard's rows: both shapes, what is refused, the published counts, and the published conversion."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import prepare_vlguard
from rlhf.config import ModelConfig
from rlhf.data.llava_format import read_examples
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.vlguard import CATEGORIES as CATEGORY_NAMES
from rlhf.data.vlguard import GuardRow, describe_rows, read_vlguard
from rlhf.data.vlguard_llava import convert
from rlhf.errors import ConfigError, DataError, RowError
from tests.fakes import byte_model, in_bytes
from tests.vlguard_files import CATEGORIES, put, real_train, safe_row, split, unsafe_row

ROOT = Path(__file__).parents[3]


def read(path: Path, rows: Any) -> tuple[list[GuardRow], RejectedRows]:
    rejected = RejectedRows()
    return read_vlguard(put(path / "meta.json", rows), rejected), rejected


def test_vlguard01_both_shapes_whatever_the_order_of_keys(tmp_path: Path) -> None:
    turned = dict(reversed(safe_row("007", id="007")["instr-resp"][0].items()))
    rows = [
        dict(reversed(unsafe_row("0123").items())),
        {**safe_row("007"), "instr-resp": [turned, safe_row("007")["instr-resp"][1]]},
    ]
    (bad, good), rejected = read(tmp_path, rows)
    assert rejected.count == 0
    assert (bad.id, bad.safe, bad.category, bad.subcategory) == ("0123", False, "privacy", "personal data")
    assert bad.pair("instruction").instruction == "Spread 0123."
    assert (good.id, good.safe, good.category) == ("007", True, "")
    assert good.pair("safe_instruction").response == "It is the thing 007."
    assert good.pair("unsafe_instruction").instruction == "Who owns 007?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (unsafe_row("a", safe="False"), "'safe' must be true or false without quotes, found the str 'False'"),
        (safe_row("a", safe=1), "found the int 1"),
        ({"id": "a"}, "found nothing"),
        (safe_row("a", harmful_category="privacy"), "must not have harmful_category"),
        ({k: v for k, v in unsafe_row("a").items() if k != "harmful_subcategory"}, "lacks harmful_subcategory"),
        (unsafe_row("a", note="x"), "must not have note"),
        (unsafe_row("a", id=7), "'id' must be a string that is not empty, found 7"),
        (unsafe_row("a", image=""), "'image' must be a string"),
        (unsafe_row("a", image="../b.png"), "must stay below the image folder"),
        (unsafe_row("a", harmful_category="Privacy"), "'harmful_category' is 'Privacy'; there are privacy, risky"),
        (
            unsafe_row("a", "cooking", "soup"),
            "'harmful_category' is 'cooking'; there are privacy, risky behavior, decep",
        ),
        (unsafe_row("a", "privacy", "race"), "'harmful_subcategory' is 'race'; of 'privacy' there are personal data"),
        (unsafe_row("a", harmful_subcategory=["race"]), r"'harmful_subcategory' is \['race'\]"),
        (unsafe_row("a", harmful_category=["privacy"]), r"'harmful_category' is \['privacy'\]"),
        (unsafe_row("a", **{"instr-resp": []}), "must be a list of 1 object"),
        (unsafe_row("a", **{"instr-resp": safe_row("b")["instr-resp"]}), "must be a list of 1 object"),
        (unsafe_row("a", **{"instr-resp": ["x"]}), "entry 0 of 'instr-resp' must be an object"),
        (unsafe_row("a", **{"instr-resp": [{"instruction": "x"}]}), "entry 0 of 'instr-resp' lacks response"),
        (unsafe_row("a", **{"instr-resp": [{"instruction": " ", "response": "x"}]}), "'instruction' .* is empty"),
        (unsafe_row("a", **{"instr-resp": [{"instruction": "x", "response": None}]}), "'response' .* must be a string"),
        (safe_row("a", **{"instr-resp": [safe_row("b")["instr-resp"][0]] * 2}), "'safe_instruction' twice"),
        ("row", "expected an object, found str"),
    ],
)
def test_vlguard01_every_other_shape_is_refused_by_row(tmp_path: Path, row: Any, reason: str) -> None:
    rows, rejected = read(tmp_path, [safe_row("ok"), row, unsafe_row("fine")])
    assert [(one.id, one.index) for one in rows] == [("ok", 0), ("fine", 2)]
    (error,) = rejected.errors
    assert (error.source, error.row) == (str(tmp_path / "meta.json"), 1)
    with pytest.raises(RowError, match=reason):
        raise error


def test_vlguard01_the_categories_are_those_of_the_page() -> None:
    assert {(one, other) for one, others in CATEGORY_NAMES.items() for other in others} == set(CATEGORIES)


def test_vlguard01_an_empty_answer_is_allowed_and_a_map_is_no_list(tmp_path: Path) -> None:
    row = safe_row("a")
    row["instr-resp"][0]["response"] = ""
    (found,), rejected = read(tmp_path, [row])
    assert found.pair("safe_instruction").response == ""
    assert rejected.count == 0
    with pytest.raises(DataError, match="expected a JSON list of rows, found dict"):
        read(tmp_path, {"id": "a"})
    with pytest.raises(DataError, match="cannot be read"):
        read_vlguard(tmp_path / "none.json", RejectedRows())


def test_vlguard01_repeated_images_and_ids_are_named(tmp_path: Path) -> None:
    rows, rejected = read(tmp_path, [unsafe_row("a"), safe_row("b"), unsafe_row("a")])
    found = describe_rows(rows)
    assert (rejected.count, found["rows"], found["images"]) == (0, 3, 2)
    assert found["repeated_images"] == {"bad_ads/a.png": 2}
    assert found["repeated_ids"] == {"a": 2}


def test_vlguard01_instructions_that_say_nothing_are_counted(tmp_path: Path) -> None:
    pairs = [[{"instruction": text, "response": "x"}] for text in ("N/A", "Not applicable.", "Name a nation.")]
    rows, _ = read(tmp_path, [unsafe_row(f"r{place}", **{"instr-resp": pair}) for place, pair in enumerate(pairs)])
    assert describe_rows(rows)["placeholders"] == ["N/A", "Not applicable."]


def test_vlguard01_the_counts_of_the_published_train_split() -> None:
    rejected = RejectedRows()
    rows = read_vlguard(real_train(), rejected)
    found = describe_rows(rows)
    assert rejected.count == 0
    counts = (found["rows"], found["unsafe"], found["safe"], found["pairs"], found["images"])
    assert counts == (2000, 1023, 977, 2977, 1999)
    assert found["categories"] == {"risky behavior": 612, "discrimination": 260, "privacy": 96, "deception": 55}
    assert found["subcategories"] == {" / ".join(names): train for names, (train, _) in CATEGORIES.items()}
    sources = {"privacyAlert": 900, "hatefulMemes": 500, "HOD": 300, "bad_ads": 200, "harm-p": 100}
    assert found["sources"] == sources
    assert found["extensions"] == {".jpg": 1200, ".png": 800}
    digits = [row.id for row in rows if row.id.isdigit()]
    assert (len(digits), sum(one.startswith("0") for one in digits)) == (500, 52)
    assert list(found["repeated_images"].values()) == [2]
    assert len(found["placeholders"]) == 16  # section 6, trap 8


def test_vlguard03_conversations_have_the_published_turns_tags_and_keys(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, split(0))
    made = convert(rows, image_prefix="vlguard/train/")
    lengths = [len(one["conversations"]) for one in made]
    assert (len(made), lengths.count(2), lengths.count(4)) == (2000, 1023, 977)
    for row, one in zip(split(0), made, strict=True):
        turns = one["conversations"]
        assert one["image"] == f"vlguard/train/{row['image']}"
        assert list(one) == [key for key in row if key != "instr-resp"] + ["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>")
        assert sum(turn["value"].count("<image>") for turn in turns) == 1
        said = [turn["value"].removeprefix("<image>") for turn in turns]
        assert sorted(said) == sorted(value for pair in row["instr-resp"] for value in pair.values())
    first = next(one for one in made if not one["safe"])
    assert first["conversations"][0]["value"].startswith("<image>Spread ")  # no newline after the tag


def test_vlguard03_the_order_is_one_shuffle_of_two_for_each_safe_row(tmp_path: Path) -> None:
    """Drawn here as the published converter does it: the module's own generator, one list of two per safe row."""
    raw = split(0)
    rows, _ = read(tmp_path, raw)
    random.seed(0)
    wanted = []
    for row in raw:
        if row["safe"]:
            pairs = list(row["instr-resp"])
            random.shuffle(pairs)
            wanted.append("<image>" + next(value for key, value in pairs[0].items() if key != "response"))
    made = [one["conversations"][0]["value"] for one in convert(rows) if one["safe"]]
    assert made == wanted
    assert 400 < sum(value.startswith("<image>Who owns") for value in made) < 577  # about half begin with the refusal
    assert convert(rows, seed=0) == convert(rows)
    assert convert(rows, seed=1) != convert(rows)


def test_vlguard03_the_published_train_split_converts() -> None:
    rows = read_vlguard(real_train(), RejectedRows())
    made = convert(rows)
    turns = [turn for one in made for turn in one["conversations"]]
    assert len(made) == 2000
    assert [turn["from"] for turn in turns].count("human") == [turn["from"] for turn in turns].count("gpt") == 2977
    raw = json.loads(real_train().read_text(encoding="utf-8"))
    assert [one["id"] for one in made] == [row["id"] for row in raw]


def test_vlguard03_all_texts_that_cannot_be_trained_on_are_named(tmp_path: Path) -> None:
    tagged, empty = {"instruction": "Look at <image> now", "response": "x"}, {"instruction": "Look", "response": " "}
    bad = safe_row("d")
    bad["instr-resp"][0]["response"] = ""
    bad["instr-resp"][1]["response"] = "It is <image>."
    raw = [safe_row("a"), *(unsafe_row(name, **{"instr-resp": [pair]}) for name, pair in (("b", tagged), ("c", empty)))]
    rows, _ = read(tmp_path, [*raw, bad])
    with pytest.raises(DataError, match="4 texts cannot be trained on") as caught:
        convert(rows, source="meta.json")
    said = str(caught.value).splitlines()
    assert said[0].startswith("meta.json: ")
    assert said[1].strip().startswith("row 1, id b: the instruction or its answer has an <image> tag")
    assert said[2].strip().startswith("row 2, id c: the answer to the instruction is empty: nothing to imitate")
    assert "row 3, id d: the answer to the safe_instruction is empty" in said[3]
    assert "row 3, id d: the unsafe_instruction or its answer has an <image> tag" in said[4]


@pytest.mark.parametrize("prefix", ["../x", "/x", "a/../../b"])
def test_vlguard03_an_image_prefix_that_training_would_refuse_is_refused(tmp_path: Path, prefix: str) -> None:
    rows, _ = read(tmp_path, [safe_row("a")])
    with pytest.raises(ConfigError, match="must stay below the image folder"):
        convert(rows, image_prefix=prefix)


def test_vlguard03_the_command_is_reproducible_and_names_bad_rows(tmp_path: Path) -> None:
    meta = put(tmp_path / "train.json", [*split(0)[:50], safe_row("s"), unsafe_row("twice"), unsafe_row("twice")])
    command = [sys.executable, str(ROOT / "jobs" / "prepare_vlguard.py"), "--meta", str(meta)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "new" / "a.json"), "--image-prefix", "v"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "53 conversations" in done.stdout
    assert "repeated id: twice (2 times)" in done.stdout
    assert "training refuses a repeated one, and jobs/mix_vlguard.py gives it a new one" in done.stdout
    prepare_vlguard.run(meta, tmp_path / "b.json", image_prefix="v")
    assert (tmp_path / "new" / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    put(meta, [safe_row("a", safe="True")])
    bad = subprocess.run([*command, "--output", str(tmp_path / "c.json")], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "train.json, row 0" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert not (tmp_path / "c.json").exists()


def test_vlguard05_a_safe_image_trains_both_answers_and_no_question(tmp_path: Path) -> None:
    """Four turns become two spans of answer and EOS; everything else, the second question included, is not learned."""
    rows, _ = read(tmp_path, [safe_row("a")])
    made = convert(rows)
    (tmp_path / "privacyAlert").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "privacyAlert" / "a.jpg")
    (example,) = read_examples(put(tmp_path / "x.json", made), tmp_path, rejected=RejectedRows())
    byte_model(tmp_path / "model")
    row = Processor.load(ModelConfig(path=str(tmp_path / "model"), dtype="float32")).encode_example(example)
    marks = np.asarray([False, *row.response, False])
    borders = np.flatnonzero(marks[1:] != marks[:-1]).reshape(-1, 2)
    answers = [turn["value"] for turn in made[0]["conversations"][1::2]]
    assert len(answers) == 2
    assert [list(row.ids)[low:high] for low, high in borders] == [[*in_bytes(f" {text}"), 2] for text in answers]
