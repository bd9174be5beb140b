"""The hub's SPA-VL (seed page 1.5) into rows of the training JSON (1.1): parquet, or meta files and an image folder.

The source is cut into units of a few hundred to a few thousand rows. A unit becomes one part file of JSON lines; images
are stored under their SHA-256. Both appear under their final names only when complete, and their bytes depend on the
source alone, so units may be converted in any order, by any number of processes, and again after a crash.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config import Config, resolve
from rlhf.data.images import verify_image
from rlhf.data.json_stream import Span, is_text, plan_spans, read_span
from rlhf.data.meta_files import MetaFiles, prefer_files
from rlhf.data.parts import aside, write_part
from rlhf.data.rows import Row, text_of, without_image_tag
from rlhf.data.spa_vl_labels import image_path, normal_label
from rlhf.errors import ConfigError, DataError, ImageError, RowError

Split = Literal["train", "validation", "harm", "help"]

_CLASSES = ("class1", "class2", "class3")
_COLUMNS: dict[str, tuple[str, ...]] = {
    "train": ("image", "question", "chosen", "rejected", "image_name"),
    "validation": ("image", "question", "chosen", "rejected", *_CLASSES),
    "harm": ("image", "question", *_CLASSES),
    "help": ("image", "question", *_CLASSES),
}
_BATCH_ROWS = 64  # rows decoded at a time: the image bytes of a whole row group would not fit
_JSON_UNIT_ROWS = 5000


class SourceConfig(Config):
    """What was downloaded of the hub's `sqrti/SPA-VL`: parquet files, or meta files and the unpacked images."""

    parquet: tuple[str, ...] = ()
    """Parquet files with embedded images; a pattern such as "./data/train-*.parquet" stands for its sorted matches."""
    meta_files: str | None = None
    """The hub's folder meta_files: image_info/meta.json, prefer/*.json, model_answer/*.json (for response models)."""
    image_folder: str | None = None
    """Unpacked train.zip; with it, rows come from meta_files/prefer instead of parquet."""
    split: Split = "train"
    """Which split the files are; it decides which columns they must have."""
    expected_rows: int | None = Field(default=None, ge=1)
    """Refuse another number of source rows, such as those of an incomplete download."""

    @model_validator(mode="after")
    def _one_source(self) -> SourceConfig:
        if bool(self.parquet) == bool(self.image_folder):
            raise ValueError("give either parquet, or image_folder together with meta_files")
        if self.image_folder and (self.meta_files is None or self.split != "train"):
            raise ValueError("image_folder needs meta_files and split train; the other splits exist as parquet only")
        return self

    @property
    def knows_question_types(self) -> bool:
        """Whether rows have a question type: the hub's parquet files do not say it, prefer/*.json of train does."""
        return self.meta_files is not None and self.split == "train"

    @property
    def knows_classes(self) -> bool:
        """Whether rows have classes: columns of every split but train, for which meta.json says them."""
        return self.meta_files is not None or self.split != "train"


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive rows of one source file: a row group of parquet, or a slice of a JSON list."""

    number: int
    path: str
    keyword: str  # file that its rows go to; "" where each row has to be looked up
    group: int  # row group; -1 for JSON
    first_row: int  # within the file
    rows: int
    start: int  # JSON: first byte in the file, and the byte after the last; parquet: 0
    end: int
    first_id: int  # over all files: ids depend neither on filters nor on the order of conversion


def plan_units(source: SourceConfig) -> list[Unit]:
    """Cut the source into units. Raises ConfigError or DataError when files or columns are missing."""
    slices = list(_parquet_slices(source) if source.parquet else _json_slices(source))
    units: list[Unit] = []
    total = 0
    for path, keyword, group, span in slices:
        place = (span.first_row, span.rows, span.start, span.end)
        units.append(Unit(len(units), path, keyword, group, *place, total))
        total += span.rows
    if source.expected_rows not in (None, total):
        raise ConfigError(
            [
                f"source.expected_rows: {source.expected_rows} rows are expected, the files have {total}; "
                "complete the download, or set the number that you mean"
            ]
        )
    return units


def source_files(source: SourceConfig, with_models: bool) -> list[Path]:
    """Every file that the rows come from, images aside. Raises ConfigError where one is missing."""
    files = parquet_files(source)
    if source.meta_files is not None:
        files += MetaFiles.files(Path(resolve(source.meta_files)), with_models)
    return files


def parquet_files(source: SourceConfig) -> list[Path]:
    """The parquet files in the given order, patterns replaced by their sorted matches. Raises ConfigError."""
    problems = []
    files: list[Path] = []
    for pattern in source.parquet:
        found = sorted(glob.glob(resolve(pattern)))
        problems += [] if found else [f"source.parquet: no file matches {pattern!r}; download it, or mend the path"]
        problems += [
            f"source.parquet: {path} is given twice; its rows would be used twice, name it once"
            for path in found
            if Path(path) in files
        ]
        files += [Path(path) for path in found]
    if problems:
        raise ConfigError(problems)
    return files


def read_meta(source: SourceConfig, with_models: bool) -> MetaFiles | None:
    """What the meta files say beyond the rows, if there are any; `with_models`: also who gave an answer.

    Raises DataError for a table that is malformed.
    """
    if source.meta_files is None:
        return None
    look_up_types = bool(source.parquet) and source.knows_question_types
    return MetaFiles.load(Path(resolve(source.meta_files)), look_up_types, with_models)


class Converter:
    """Converts units, called once for each with its fields; a callable class, as Ray Data's actors want it.

    `parts` gets one file of JSON lines per unit, `images` the image files by SHA-256. `meta` is what `read_meta` gives.
    """

    def __init__(self, source: SourceConfig, parts: Path, images: Path, meta: MetaFiles | None) -> None:
        self._source, self._parts, self._images, self._meta = source, parts, images, meta

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Convert one unit unless its part is there; returns its number and rows."""
        unit = Unit(**item)
        part = part_file(self._parts, unit)
        if not part.exists():
            write_part(part, (self._line(unit, offset, row) for offset, row in enumerate(self._rows(unit))))
        return {"number": unit.number, "rows": unit.rows}

    def _rows(self, unit: Unit) -> Iterator[Any]:
        if unit.group < 0:
            yield from read_span(Path(unit.path), Span(unit.start, unit.end, unit.first_row, unit.rows))
            return
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(unit.path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[unit.group]):
                yield from batch.to_pylist()

    def _line(self, unit: Unit, offset: int, row: Any) -> dict[str, Any]:
        try:
            if not isinstance(row, dict):
                raise RowError(f"expected an object, found {type(row).__name__}")
            if not all(is_text(value) for value in row.values() if isinstance(value, str)):
                raise RowError("not UTF-8")
            return {"id": unit.first_id + offset, **self._record(unit, row)}
        except DataError as error:
            where = {"source": unit.path, "row": unit.first_row + offset}
            return {**where, "kind": type(error).__name__, "reason": error.reason}

    def _record(self, unit: Unit, row: Row) -> dict[str, Any]:
        question, tags = without_image_tag(text_of(row, "question"))
        if tags > 1 or not question:
            raise RowError(f"'question' has {tags} <image> tags, or no text beside them")
        name = _image_name(row, unit.group >= 0)
        raw = self._raw_classes(row, name)
        record: dict[str, Any] = {"question": question}
        if "chosen" in _COLUMNS[self._source.split]:
            record |= {"chosen": text_of(row, "chosen"), "rejected": text_of(row, "rejected")}
        record["keyword"] = unit.keyword or self._type_of(name, record)
        classes = tuple(normal_label(label) for label in raw)
        record |= dict(zip(_CLASSES, classes, strict=True))
        if self._meta is not None and "chosen" in record:
            record["chosen_models"] = self._meta.models_of(name, question, record["chosen"])
            record["rejected_models"] = self._meta.models_of(name, question, record["rejected"])
        record["image"] = image_path(classes, name)
        data = _embedded(row) if unit.group >= 0 else self._from_folder(raw, classes, name)
        record["sha256"] = store_image(data, self._images, name)
        return record

    def _raw_classes(self, row: Row, name: str) -> tuple[str, ...]:
        if self._source.split != "train":
            return tuple(text_of(row, level) for level in _CLASSES)
        return self._meta.classes_of(name) if self._meta is not None else ("", "", "")

    def _type_of(self, name: str, record: Row) -> str:
        if self._meta is None:
            raise RowError("without source.meta_files the question type is unknown")
        return self._meta.type_of(name, record["question"], record["chosen"])

    def _from_folder(self, raw: tuple[str, ...], classes: tuple[str, ...], name: str) -> bytes:
        """The image below its class folders, spelt as in meta.json or normalised, or in the image folder itself."""
        root = Path(resolve(self._source.image_folder or ""))
        for path in (root / image_path(raw, name), root / image_path(classes, name), root / image_path((), name)):
            if path.is_file():
                return path.read_bytes()
        raise ImageError(f"image {name}: no such file below {root}, neither in {image_path(raw, name)!r}")


