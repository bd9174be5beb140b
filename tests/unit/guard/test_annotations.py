"""Images found in every kind of source, the table of annotations, and the audit that is made of any such table."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jobs.annotate_images import AnnotateConfig, audit_page, run
from rlhf.config import ModelConfig, RunConfig, load
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError, ImageError, PromptTooLongError
from rlhf.guard.annotations import COLUMNS, annotation_row, write_annotations
from rlhf.guard.audit import WHOLE, audit, write_audit_page
from rlhf.guard.fetch import FetchConfig, Fetcher
from rlhf.guard.guards import GuardDecoding
from rlhf.guard.image_sources import Found, ImageSource, Unpacker, item_of, key_of, part_file, plan_units, read_found
from rlhf.guard.policy import build_policy
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import answer_text
from rlhf.inference import Answer
from rlhf.rollout.base import RolloutConfig
from tests.fakes import draw_images

POLICY = build_policy(taxonomy("tiny"))
GUN, MASK = "O6: guns and pills", "O1: masks"
NOTHING = "NA: nothing"
QUICK = FetchConfig(retries=1, first_pause=0.0, timeout_seconds=5, max_megabytes=0.1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four pictures in two folders, and a broken one."""
    for name in ("a", "b"):
        draw_images(tmp_path / "images" / name, 2)
    (tmp_path / "images" / "b" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def unpacked(
    folder: Path, sources: dict[str, ImageSource], per_unit: int = 2
) -> tuple[list[Found], Counter[str], RejectedRows]:
    """The job's first half without Ray."""
    units = plan_units(sources, per_unit)
    parts = folder / "found" / key_of(sources, units)
    worker = Unpacker(sources, parts, folder / "stored", QUICK)
    for unit in units:
        worker(item_of(unit))
    rejected = RejectedRows()
    return *read_found([part_file(parts, unit.number) for unit in units], rejected), rejected


def test_guard14_a_folder_is_listed_in_order_and_broken_images_are_named(images: Path, tmp_path: Path) -> None:
    found, totals, rejected = unpacked(tmp_path, {"set": ImageSource(folder=str(images))})
    assert [one.id for one in found] == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert [one.number for one in found] == [0, 1, 2, 3]
    assert found[0].image == str(images / "a" / "0.png")  # used where it is
    assert totals == {"set": 5}
    (error,) = rejected.errors
    assert (type(error), error.source, error.row) == (ImageError, "set", "b/broken.jpg")


def test_guard14_shards_hold_images_beside_other_files_and_may_end_early(images: Path, tmp_path: Path) -> None:
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / shard, "w") as file:
            for path in sorted(images.rglob("*.*")):
                file.add(path, f"{path.parent.name}/{path.name}")
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 3])
    found, totals, rejected = unpacked(tmp_path, {"shards": ImageSource(tar=(f"{tmp_path}/*.tar",))})
    assert [one.id for one in found][:4] == [f"0.tar/{name}" for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")]
    assert found[0].image != str(images / "a" / "0.png")
    assert Path(found[0].image).read_bytes() == (images / "a" / "0.png").read_bytes()
    assert any("ends early or is damaged" in error.reason for error in rejected.errors)
    assert totals["shards"] == len(found) + rejected.count
    assert len({one.image for one in found}) == 4 - 2  # equal files are stored once; both folders have the same two


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_guard14_a_shard_that_is_damaged_anywhere_is_named_and_the_next_one_is_read(kind: str, tmp_path: Path) -> None:
    for number, path in enumerate(draw_images(tmp_path / "images", 4)):
        with Image.open(path) as picture:  # as BMP, which compresses: codecs fail in more ways
            picture.convert("RGB").save(tmp_path / f"{number}.bmp")
    for shard in ("0", "1"):
        with tarfile.open(tmp_path / f"{shard}.tar.{kind}", f"w:{kind}") as file:
            for number in range(4):
                file.add(tmp_path / f"{number}.bmp", f"{number}.bmp")
    damaged, whole = tmp_path / f"0.tar.{kind}", (tmp_path / f"0.tar.{kind}").read_bytes()
    source = ImageSource(tar=(f"{tmp_path}/*.tar.{kind}",))
    complained = 0
    for place in range(8, len(whole), len(whole) // 20):
        damaged.write_bytes(whole[:place] + bytes(255 - byte for byte in whole[place : place + 8]) + whole[place + 8 :])
        found, totals, rejected = unpacked(tmp_path, {"shards": source})
        assert [one.id for one in found][-4:] == [f"1.tar.{kind}/{number}.bmp" for number in range(4)]
        assert totals["shards"] == len(found) + rejected.count
        assert all(str(error.row).startswith(f"0.tar.{kind}") for error in rejected.errors)
        complained += rejected.count > 0
    assert complained > (1 if not kind else 15)  # neither a tar nor a BMP sees every wrong byte


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_guard14_what_a_damaged_page_loses_is_listed_row_by_row_and_the_next_group_is_read(
    codec: str, tmp_path: Path
) -> None:
    pictures = [Path(path).read_bytes() for path in draw_images(tmp_path / "images", 12)]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"image": pictures, "name": [f"n{number}" for number in range(12)]})
    pyarrow.parquet.write_table(table, path, row_group_size=5, compression=codec, use_dictionary=False)
    with pyarrow.parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(1).column(0).data_page_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + bytes(range(200, 240)) + whole[start + 40 :])  # header of the second group's page
    found, totals, rejected = unpacked(tmp_path, {"set": ImageSource(parquet=(str(path),), id_column="name")})
    assert [(one.id, one.number) for one in found] == [(f"n{n}", n) for n in (*range(5), 10, 11)]
    assert totals == {"set": 12}
    assert [error.row for error in rejected.errors] == [f"a.parquet:{number}" for number in range(5, 10)]
    assert {(type(error), error.source) for error in rejected.errors} == {(ImageError, "set")}
    assert all("row group 1 of a.parquet is damaged: " in error.reason for error in rejected.errors)


