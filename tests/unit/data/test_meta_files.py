"""What the hub's meta_files say, and what happens when they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.data.meta_files import MetaFiles, check_model_columns, prefer_files
from rlhf.errors import ConfigError, DataError, RowError
from tests.hub import write_json

LABELS = {"class1": "A", "class2": "b", "class3": "c"}


def meta(folder: Path, images: list[Any], **prefer: list[dict[str, Any]]) -> Path:
    write_json(folder / "image_info" / "meta.json", images)
    for name, rows in (prefer or {"easy": []}).items():
        write_json(folder / "prefer" / f"{name}.json", rows)
    return folder


def test_an_image_has_one_class(tmp_path: Path) -> None:
    images = [
        {"image": "1.jpg", **LABELS},
        {"image": "some/where/2.jpg", **LABELS},
        {"image": "2.jpg", **LABELS},
        {"image": "3.jpg", **LABELS},
        {"image": "3.jpg", **LABELS, "class3": "d"},
    ]
    tables = MetaFiles.load(meta(tmp_path, images), with_types=False, with_models=False)
    assert tables.classes_of("1.jpg") == tables.classes_of("2.jpg") == ("A", "b", "c")
    for name, count in (("3.jpg", 2), ("4.jpg", 0)):
        with pytest.raises(RowError, match=f"'{name}' has {count} entries of different class"):
            tables.classes_of(name)


def test_a_pair_has_one_question_type(tmp_path: Path) -> None:
    row = {"image": "1.jpg", "question": "<image>\nWhy ?", "chosen": "c"}
    folder = meta(tmp_path, [], easy=[row, {**row, "question": "Who?"}], hardd=[{**row, "question": "Who?"}])
    tables = MetaFiles.load(folder, with_types=True, with_models=False)
    assert tables.type_of("1.jpg", "Why ?", " c ") == "easy"
    with pytest.raises(RowError, match="not clear.*: easy, hards"):
        tables.type_of("1.jpg", "Who?", "c")
    with pytest.raises(RowError, match="not clear.*: none"):
        tables.type_of("2.jpg", "Why ?", "c")


def test_response_models_are_found_by_their_very_answer(tmp_path: Path) -> None:
    folder = meta(tmp_path, [])
    answers = [
        {"image": "1.jpg", "question": "Q?", "Otter": "Same. ", "LAMM": "Same.", "gemini": "Other.", "x": "Same."}
    ]
    write_json(folder / "model_answer" / "a.json", answers)
    tables = MetaFiles.load(folder, with_types=False, with_models=True)
    assert tables.models_of("1.jpg", "Q?", "Same.") == ["Otter", "LAMM"]
    assert tables.models_of("1.jpg", "Q?", "Other.") == ["gemini"]
    assert tables.models_of("1.jpg", "Q2?", "Other.") == []
    check_model_columns(folder, ("Otter", "gemini"))
    with pytest.raises(ConfigError, match=r"subset\.response_models: .*no column QwenVL .*found: LAMM, Otter, gemini"):
        check_model_columns(folder, ("Otter", "QwenVL"))
    write_json(folder / "model_answer" / "b.json", [{"Otter": "x"}])
    with pytest.raises(ConfigError, match=r"rows of .*b\.json need the keys image and question"):
        check_model_columns(folder, ("Otter",))


def test_missing_files_say_which_key_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.meta_files: .*prefer has none of easy\.json"):
        prefer_files(tmp_path)
    folder = meta(tmp_path, [])
    with pytest.raises(
        ConfigError, match=r"subset\.response_models: .*model_answer has no \.json file.*drop this filter"
    ):
        check_model_columns(folder, ("Otter",))
    assert [path.name for path in MetaFiles.files(folder, False)] == ["meta.json", "easy.json"]
    with pytest.raises(ConfigError, match="model_answer"):
        MetaFiles.files(folder, True)


@pytest.mark.parametrize(("images", "reason"), [
    ({"1.jpg": LABELS}, "expected a JSON list"), (["1.jpg"], "row 0: expected an object"),
    ([{"image": 3}], "row 0: expected an object"), ([{"image": "1.jpg", "class1": "A"}], "'class2' is missing"),
])  # fmt: skip
def test_a_broken_table_is_named(tmp_path: Path, images: Any, reason: str) -> None:
    with pytest.raises(DataError, match=rf"meta\.json.*{reason}"):
        MetaFiles.load(meta(tmp_path, images), with_types=False, with_models=False)