def part_file(parts: Path, unit: Unit) -> Path:
    """Where a unit's rows are written."""
    return parts / f"{unit.number:06d}.jsonl"


def stored_image(images: Path, digest: str) -> Path:
    """Where an image is stored under its SHA-256."""
    return images / digest[:2] / digest


def store_image(data: bytes, images: Path, name: str) -> str:
    """Check an image and store it under its SHA-256, which is returned. Raises ImageError, naming `name`."""
    digest = hashlib.sha256(data).hexdigest()
    target = stored_image(images, digest)
    if target.exists():
        return digest
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = aside(target)
    try:
        partial.write_bytes(data)
        verify_image(str(partial))
        partial.replace(target)  # a crash must not leave half an image under the final name
    except ImageError as error:
        raise ImageError(f"image {name}: {error.reason}") from None
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _parquet_slices(source: SourceConfig) -> Iterator[tuple[str, str, int, Span]]:
    import pyarrow
    import pyarrow.parquet

    keyword = "" if source.knows_question_types else source.split if source.split in ("harm", "help") else "all"
    for path in parquet_files(source):
        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DataError(f"not a parquet file: {error}; download it again", source=str(path)) from None
        with file:
            names = file.schema_arrow.names
            if missing := [column for column in _COLUMNS[source.split] if column not in names]:
                raise DataError(
                    f"column(s) missing: {', '.join(missing)} (found: {', '.join(names)}); set source.split to the "
                    f"split that this file belongs to (now {source.split}), or download it again",
                    source=str(path),
                )
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                yield str(path), keyword, group, Span(0, 0, first, rows)
                first += rows


def _json_slices(source: SourceConfig) -> Iterator[tuple[str, str, int, Span]]:
    for keyword, path in prefer_files(Path(resolve(source.meta_files or ""))).items():
        for span in plan_spans(path, _JSON_UNIT_ROWS):
            yield str(path), keyword, -1, span


def _image_name(row: Row, embedded: bool) -> str:
    cell = row.get("image")
    path = cell.get("path") if isinstance(cell, dict) else None
    name = (row.get("image_name") or path) if embedded else cell
    if not isinstance(name, str) or not name:
        raise RowError(f"the image has no name: {'image_name' if embedded else 'image'} is {name!r}")
    return name


def _embedded(row: Row) -> bytes:
    cell: Any = row["image"]
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise RowError("'image' holds no bytes")
    return data
