"""The hub's files to the training JSON: rows, ids, paths, classes, types, and every bad file (row 3)."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jobs import prepare_spa_vl
from rlhf.config import load
from rlhf.data.prepared import Prepared, file_hash, named, read_manifest, write_prepared
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl import load_pairs, load_prompts
from rlhf.data.spa_vl_hub import Converter, SourceConfig, part_file, plan_units, read_meta, source_files
from rlhf.data.spa_vl_labels import image_path, normal_label
from rlhf.data.subset import SubsetConfig
from rlhf.errors import ConfigError, DataError, RowError
from tests.hub import CLASSES, CLEAN, TYPES, Hub, jpeg, write_hub, write_json, write_parquet

FILES = r"train-00000-of-00002\.parquet, .* and \d more"  # in errors


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return write_hub(tmp_path_factory.mktemp("hub"))


def prepare(
    folder: Path, source: SourceConfig, share: float = 0.0, order: int | None = None, **subset: Any
) -> dict[str, Any]:
    """The job without Ray: convert all units (in a shuffled order if asked), write the folder."""
    chosen = SubsetConfig.model_validate(subset)
    with_models = bool(chosen.response_models)
    units = plan_units(source)
    parts, images = folder / "converted" / "parts", folder / "converted" / "images"
    shuffled = units if order is None else random.Random(order).sample(units, len(units))
    converter = Converter(source, parts, images, read_meta(source, with_models))
    for unit in shuffled:
        converter(asdict(unit))
    sources = [file_hash(path) for path in source_files(source, with_models)]
    files = [part_file(parts, unit) for unit in units]
    return write_prepared(folder / "out", Prepared(source.split, chosen, sources), files, images, share)


def from_parquet(hub: Hub, **more: Any) -> SourceConfig:
    return SourceConfig(parquet=(hub.parquet,), meta_files=str(hub.meta), **more)


def from_folder(hub: Hub) -> SourceConfig:
    return SourceConfig(meta_files=str(hub.meta), image_folder=str(hub.images))


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    config = json.loads((folder / "out" / "config.json").read_text())
    return {keyword: json.loads((folder / "out" / name).read_text()) for keyword, name in config.items()}


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_row03_every_parquet_row_arrives_with_a_unique_id_and_its_image(hub: Hub, tmp_path: Path) -> None:
    manifest = prepare(tmp_path, from_parquet(hub, expected_rows=24))
    keywords = rows_of(tmp_path)
    assert list(keywords) == list(TYPES)
    rows = [row for kind in TYPES for row in keywords[kind]]
    assert sorted(row["id"] for row in rows) == list(range(24))
    for row in rows:
        assert isinstance(row["id"], int)
        original = hub.rows[row["id"]]
        assert [row[key] for key in ("question", "chosen", "rejected")] == [
            original[key] for key in ("question", "chosen", "rejected")
        ]
        number = int(original["image_name"].split(".")[0])
        assert row["image"] == "/".join(CLEAN[number % 4]) + f"/{number}.jpg"
        assert (row["class1"], row["class2"], row["class3"]) == CLEAN[number % 4]
        assert (tmp_path / "out" / "images" / row["image"]).read_bytes() == jpeg(number)
    assert manifest["rows"] == {"source": 24, "rejected": {}, "filtered": {}, "left": 24, "chosen": 24}
    assert manifest["keywords"] == {"easy": 8, "hardq": 8, "hards": 8}
    assert manifest["class1"] == {CLEAN[0][0]: 12, CLEAN[1][0]: 6, CLEAN[2][0]: 6}


def test_row03_the_training_readers_take_the_result(hub: Hub, tmp_path: Path) -> None:
    prepare(tmp_path, from_parquet(hub))
    rejected = RejectedRows()
    pairs = load_pairs(str(tmp_path / "out/config.json"), ["hards", "easy"], tmp_path / "out/images", rejected)
    assert rejected.count == 0
    assert [pair.prompt.question_type for pair in pairs] == ["hards"] * 8 + ["easy"] * 8
    assert {pair.prompt.category for pair in pairs} == {labels[0] for labels in CLEAN}
    assert pairs[0].chosen == "good hards 0"


def test_row03_meta_files_and_an_image_folder_give_the_same_rows(hub: Hub, tmp_path: Path) -> None:
    prepare(tmp_path / "a", from_parquet(hub))
    prepare(tmp_path / "b", from_folder(hub))
    left, right = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")

    def without_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "id"} for row in rows]

    assert {kind: without_ids(rows) for kind, rows in left.items()} == {k: without_ids(v) for k, v in right.items()}
    ids = [row["id"] for rows in right.values() for row in rows]
    assert sorted(ids) == list(range(24))
    assert tree(tmp_path / "a/out/images") == tree(tmp_path / "b/out/images")


def test_row03_a_json_list_is_read_unit_by_unit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, in whatever order; a row that is not text costs itself."""
    prepare(tmp_path / "whole", from_folder(hub))
    monkeypatch.setattr("rlhf.data.spa_vl_hub._JSON_UNIT_ROWS", 3)
    assert [unit.rows for unit in plan_units(from_folder(hub))] == [3, 3, 2] * 3
    prepare(tmp_path / "cut", from_folder(hub), order=1)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    broken = write_hub(tmp_path / "broken")
    path = broken.meta / "prefer" / "easy.json"
    path.write_bytes(path.read_bytes().replace(b"good easy 4", b"good \xff 4"))
    manifest = prepare(tmp_path / "broken", from_folder(broken), share=0.1)
    assert manifest["rows"]["rejected"] == {"RowError": 1}
    assert manifest["keywords"] == {"easy": 7, "hardq": 8, "hards": 8}


