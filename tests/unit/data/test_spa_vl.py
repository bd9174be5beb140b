"""The seed's JSON, the keyword config and the hub's parquet, with every bad row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import (
    load_pairs,
    load_prompts,
    read_keyword_config,
    read_pairs,
    read_parquet_pairs,
    read_prompts,
)
from rlhf.errors import ConfigError, DataError

GOOD: dict[str, Any] = {"id": 7, "image": "a.png", "question": "What?", "chosen": "No.", "rejected": "Yes."}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != key}


def test_a_good_row(tmp_path: Path, root: Path) -> None:
    rejected = RejectedRows()
    row = {**GOOD, "question": "  Où ? 😀 ", "class1": "Representation & ToxicityHarms"}
    (pair,) = read_pairs(write(tmp_path / "x.json", [row]), root, keyword="easy", rejected=rejected)
    assert (pair.chosen, pair.rejected) == ("No.", "Yes.")
    assert pair.prompt.id == "easy:7"
    assert pair.prompt.question_type == "easy"
    assert pair.prompt.question == "Où ? 😀"
    assert pair.prompt.image == str(root / "a.png")
    assert pair.prompt.category == "Representation & Toxicity Harms"
    assert rejected.count == 0


def test_image_may_be_absent_and_id_falls_back_to_the_stem(tmp_path: Path, root: Path) -> None:
    rows = [without("image"), {**GOOD, "id": 8, "image": None}]
    pairs = read_pairs(write(tmp_path / "mine.json", rows), root, rejected=RejectedRows())
    assert [pair.prompt.image for pair in pairs] == [None, None]
    assert pairs[0].prompt.id == "mine:7"


@pytest.mark.parametrize(("row", "reason"), [
    ("text", "expected an object"),
    (without("id"), "'id' is missing"),
    ({**GOOD, "id": "7"}, "integer"),
    ({**GOOD, "id": True}, "integer"),
    ({**GOOD, "id": 7.0}, "integer"),
    ({**GOOD, "id": None}, "integer"),
    (without("question"), "'question' is missing"),
    ({**GOOD, "question": "  "}, "'question' is empty"),
    ({**GOOD, "question": 5}, "must be a string"),
    ({**GOOD, "question": "<image>"}, "'question' is empty"),
    ({**GOOD, "question": "<image> a <image> b"}, "<image> tag"),
    ({**without("image"), "question": "<image> a"}, "<image> tag"),
    ({**GOOD, "question": []}, "single Human turn"),
    ({**GOOD, "question": [{"from": "Human", "value": "a"}, {"from": "Human", "value": "b"}]}, "single Human turn"),
    ({**GOOD, "question": [{"from": "Human", "value": "a"}, {"from": "Assistant", "value": "b"}]}, "no answer"),
    ({**GOOD, "question": [{"from": "gpt", "value": "a"}]}, "Human or Assistant"),
    ({**GOOD, "question": [{"from": "Human"}]}, "must be a string"),
    ({**GOOD, "chosen": ""}, "'chosen' is empty"),
    ({**GOOD, "rejected": "\n"}, "'rejected' is empty"),
    (without("chosen"), "'chosen' is missing"),
    ({**GOOD, "rejected": None}, "must be a string"),
    ({**GOOD, "image": 3}, "relative path"),
    ({**GOOD, "image": ""}, "relative path"),
    ({**GOOD, "image": "/etc/passwd"}, "must stay below"),
    ({**GOOD, "image": "../a.png"}, "must stay below"),
    ({**GOOD, "image": "none.png"}, "image none.png: no such image"),
    ({**GOOD, "image": "broken.png"}, "image broken.png: not an image"),
    ({**GOOD, "class1": 4}, "'class1'"),
])  # fmt: skip
def test_bad_rows_are_rejected_with_their_place(tmp_path: Path, root: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "x.json", [{**GOOD, "id": 1}, row])
    rejected = RejectedRows()
    pairs = read_pairs(path, root, rejected=rejected)
    assert [pair.prompt.id for pair in pairs] == ["x:1"]
    (error,) = rejected.errors
    assert reason in error.reason
    assert (error.source, error.row) == (str(path), 1)


def test_duplicate_ids_are_rejected_once_each(tmp_path: Path, root: Path) -> None:
    rejected = RejectedRows()
    pairs = read_pairs(write(tmp_path / "x.json", [GOOD, {**GOOD, "chosen": "b"}, GOOD]), root, rejected=rejected)
    assert [pair.chosen for pair in pairs] == ["No."]
    assert [error.row for error in rejected.errors] == [1, 2]


def test_each_image_is_opened_once_but_rejects_all_its_rows(tmp_path: Path, root: Path) -> None:
    rows = [{**GOOD, "id": n, "image": "broken.png"} for n in range(3)]
    rejected = RejectedRows()
    assert read_pairs(write(tmp_path / "x.json", rows), root, rejected=rejected) == []
    assert len({error.reason for error in rejected.errors}) == 1
    assert rejected.count == 3


def test_unchecked_images_are_not_opened(tmp_path: Path, root: Path) -> None:
    rows = [{**GOOD, "image": "none.png"}]
    (pair,) = read_pairs(write(tmp_path / "x.json", rows), root, rejected=RejectedRows(), check_images=False)
    assert pair.prompt.image == str(root / "none.png")


def test_turns_with_one_human_turn_are_a_question(tmp_path: Path, root: Path) -> None:
    turns = [{"from": "Human", "value": "<image>\nWhat?"}, {"from": "Assistant", "value": ""}]
    (pair,) = read_pairs(write(tmp_path / "x.json", [{**GOOD, "question": turns}]), root, rejected=RejectedRows())
    assert pair.prompt.question == "What?"


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "", "\udcff"])
def test_unusable_files(tmp_path: Path, root: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="x.json"):
        read_pairs(path, root, rejected=RejectedRows())
    with pytest.raises(DataError, match="none.json"):
        read_pairs(tmp_path / "none.json", root, rejected=RejectedRows())


def test_prompts_need_no_answers(tmp_path: Path, root: Path) -> None:
    rows = [{"id": 1, "question": "Who?"}, {"id": 2, "question": "Why?", "answer": "So."}]
    first, second = read_prompts(write(tmp_path / "x.json", rows), root, keyword="benign", rejected=RejectedRows())
    assert (first.id, first.kind, first.answer) == ("benign:1", "benign", "")
    assert second.answer == "So."


def test_keyword_config_keeps_the_given_order(tmp_path: Path, root: Path) -> None:
    for name in ("easy", "hardq"):
        write(tmp_path / f"{name}.json", [{**GOOD, "chosen": name}])
    config = str(write(tmp_path / "config.json", {"easy": "easy.json", "hardq": str(tmp_path / "hardq.json")}))
    table = read_keyword_config(config, ["hardq", "easy"])
    assert table == [("hardq", tmp_path / "hardq.json"), ("easy", tmp_path / "easy.json")]
    pairs = load_pairs(config, ["hardq", "easy"], root, RejectedRows())
    assert [(pair.prompt.id, pair.chosen) for pair in pairs] == [("hardq:7", "hardq"), ("easy:7", "easy")]
    prompts = load_prompts(config, ["easy"], root, RejectedRows())
    assert [prompt.id for prompt in prompts] == ["easy:7"]


def test_unknown_keyword_is_an_error_that_names_the_nearest_first(tmp_path: Path) -> None:
    config = str(write(tmp_path / "config.json", {"easy": "e.json", "hardq": "q.json", "hards": "s.json"}))
    with pytest.raises(ConfigError) as caught:
        read_keyword_config(config, ["hardd", "easy", "eazy"])
    first, second = caught.value.problems
    assert "'hardd'" in first
    assert first.index("hard") < first.rindex("easy")
    assert second.endswith(("known: easy, hards, hardq", "known: easy, hardq, hards"))


@pytest.mark.parametrize(("content", "keywords"), [
    ({"a": "x.json"}, []), ({"a": "x.json"}, ["a", "a"]), ({"a": 1}, ["a"]), (["a"], ["a"]), ({"a": {"b": "c"}}, ["a"]),
])  # fmt: skip
def test_bad_keyword_configs(tmp_path: Path, content: Any, keywords: list[str]) -> None:
    config = write(tmp_path / "config.json", content)
    with pytest.raises(ConfigError):
        read_keyword_config(str(config), keywords)


def test_keyword_config_must_be_a_json_file_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must end in .json"):
        read_keyword_config(str(tmp_path / "config.yaml"), ["a"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keyword_config(str(tmp_path / "config.json"), ["a"])


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def hub_row(image: Any, name: Any = "1.png", **more: Any) -> dict[str, Any]:
    return {"image": image, "question": "Q?", "chosen": "c", "rejected": "r", "image_name": name, **more}


def test_parquet_writes_images_and_numbers_rows_over_files(tmp_path: Path) -> None:
    struct_file = parquet(tmp_path / "a.parquet", [hub_row({"bytes": png(1), "path": "p.png"}, class1="Malicious Use")])
    bytes_file = parquet(tmp_path / "b.parquet", [hub_row(png(2), "sub/2.png"), hub_row(png(2), "sub/2.png")])
    rejected = RejectedRows()
    pairs = read_parquet_pairs([struct_file, bytes_file], tmp_path / "images", rejected=rejected)
    assert [pair.prompt.id for pair in pairs] == ["parquet:0", "parquet:1", "parquet:2"]
    assert pairs[0].prompt.category == "Malicious Use"
    assert Path(str(pairs[0].prompt.image)).read_bytes() == png(1)
    assert pairs[1].prompt.image == pairs[2].prompt.image == str(tmp_path / "images/sub/2.png")
    assert rejected.count == 0
    again = read_parquet_pairs([struct_file, bytes_file], tmp_path / "images", rejected=rejected)
    assert again == pairs


def test_parquet_same_name_for_different_images_keeps_both(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [hub_row(png(1)), hub_row(png(2)), hub_row(png(1)), hub_row(png(2))])
    pairs = read_parquet_pairs([path], tmp_path / "images", rejected=RejectedRows())
    images = [str(pair.prompt.image) for pair in pairs]
    assert [Path(image).read_bytes() for image in images] == [png(1), png(2), png(1), png(2)]
    assert len(set(images)) == 2


def test_parquet_bad_rows(tmp_path: Path) -> None:
    rows = [
        hub_row(None),
        hub_row(b"junk", "2.png"),
        hub_row(png(3), "../3.png"),
        hub_row(png(4), "4.png", chosen=""),
        hub_row(png(5), None),
    ]
    path = parquet(tmp_path / "a.parquet", rows)
    rejected = RejectedRows()
    (pair,) = read_parquet_pairs([path], tmp_path / "images", rejected=rejected)
    assert pair.prompt.id == "parquet:4"
    assert [error.row for error in rejected.errors] == [0, 1, 2, 3]
    assert not (tmp_path / "3.png").exists()


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chosen, rejected"):
        read_parquet_pairs([parquet(tmp_path / "a.parquet", [{"image": b"", "question": "q"}])], tmp_path,
                           rejected=RejectedRows())  # fmt: skip
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a parquet"):
        read_parquet_pairs([tmp_path / "b.parquet"], tmp_path, rejected=RejectedRows())