def test_guard14_a_disk_that_takes_no_images_is_no_damage_of_theirs(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as file:
        file.add(images / "a" / "0.png", "0.png")
    table = pyarrow.table({"image": [(images / "a" / "0.png").read_bytes()]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "stored").write_text("no folder")
    for source in (ImageSource(tar=(f"{tmp_path}/0.tar",)), ImageSource(parquet=(f"{tmp_path}/a.parquet",))):
        with pytest.raises(OSError, match="stored"):
            unpacked(tmp_path, {"set": source})


def test_guard14_names_that_are_no_text_are_refused_in_folders_and_mended_in_shards(tmp_path: Path) -> None:
    (picture,) = draw_images(tmp_path / "images", 1)
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as file:
        file.add(picture, name)
    Path(picture).rename(tmp_path / "images" / name)
    sources = {"set": ImageSource(folder=f"{tmp_path}/images"), "shards": ImageSource(tar=(f"{tmp_path}/0.tar",))}
    found, totals, rejected = unpacked(tmp_path, sources)
    assert [(one.source, one.id) for one in found] == [("shards", "0.tar/caf?.png")]
    assert [(error.source, error.row) for error in rejected.errors] == [("set", "caf?.png")]
    assert "not UTF-8; rename it" in rejected.errors[0].reason
    assert totals == {"set": 1, "shards": 1}


def test_guard14_tables_have_bytes_or_paths_and_ids_of_their_own(images: Path, tmp_path: Path) -> None:
    data = (images / "a" / "0.png").read_bytes()
    rows: dict[str, list[Any]] = {"image": [{"bytes": data, "path": None}] * 3, "name": ["x", "y", "x"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "bytes.parquet", row_group_size=2)
    paths = {"image": ["a/0.png", "../secret.png", "gone.png", "b/1.png"]}
    pyarrow.parquet.write_table(pyarrow.table(paths), tmp_path / "paths.parquet")
    sources = {
        "bytes": ImageSource(parquet=(f"{tmp_path}/bytes.parquet",), id_column="name"),
        "paths": ImageSource(parquet=(f"{tmp_path}/paths.parquet",), image_root=str(images)),
    }
    found, totals, rejected = unpacked(tmp_path, sources)
    assert [(one.source, one.id) for one in found] == [
        ("bytes", "x"),
        ("bytes", "y"),
        ("paths", "paths.parquet:0"),
        ("paths", "paths.parquet:3"),
    ]
    assert found[3].number == 3  # the place in the source, refused rows counted
    assert totals == {"bytes": 3, "paths": 4}
    reasons = [error.reason for error in rejected.errors]
    assert ["more than once" in reasons[0], "stay below" in reasons[1], "gone.png" in reasons[2]] == [True] * 3


def test_guard14_what_was_found_is_not_opened_again_unless_files_change(images: Path, tmp_path: Path) -> None:
    sources = {"set": ImageSource(folder=str(images))}
    first = unpacked(tmp_path, sources)
    path = images / "a" / "0.png"
    seen = path.stat()
    path.write_bytes(b"x" * seen.st_size)  # broken, but it looks untouched
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert unpacked(tmp_path, sources)[0] == first[0]
    draw_images(images / "c", 1)
    assert [one.id for one in unpacked(tmp_path, sources)[0]][-1] == "c/0.png"


def test_guard14_a_policy_without_room_is_refused_before_an_image_is_looked_for(
    tmp_path: Path, tiny: ModelConfig
) -> None:
    config = AnnotateConfig(
        run=RunConfig(name="a", root=str(tmp_path)),
        model=tiny,
        sources={"gone": ImageSource(folder=f"{tmp_path}/gone")},
        sampling=GuardDecoding(max_new_tokens=32, constrained=False),
        rollout=RolloutConfig(engine="transformers", max_length=256),
    )
    with pytest.raises(PromptTooLongError, match=r"the policy alone has \d{3,} tokens"):
        run(config)


def test_guard14_sources_that_make_no_sense_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of folder, tar and parquet"):
        ImageSource(folder="./a", tar=("b.tar",))
    with pytest.raises(ConfigError, match="no such folder"):
        plan_units({"x": ImageSource(folder=f"{tmp_path}/gone")}, 1)
    with pytest.raises(ConfigError, match="no file matches"):
        plan_units({"x": ImageSource(tar=(f"{tmp_path}/*.tar",))}, 1)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"missing: image \(found: a\)"):
        plan_units({"x": ImageSource(parquet=(f"{tmp_path}/a.parquet",))}, 1)
    config = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "annotate_images.yaml"
    urls = "sources.web={parquet: [a.parquet], urls: true}"
    with pytest.raises(ConfigError, match="only with allow_urls"):
        load(AnnotateConfig, config, [urls])
    assert load(AnnotateConfig, config, [urls, "allow_urls=true"]).sources["web"].urls
    with pytest.raises(ConfigError, match="cannot hold answers to a schema"):
        load(AnnotateConfig, config, ["rollout.engine=transformers"])


@contextmanager
def file_server(answer: Callable[[str, int], tuple[int, bytes]]) -> Iterator[str]:
    """Serve GET on a free port; `answer` sees the path and how often it was asked for."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            status, data = answer(self.path, asked[self.path])
            self.send_response(status)
            if status == 302:
                self.send_header("Location", data.decode())
                data = b""
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_guard14_addresses_are_fetched_with_bounded_tries_size_and_redirects(images: Path, tmp_path: Path) -> None:
    data = (images / "a" / "0.png").read_bytes()
    replies: dict[str, Callable[[int], tuple[int, bytes]]] = {
        "/good.png": lambda _: (200, data),
        "/busy.png": lambda times: (503, b"") if times == 1 else (200, data),
        "/down.png": lambda _: (503, b""),
        "/gone.png": lambda _: (404, b""),
        "/large.png": lambda _: (200, b"x" * 200_000),
        "/page.html": lambda _: (200, b"<html>"),
        "/loop.png": lambda _: (302, b"/loop.png"),
    }
    with file_server(lambda path, times: replies[path](times)) as base:
        urls = [f"{base}{path}" for path in replies] + ["file:///etc/passwd", None]
        pyarrow.parquet.write_table(pyarrow.table({"url": urls}), tmp_path / "web.parquet")
        source = ImageSource(parquet=(f"{tmp_path}/web.parquet",), column="url", urls=True)
        found, totals, rejected = unpacked(tmp_path, {"web": source})
        with pytest.raises(ImageError, match=r"503, 2 of 2 tries"):
            Fetcher(QUICK).get(f"{base}/down.png")
    assert [one.number for one in found] == [0, 1]
    assert totals == {"web": 9}
    reasons = {error.row: error.reason for error in rejected.errors}
    assert "503, 2 of 2 tries" in reasons["web.parquet:2"]
    assert "404, 1 of 2 tries" in reasons["web.parquet:3"]
    assert "more than 0.1 MB" in reasons["web.parquet:4"]
    assert "not an image" in reasons["web.parquet:5"]
    assert "TooManyRedirects" in reasons["web.parquet:6"]
    assert "no http address" in reasons["web.parquet:7"]
    assert "neither bytes nor text" in reasons["web.parquet:8"]


def rows(count: int = 10) -> list[dict[str, Any]]:
    """Guns that are unsafe every second time, in two classes, and an answer that nobody can read."""
    made = []
    for number in range(count):
        rating, category = ("Unsafe", GUN) if number % 2 else ("Safe", NOTHING if number % 4 else GUN)
        text = answer_text(POLICY, rating, [category], "A <b>gun</b>.") if number else "hm"  # type: ignore[arg-type]
        found = Found("set", number, f"class{number % 2}/{number}.png", "/nowhere.png")
        made.append(annotation_row(found, Answer("", text, 5, False, 0.25), POLICY, "weights"))
    return made


def test_guard14_the_table_has_its_columns_and_says_under_what_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "annotations.parquet"
    assert write_annotations(path, iter(rows())) == 10
    table = pyarrow.parquet.read_table(path)
    assert tuple(table.column_names) == tuple(COLUMNS)
    first, second = table.to_pylist()[:2]
    assert (first["valid"], first["rating"], first["category"], first["raw"]) == (False, None, None, "hm")
    assert (second["valid"], second["rating"], second["category"]) == (True, "Unsafe", GUN)
    assert (second["rationale"], second["categories"]) == ("A <b>gun</b>.", [GUN])
    assert (second["policy_hash"], second["model_hash"], second["seconds"]) == (POLICY.sha256, "weights", 0.25)
    assert [one.name for one in tmp_path.iterdir()] == ["annotations.parquet"]
    assert write_annotations(path, []) == 0


def test_guard18_the_audit_counts_detections_and_of_these_the_unsafe_and_what_classes_would_lose(
    tmp_path: Path,
) -> None:
    path = tmp_path / "annotations.parquet"
    write_annotations(path, rows())
    found = audit(path)
    assert found["categories"] == [GUN]
    numbers = found["sets"]["set"]
    assert (numbers["images"], numbers["invalid"], numbers["ratings"]) == (10, 1, {"Safe": 4, "Unsafe": 5})
    assert (numbers["categories"][GUN]["detected"], numbers["categories"][GUN]["unsafe"]) == (7, 5)
    assert (numbers["detected"], numbers["detected_unsafe"], numbers["unsafe"]) == (7, 5, 5)
    assert numbers["share"] == pytest.approx(5 / 9)
    assert numbers["interval"][0] < 5 / 9 < numbers["interval"][1]
    assert numbers == found[WHOLE]
    (removed,) = found["classes"]["most_removed"]
    assert (removed["class"], removed["images"], removed["unsafe"], removed["share"]) == ("class1", 5, 5, 1.0)
    assert found["classes"]["count"] == 2


def test_guard18_only_the_category_for_none_counts_as_none(tmp_path: Path) -> None:
    """Every taxonomy calls it NA, and a name that begins with these letters is a category."""
    path = tmp_path / "theirs.parquet"
    names = ["NARCOTICS: drugs", "NA", "NA: None applying", "NA: nothing", None, "O6: NA"]
    table = {"rating": ["Unsafe"] * len(names), "category": names}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    found = audit(path)
    assert found["categories"] == ["NARCOTICS: drugs", "O6: NA", "no category named"]
    assert found[WHOLE]["detected"] == 3


def test_guard14_half_a_character_in_a_rationale_does_not_cost_the_table(tmp_path: Path) -> None:
    text = answer_text(POLICY, "Safe", [NOTHING], "A ball.").replace("ball", "b\\ud800ll")
    row = annotation_row(Found("set", 0, "0.png", "/0.png"), Answer("", text, 5, False, 0.25), POLICY, "weights")
    assert write_annotations(tmp_path / "annotations.parquet", [row]) == 1
    (read,) = pyarrow.parquet.read_table(tmp_path / "annotations.parquet").to_pylist()
    assert (read["status"], read["rationale"], read["raw"]) == ("json", "A b\ufffdll.", text)


def test_guard18_a_table_of_somebody_else_needs_a_rating_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"rating": ["Unsafe", "Safe", "Review Needed"]}), path)
    found = audit(path)["sets"]["theirs"]
    assert (found["images"], found["invalid"], found["unsafe"], found["detected"]) == (3, 1, 1, 2)
    audit_page(["--annotations", str(path), "--output", str(tmp_path / "page.html"), "--gallery", "1"])
    assert "3 images" in (tmp_path / "page.html").read_text()
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), path)
    with pytest.raises(DataError, match="no column 'rating'"):
        audit(path)
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(DataError, match="not a parquet file"):
        audit(tmp_path / "no.parquet")


def test_guard18_the_page_blurs_escapes_and_runs_nothing(tmp_path: Path) -> None:
    (picture,) = draw_images(tmp_path / "images", 1)
    table = [{**row, "image": picture} for row in rows()]
    path, page = tmp_path / "annotations.parquet", tmp_path / "report.html"
    write_annotations(path, table)
    write_audit_page(page, path, audit(path), {"model": "a <model>"}, 2, {"set": 12}, "tiny")
    text = page.read_text()
    assert text.count('<details class="veil">') == 2  # two of five flagged images
    assert "filter: blur" in text
    assert "<script" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "A &lt;b&gt;gun&lt;/b&gt;." in text
    assert "<b>gun</b>" not in text
    assert "7 &gt; 5" in text
    assert "class1 (set)" in text
    assert "a &lt;model&gt;" in text
    assert json.dumps(audit(path))  # nothing in it that JSON has no word for