def test_row03_the_manifest_has_the_hash_of_every_file(hub: Hub, tmp_path: Path) -> None:
    manifest = prepare(tmp_path, from_parquet(hub))
    out = tmp_path / "out"
    written = {one["name"]: one["sha256"] for one in manifest["files"]}
    assert {
        name: digest for name, digest in tree(out).items() if "/" not in name and name != "manifest.json"
    } == written
    sources = {one["name"]: one for one in manifest["sources"]}
    assert sources["meta.json"]["bytes"] == (hub.meta / "image_info" / "meta.json").stat().st_size
    check = subprocess.run(["sha256sum", "-c", "--quiet", "images.sha256"], cwd=out, check=False)
    assert check.returncode == 0
    assert len((out / "images.sha256").read_text().splitlines()) == manifest["images"] == 8


def test_row03_any_order_of_units_and_a_second_conversion_give_the_same_bytes(hub: Hub, tmp_path: Path) -> None:
    prepare(tmp_path / "a", from_parquet(hub))
    prepare(tmp_path / "b", from_parquet(hub), order=3)
    assert tree(tmp_path / "a/out") == tree(tmp_path / "b/out")
    parts = sorted((tmp_path / "b/converted/parts").iterdir())
    assert len(parts) == 6
    parts[1].unlink()
    parts[4].unlink()
    (tmp_path / "b/out").rename(tmp_path / "b/before")
    prepare(tmp_path / "b", from_parquet(hub))
    assert tree(tmp_path / "b/out") == tree(tmp_path / "b/before")


def test_row03_validation_and_test_splits_bring_their_own_classes(tmp_path: Path) -> None:
    labels = dict(zip(("class1", "class2", "class3"), CLASSES[1], strict=True))
    base: dict[str, Any] = {"image": {"bytes": jpeg(3), "path": "3.jpg"}, "question": "Q?", **labels}
    write_parquet(tmp_path / "v.parquet", [{**base, "chosen": "c", "rejected": "r"}])
    write_parquet(tmp_path / "h.parquet", [base])
    prepare(tmp_path / "v", SourceConfig(parquet=(f"{tmp_path}/v.parquet",), split="validation"), class1=[CLEAN[1][0]])
    (row,) = rows_of(tmp_path / "v")["all"]
    assert row == {"id": 0, "image": "/".join(CLEAN[1]) + "/3.jpg", "question": "Q?", "chosen": "c", "rejected": "r",
                   "class1": CLEAN[1][0], "class2": CLEAN[1][1], "class3": CLEAN[1][2]}  # fmt: skip
    prepare(tmp_path / "h", SourceConfig(parquet=(f"{tmp_path}/h.parquet",), split="harm"))
    (prompt,) = load_prompts(str(tmp_path / "h/out/config.json"), ["harm"], tmp_path / "h/out/images", RejectedRows())
    assert (prompt.kind, prompt.category) == ("harm", CLEAN[1][0])


