"""What the hub's meta_files say, and what happens when they do not."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.meta_files import MetaFiles, check_model_columns, prefer_files
from rlhf.data.spa_vl_labels import RESPONSE_MODELS
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


def test_row03_answers_take_memory_by_their_number_and_not_by_their_length(tmp_path: Path) -> None:
    """Twice the text makes no difference: a file is never whole in memory, neither read nor looked at for columns."""

    def peak(folder: Path, length: int) -> tuple[int, int]:
        """Bytes in Python at the worst moment, and those of the file."""
        row = {"question": "Q?", **{model: f"{model} " + "x" * length for model in RESPONSE_MODELS}}
        path = write_json(meta(folder, []) / "model_answer" / "easy.json", [])
        path.write_text(json.dumps([{"image": f"{number}.jpg", **row} for number in range(400)]))
        tracemalloc.start()
        try:
            check_model_columns(folder, RESPONSE_MODELS)
            tables = MetaFiles.load(folder, with_types=False, with_models=True)
            worst = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert tables.models_of("399.jpg", "Q?", "LAMM " + "x" * length) == ["LAMM"]
        assert len(pickle.dumps(tables)) < 400 * 12 * 10 + 2000  # what a worker is given
        return worst, path.stat().st_size

    (short, small), (long, large) = (peak(tmp_path / str(length), length) for length in (1000, 2000))
    assert large > 1.9 * small > 8e6
    assert long < 1.2 * short
    assert long < 0.8 * large


def test_row03_a_table_that_is_not_text_is_named_with_its_row(tmp_path: Path) -> None:
    folder = meta(tmp_path, [{"image": "1.jpg", **LABELS}])
    (folder / "prefer" / "easy.json").write_bytes(b'[{"image": "1.jpg"}, {"image": "2.jpg", "question": "\xff"}]')
    with pytest.raises(DataError, match=r"easy\.json, row 1: not UTF-8"):
        MetaFiles.load(folder, with_types=True, with_models=False)


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
