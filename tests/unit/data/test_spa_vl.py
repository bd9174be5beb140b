"""The seed's JSON and the keyword config, with every bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import (
    load_pairs,
    load_prompts,
    read_keyword_config,
    read_pairs,
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


def test_row01_a_good_row_keeps_every_key(tmp_path: Path, root: Path) -> None:
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
def test_row01_wrong_types_are_rejected_with_their_place(tmp_path: Path, root: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "x.json", [{**GOOD, "id": 1}, row])
    rejected = RejectedRows()
    pairs = read_pairs(path, root, rejected=rejected)
    assert [pair.prompt.id for pair in pairs] == ["x:1"]
    (error,) = rejected.errors
    assert reason in error.reason
    assert (error.source, error.row) == (str(path), 1)


def test_a_repeated_id_is_refused_once_for_each_repetition(tmp_path: Path, root: Path) -> None:
    rejected = RejectedRows()
    pairs = read_pairs(write(tmp_path / "x.json", [GOOD, {**GOOD, "chosen": "b"}, GOOD]), root, rejected=rejected)
    assert [pair.chosen for pair in pairs] == ["No."]
    assert [error.row for error in rejected.errors] == [1, 2]
    with pytest.raises(DataError, match=r"2 of 3 rows.*x\.json, row 1: id 7 occurs more than once.*an id of its own"):
        rejected.check(3)


def test_two_keywords_may_hold_the_same_id_and_stay_apart(tmp_path: Path, root: Path) -> None:
    for name, answer in (("easy", "one"), ("hardq", "two")):
        write(tmp_path / f"{name}.json", [{**GOOD, "chosen": answer}])
    config = write(tmp_path / "config.json", {"easy": "easy.json", "hardq": "hardq.json"})
    rejected = RejectedRows()
    pairs = load_pairs(str(config), ["easy", "hardq"], root, rejected)
    assert [(pair.prompt.id, pair.chosen) for pair in pairs] == [("easy:7", "one"), ("hardq:7", "two")]
    assert rejected.count == 0


@pytest.mark.parametrize(("name", "kind"), [("none.png", "no such image"), ("broken.png", "not an image")])
def test_row05_a_bad_image_fails_or_is_a_counted_skip(tmp_path: Path, root: Path, name: str, kind: str) -> None:
    rows = [{**GOOD, "id": number} for number in range(3)] + [{**GOOD, "id": 3, "image": name}]
    rejected = RejectedRows(tmp_path / "rejected.jsonl")
    assert len(read_pairs(write(tmp_path / "x.json", rows), root, rejected=rejected)) == 3
    assert rejected.kinds == {"ImageError": 1}
    (line,) = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert (line["source"], line["row"], line["kind"]) == (str(tmp_path / "x.json"), 3, "ImageError")
    assert kind in line["reason"]
    rejected.check(4, max_share=0.25)
    with pytest.raises(DataError, match=r"1 of 4 rows were rejected \(ImageError: 1\)"):
        rejected.check(4, max_share=0.0)


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


def test_row02_the_keyword_config_concatenates_in_the_given_order(tmp_path: Path, root: Path) -> None:
    for name in ("easy", "hardq"):
        write(tmp_path / f"{name}.json", [{**GOOD, "chosen": name}])
    config = str(write(tmp_path / "config.json", {"easy": "easy.json", "hardq": str(tmp_path / "hardq.json")}))
    table = read_keyword_config(config, ["hardq", "easy"])
    assert table == [("hardq", tmp_path / "hardq.json"), ("easy", tmp_path / "easy.json")]
    pairs = load_pairs(config, ["hardq", "easy"], root, RejectedRows())
    assert [(pair.prompt.id, pair.chosen) for pair in pairs] == [("hardq:7", "hardq"), ("easy:7", "easy")]
    prompts = load_prompts(config, ["easy"], root, RejectedRows())
    assert [prompt.id for prompt in prompts] == ["easy:7"]


def test_row02_an_unknown_keyword_is_an_error_that_names_the_nearest_first(tmp_path: Path) -> None:
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


def test_row02_counts_are_the_sums_of_the_files(tmp_path: Path, root: Path) -> None:
    sizes = {"easy": 3, "hardq": 1, "hards": 4}
    for name, size in sizes.items():
        write(tmp_path / f"{name}.json", [{**GOOD, "id": number} for number in range(size)])
    config = str(write(tmp_path / "config.json", {name: f"{name}.json" for name in sizes}))
    for chosen in (["hards"], ["hards", "easy"], ["hardq", "hards", "easy"]):
        pairs = load_pairs(config, chosen, root, RejectedRows())
        assert len(pairs) == sum(sizes[name] for name in chosen)
        assert list(dict.fromkeys(pair.prompt.question_type for pair in pairs)) == chosen


def test_a_keyword_given_twice_names_file_key_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"easy": "a.json", "hardq": "b.json", "easy": "c.json"}')
    with pytest.raises(ConfigError, match=r"config\.json: keyword 'easy' stands for a\.json and for c\.json; rename"):
        read_keyword_config(str(path), ["hardq"])
    write(path, {"easy": "a.json", "also": "a.json"})
    with pytest.raises(ConfigError, match=r"data\.keywords: 'easy' of .*config\.json is given 2 times; name it once"):
        read_keyword_config(str(path), ["easy", "easy"])
    with pytest.raises(
        ConfigError, match=r"'also' and 'easy' of .*config\.json are the same file, .*a\.json; name one"
    ):
        read_keyword_config(str(path), ["easy", "also"])
    assert read_keyword_config(str(path), ["also"]) == [("also", tmp_path / "a.json")]


@pytest.mark.parametrize("other", ["./a.json", "sub/../a.json", "linked.json", "{folder}/a.json"])
def test_row02_one_file_by_two_names_is_still_one_file(tmp_path: Path, other: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked.json").symlink_to(tmp_path / "a.json")
    path = write(tmp_path / "config.json", {"easy": "a.json", "also": other.format(folder=tmp_path)})
    for chosen in (["easy", "also"], None):
        with pytest.raises(
            ConfigError, match=r"'also' and 'easy' of .* are the same file, .*/a\.json; name one of them"
        ):
            read_keyword_config(str(path), chosen)


def test_row02_without_a_choice_all_keywords_are_taken_in_the_order_of_the_map(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", {"b": "1.json", "a": "2.json"})
    assert read_keyword_config(str(path), None) == [("b", tmp_path / "1.json"), ("a", tmp_path / "2.json")]


def test_keyword_config_must_be_a_json_file_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must end in .json"):
        read_keyword_config(str(tmp_path / "config.yaml"), ["a"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keyword_config(str(tmp_path / "config.json"), ["a"])