def test_row03_train_without_meta_files_keeps_the_bare_names(hub: Hub, tmp_path: Path) -> None:
    prepare(tmp_path, SourceConfig(parquet=(hub.parquet,)))
    rows = rows_of(tmp_path)["all"]
    assert [row["image"] for row in rows[:4]] == ["0.jpg", "0.jpg", "0.jpg", "1.jpg"]
    assert "class1" not in rows[0]


def test_row31_a_subset_flag_gives_the_same_rows_every_time(hub: Hub, tmp_path: Path) -> None:
    kept: dict[int, set[int]] = {}
    for size in (5, 10, 20):
        prepare(tmp_path / str(size), from_parquet(hub), size=size, seed=7)
        rows = [row for part in rows_of(tmp_path / str(size)).values() for row in part]
        kept[size] = {row["id"] for row in rows}
        assert len(kept[size]) == size
        on_disk = {str(p.relative_to(tmp_path / str(size) / "out/images")) for p in
                   (tmp_path / str(size) / "out/images").rglob("*.jpg")}  # fmt: skip
        assert on_disk == {row["image"] for row in rows}  # images of other rows are not there
    assert kept[5] < kept[10] < kept[20]
    prepare(tmp_path / "again", from_parquet(hub), order=1, size=10, seed=7)
    assert tree(tmp_path / "again/out") == tree(tmp_path / "10/out")


