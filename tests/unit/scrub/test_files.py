"""Whole files through the units and the assembly, without a cluster: what is kept, refused, counted and shown."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image

from jobs.sft_safe_llava import ImitationConfig
from jobs.sft_safe_llava import run as run_sft
from rlhf.config import load
from rlhf.data.json_stream import plan_spans
from rlhf.data.llava_format import read_examples
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError
from rlhf.scrub.files import Scrubber, Unit, assemble
from rlhf.scrub.manifest import require_scrubbed
from rlhf.scrub.rewrite import find_cues
from rlhf.scrub.rows import REFUSAL
from rlhf.scrub.taxonomy import taxonomy
from tests.fakes import draw_images

SFT = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "sft.yaml"


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


GOOD = [
    {"id": "a", "image": "0.png", "conversations": turns("<image>\nWho is it?", "A young woman with her dog.")},
    {"id": 7, "conversations": turns("Say <b>hello</b>.", "Hello."), "model": ""},
    {"id": "c", "image": "1.png", "conversations": turns("<image>\nHow old is the man?", "He is 40.", "Hat?", "Yes.")},
    {"id": "\u4e00", "image": "1.png", "conversations": turns("<image>\nCount.", "3 cats \U0001f600 at 10:30.")},
]


def scrub(folder: Path, rows: list[Any] | bytes, images: bool = False, share: float = 0.0, per: int = 2) -> Any:
    source = folder / "chat.json"
    source.write_bytes(rows if isinstance(rows, bytes) else json.dumps(rows).encode())
    spans = plan_spans(source, per)
    units = [Unit(number, "chat.json", str(source), **asdict(span)) for number, span in enumerate(spans)]
    worker = Scrubber(folder / "parts", folder / "images" if images else None, with_hair=False)
    for unit in reversed(units):  # in any order
        worker(asdict(unit))
    return assemble(folder / "out", {"hair": False}, units, folder / "parts", share)


def result(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "out" / "chat.json").read_text())
    return found


def test_safe01_ids_order_images_turns_and_tags_are_those_of_the_source(tmp_path: Path) -> None:
    manifest = scrub(tmp_path, GOOD)
    rows = result(tmp_path)
    assert [row["id"] for row in rows] == [row["id"] for row in GOOD]
    for before, after in zip(GOOD, rows, strict=True):
        assert {**before, "conversations": 0} == {**after, "conversations": 0}
        assert [(one["from"], one["value"].count("<image>")) for one in after["conversations"]] == [
            (one["from"], one["value"].count("<image>")) for one in before["conversations"]
        ]
    assert rows[0]["conversations"][1]["value"] == "A person with their dog."
    assert rows[2]["conversations"][1]["value"] == REFUSAL
    assert rows[3] == GOOD[3]
    assert manifest["sources"] == {"chat.json": {"rows": 4, "changed": 2, "turns": 10}}


def test_safe06_the_training_reader_takes_the_scrubbed_file(tmp_path: Path) -> None:
    draw_images(tmp_path / "images", 2)
    scrub(tmp_path, GOOD, images=False)
    rejected = RejectedRows()
    examples = read_examples(tmp_path / "out" / "chat.json", tmp_path / "images", rejected=rejected, check_images=False)
    assert rejected.count == 0
    assert len(examples) == 4


def test_safe05_lineage_and_audit_say_what_was_changed(tmp_path: Path) -> None:
    scrub(tmp_path, GOOD)
    ledger = pyarrow.parquet.read_table(tmp_path / "out" / "ledger.parquet").to_pylist()
    assert {(line["id"], line["turn"], line["attribute"], line["rule"]) for line in ledger} == {
        ("a", 1, "age", "modifier"),
        ("a", 1, "gender", "word"),
        ("a", 1, "gender", "pronoun"),
        ("c", 1, "age", "asked"),
    }
    old = GOOD[0]["conversations"][1]["value"]  # type: ignore[index]
    assert {old[line["start"] : line["end"]].strip() for line in ledger if line["id"] == "a"} == {
        "young",
        "woman",
        "her",
    }
    assert all(line["engine"] == "rules" and line["before"] != line["after"] for line in ledger)
    audit = {row["attribute"]: row for row in json.loads((tmp_path / "out" / "audit.json").read_text())}
    assert (audit["age"]["answer_turns"], audit["age"]["refused_answers"], audit["age"]["cues"]) == (2, 1, 2)
    assert (audit["gender"]["answer_turns"], audit["gender"]["cues"]) == (1, 2)
    told = ("question_turns", "question_turns_after", "answer_turns_after")
    for attribute in ("age", "gender"):  # "How old is the man?" keeps its words
        assert [audit[attribute][one] for one in told] == [1, 1, 0]
    assert audit["race"]["cues"] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<del>young woman</del>" in page.replace("</del><del>", "")
    assert "<ins>person</ins>" in page
    assert "<b>hello" not in page


def test_safe02_all_refusals_are_one_sentence_that_tells_nothing(tmp_path: Path) -> None:
    assert find_cues(REFUSAL, taxonomy(with_hair=True)) == []


def test_the_result_is_the_same_bytes_for_any_cut(tmp_path: Path) -> None:
    outputs = []
    for name, per in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        scrub(tmp_path / name, GOOD, per=per)
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / name / "out").iterdir()})
    assert outputs[0] == outputs[1]


def write_large_png(path: Path, side: int) -> None:
    """A black PNG of one bit per pixel, small on disk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes((side // 8 + 1) * side)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))


def test_bad_rows_are_named_and_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    draw_images(tmp_path / "images", 2)
    Image.effect_noise((64, 64), 90).save(tmp_path / "images" / "whole.jpg")
    whole = (tmp_path / "images" / "whole.jpg").read_bytes()
    (tmp_path / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    write_large_png(tmp_path / "images" / "large.png", 20_000)
    Image.new("P", (4, 4)).save(tmp_path / "images" / "gif.jpg", "GIF")  # a wrong name only: it can be read
    chat = turns("<image>\nWhat?", "A cup.")
    bad = [
        ({"id": "a", "image": "0.png", "conversations": chat}, "occurs more than once"),
        ({"id": 2, "image": "../secret.png", "conversations": chat}, "below the image folder"),
        ({"id": 3, "image": "cut.jpg", "conversations": chat}, "cut.jpg: corrupt or truncated"),
        ({"id": 4, "image": "absent.png", "conversations": chat}, "absent.png: no such image file"),
        ({"id": 11, "image": "large.png", "conversations": chat}, "too many pixels"),
        ({"id": 12, "conversations": turns("Hi", "Look: <image>")}, "turn 1 is an answer with an <image> tag"),
        ({"id": 5}, "'conversations'"),
        ({"id": 6, "conversations": [chat[0], chat[0]]}, "both from 'human'"),
        ({"id": 8, "conversations": turns("Hi", " ")}, "turn 1 has no text"),
        ({"id": 13, "conversations": turns("", "Hi")}, "turn 0 has no text"),
        ({"id": None, "conversations": chat}, "'id' must be"),
        ({"id": 9, "conversations": turns("Hi", "x" * 100_001)}, "100,000 characters"),
        ([1], "expected an object"),
    ]
    gif = {"id": "gif", "image": "gif.jpg", "conversations": chat}
    foreign = "\u043e\u043d\u0430 \u2764\ufe0f\u200d\U0001f525 \u0627\u0645\u0631\u0623\u0629 \u5973\u4eba"
    odd = [gif, {"id": "long", "conversations": turns("Hi", "A man. " + "so " * 33_331)}]  # 100,000 characters
    odd.append({"id": "foreign", "conversations": turns("?", foreign), "model": None})
    text = json.dumps([*GOOD, *odd, *(row for row, _ in bad)]).encode()[:-1] + b', {"id": 10, "conversations": "\xff"}]'
    with pytest.raises(DataError, match="14 of 21 rows were rejected"):
        scrub(tmp_path, text, images=True)
    assert not (tmp_path / "out").exists()
    manifest = scrub(tmp_path, text, images=True, share=0.8)
    *good, kept, long, strange = result(tmp_path)
    assert [row["id"] for row in good] == [row["id"] for row in GOOD]
    assert (kept, strange) == (gif, odd[2])
    assert long["conversations"][1]["value"] == "A person. " + "so " * 33_331
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    first = len(GOOD) + len(odd)
    assert [line["row"] for line in lines] == list(range(first, first + len(lines)))  # doubles, too
    assert len({line["source"] for line in lines}) == 1
    for (_, reason), line in zip([*bad, (None, "not UTF-8")], lines, strict=True):
        assert reason in line["reason"]
    assert sum(manifest["rejected"].values()) == 14


def test_a_training_job_can_demand_scrubbed_data(tmp_path: Path) -> None:
    scrub(tmp_path, GOOD)
    scrubbed = tmp_path / "out" / "chat.json"
    require_scrubbed(scrubbed)
    with pytest.raises(ConfigError, match="no manifest of a scrubbing job"):
        require_scrubbed(tmp_path / "chat.json")
    with pytest.raises(ConfigError, match="does not name audit.json"):
        require_scrubbed(tmp_path / "out" / "audit.json")
    data = {"train": str(scrubbed), "image_root": str(tmp_path), "require_scrubbed": True}
    scrubbed.write_text(scrubbed.read_text().replace("person", "woman"))
    overrides = [f"data={json.dumps(data)}"]
    with pytest.raises(ConfigError, match="its content has changed"):
        run_sft(load(ImitationConfig, SFT, overrides))