@pytest.mark.parametrize(("subset", "wanted"), [
    ({"question_types": ["hardd"]}, [n for n in range(24) if n % 3 == 2]),
    ({"class1": ["Malicious Use"]}, [n for n in range(24) if n // 3 % 4 == 2]),
    ({"class3": ["scamns"], "question_types": ["easy"]}, [6, 18]),
    ({"response_models": ["Otter", "LAMM"]}, [n for n in range(24) if n // 3 % 2 == 0]),
    ({"response_models": ["gemini", "LAMM"], "question_types": ["hardq"]}, [4, 10, 16, 22]),
])  # fmt: skip
def test_row31_filters_of_the_ablations(hub: Hub, tmp_path: Path, subset: dict[str, Any], wanted: list[int]) -> None:
    manifest = prepare(tmp_path, from_parquet(hub), **subset)
    assert sorted(row["id"] for rows in rows_of(tmp_path).values() for row in rows) == wanted
    assert manifest["rows"]["left"] == len(wanted)
    assert sum(manifest["rows"]["filtered"].values()) == 24 - len(wanted)


def test_row31_a_subset_larger_than_the_data_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"subset\.size: 9 rows are asked for, 8 of 24 rows of {FILES} are left.*lower it to 8"
    ):
        prepare(tmp_path / "a", from_parquet(hub), size=9, question_types=["easy"])
    with pytest.raises(ConfigError, match=r"subset\.class1: no row has 'Malicious Used'; nearest: Malicious Use"):
        prepare(tmp_path / "b", from_parquet(hub), class1=["Malicious Used"])
    with pytest.raises(ConfigError, match=rf"subset: 0 of 24 rows of {FILES} are left.*widen"):
        prepare(tmp_path / "c", from_parquet(hub), class1=["Malicious Use"], class2=["Toxic"])
    assert not (tmp_path / "a/out").exists()
    asked = {
        "folder": f"{tmp_path}/d",
        "converted": f"{tmp_path}/e",
        "source": from_parquet(hub),
        "subset": {"size": 25},
    }
    with pytest.raises(
        ConfigError, match=r"25 rows are asked for, /.*/train-00000-of-00002\.parquet, .* have 24; lower"
    ):
        prepare_spa_vl.run(prepare_spa_vl.PrepareConfig.model_validate(asked))


def test_an_error_names_a_few_of_many_files() -> None:
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_row05_bad_rows_are_counted_by_kind_and_fail_past_the_share(hub: Hub, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in hub.rows[:8]]
    rows[0]["image"] = {"bytes": jpeg(0)[:300], "path": None}
    rows[1]["image"] = {"bytes": b"junk", "path": None}
    rows[2]["image"] = {"bytes": None, "path": None}
    rows[3]["chosen"] = " "
    rows[4]["image_name"] = "../1.jpg"
    rows[5]["image_name"] = "99.jpg"  # not in meta.json
    path = write_parquet(tmp_path / "bad.parquet", rows)
    source = SourceConfig(parquet=(str(path),), meta_files=str(hub.meta))
    with pytest.raises(DataError, match=r"6 of 8 rows were rejected \(ImageError: 2, RowError: 4\)"):
        prepare(tmp_path / "strict", source)
    assert not (tmp_path / "strict/out").exists()
    manifest = prepare(tmp_path / "lenient", source, share=0.75)
    assert manifest["rows"] == {"source": 8, "rejected": {"ImageError": 2, "RowError": 4}, "filtered": {}, "left": 2,
                                "chosen": 2}  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "lenient/out/rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["row"]) for line in lines] == [(str(path), row) for row in range(6)]
    assert "image 0.jpg" in lines[0]["reason"]
    assert not list((tmp_path / "lenient").rglob("*.partial"))


def test_two_images_of_one_name_are_both_kept(tmp_path: Path) -> None:
    base = {"question": "Q?", "chosen": "c", "rejected": "r", "image_name": "sub/1.jpg"}
    rows = [{**base, "image": jpeg(number)} for number in (1, 2, 1, 2)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group=1)
    for order in (None, 2, 5):
        folder = tmp_path / str(order)
        prepare(folder, SourceConfig(parquet=(str(path),)), order=order)
        names = [row["image"] for row in rows_of(folder)["all"]]
        assert [(folder / "out/images" / name).read_bytes() for name in names] == [jpeg(n) for n in (1, 2, 1, 2)]
        assert names[0] == names[2] == "sub/1.jpg"
        assert names[1] == names[3] == f"sub/1-{hashlib.sha256(jpeg(2)).hexdigest()[:16]}.jpg"


def test_files_without_the_columns_are_named_with_the_remedy(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"image": b"", "question": "q", "image_name": "1.jpg"}])
    with pytest.raises(DataError, match=r"a\.parquet: column\(s\) missing: chosen, rejected .*set source\.split"):
        plan_units(SourceConfig(parquet=(str(path),)))
    with pytest.raises(DataError, match=r"missing: class1, class2, class3"):
        plan_units(SourceConfig(parquet=(str(path),), split="help"))
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b\.parquet: not a parquet file.*download it again"):
        plan_units(SourceConfig(parquet=(f"{tmp_path}/b.parquet",)))


def test_sources_that_are_not_there_are_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.parquet: no file matches .*none-\*"):
        plan_units(SourceConfig(parquet=(f"{tmp_path}/none-*.parquet",)))
    with pytest.raises(ConfigError, match=r"train-00000-of-00002\.parquet is given twice"):
        plan_units(SourceConfig(parquet=(hub.parquet, f"{hub.folder}/data/train-00000-of-00002.parquet")))
    with pytest.raises(ConfigError, match=r"source\.expected_rows: 93258 rows are expected, the files have 24"):
        plan_units(from_parquet(hub, expected_rows=93_258))
    with pytest.raises(ConfigError, match=r"source\.meta_files: .*meta\.json does not exist"):
        source_files(SourceConfig(parquet=(hub.parquet,), meta_files=str(tmp_path)), False)
    with pytest.raises(ConfigError, match="either parquet, or image_folder"):
        load(SourceConfig, None, ["split=train"])
    with pytest.raises(ConfigError, match="image_folder needs meta_files"):
        load(SourceConfig, None, ["image_folder=./x"])


def test_the_seeds_name_hardd_is_read_as_hards(hub: Hub, tmp_path: Path) -> None:
    for name in ("meta_files/image_info/meta.json", "meta_files/prefer/hards.json"):
        write_json(tmp_path / name, json.loads((hub.folder / name).read_text()))
    (tmp_path / "meta_files/prefer/hards.json").rename(tmp_path / "meta_files/prefer/hardd.json")
    source = SourceConfig(meta_files=f"{tmp_path}/meta_files", image_folder=str(hub.images))
    prepare(tmp_path, source, question_types=["hardd"])
    assert list(rows_of(tmp_path)) == ["hards"]
    write_json(tmp_path / "meta_files/prefer/hards.json", [])
    with pytest.raises(ConfigError, match=r"hards\.json and .*hardd\.json hold the same type; remove one"):
        plan_units(source)


def test_a_prepared_folder_is_only_taken_for_what_it_is(hub: Hub, tmp_path: Path) -> None:
    manifest = prepare(tmp_path, from_parquet(hub), size=5)
    sources = manifest["sources"]
    same = Prepared("train", SubsetConfig(size=5), sources)
    assert read_manifest(tmp_path / "out", same) == manifest
    assert read_manifest(tmp_path / "none", same) is None
    with pytest.raises(ConfigError, match=r"out was prepared from other subset .*give another folder"):
        read_manifest(tmp_path / "out", Prepared("train", SubsetConfig(size=6), sources))
    with pytest.raises(ConfigError, match="prepared from other sources"):
        read_manifest(tmp_path / "out", Prepared("train", SubsetConfig(size=5), sources[1:]))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"mine exists and has no readable manifest\.json"):
        read_manifest(tmp_path / "mine", same)


@pytest.mark.parametrize(("label", "clean"), [
    ("Representation & ToxicityHarms", "Representation & Toxicity Harms"),
    ("Human Autonomy & IntegrityHarms", "Human Autonomy & Integrity Harms"),
    ("  Malicious   Use ", "Malicious Use"),
    ("scamns", "scams"),
    ("disablity discrimination", "disability discrimination"),
    ("multi-level marketing", "multi-level marketing"),
    ("Security_threats", "Security threats"),
])  # fmt: skip
def test_labels_are_normalised_once_and_for_all(label: str, clean: str) -> None:
    assert normal_label(label) == clean
    assert normal_label(clean) == clean


def test_image_paths_stay_below_the_folder() -> None:
    assert image_path(("A & B", "c/d", "e f"), "7.jpg") == "A & B/c-d/e f/7.jpg"
    for classes, name in ((("A", "", "c"), "7.jpg"), (("A", "..", "c"), "7.jpg"), (("",) * 3, "../7.jpg"),
                          (("",) * 3, "/7.jpg"), (("",) * 3, "")):  # fmt: skip
        with pytest.raises(RowError):
            image_path(classes, name)


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    """Peak memory of a fresh process over 16 and over 160 MB of images."""
    filler = random.Random(0).randbytes(400_000)
    peaks = []
    for groups in (4, 40):
        rows = [
            {"image": jpeg(n) + filler + n.to_bytes(4, "big") + b"\xff\xd9", "question": f"Q{n}?", "chosen": "c",
             "rejected": "r", "image_name": f"{n}.jpg"}
            for n in range(10 * groups)
        ]  # fmt: skip
        path = write_parquet(tmp_path / f"{groups}.parquet", rows, row_group=10)
        script = (
            "from dataclasses import asdict; from pathlib import Path\n"
            "from rlhf.data.spa_vl_hub import *\n"
            f"source = SourceConfig(parquet=({str(path)!r},)); units = plan_units(source)\n"
            f"folder = Path({str(tmp_path / 'out')!r}, '{groups}')\n"
            "converter = Converter(source, folder / 'parts', folder / 'images', None)\n"
            "[converter(asdict(unit)) for unit in units]\n"
            f"assert len(list((folder / 'images').glob('*/*'))) == {10 * groups}\n"
            "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"  # kB, of this process only
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks
