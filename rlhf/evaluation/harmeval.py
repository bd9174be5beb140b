"""HarmEval and HelpEval, the two halves of SPA-VL's test split: 265 prompts each (seed page 1.5).

HarmEval gives the share of unsafe answers (USR). HelpEval gives the share of answers that beat those of a baseline
model to the same prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import model_validator

from rlhf.batch import Prompt
from rlhf.config import Config, ModelConfig, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, Row, UniqueIds, read_rows, text_of, without_image_tag
from rlhf.data.spa_vl_labels import normal_label
from rlhf.errors import ConfigError, DataError, RowError
from rlhf.evaluation.benchmark import Item
from rlhf.rollout.base import ignored_by_engines

ROWS = 265  # of each half: 5 for each of 53 leaf classes
CLASSES = ("class1", "class2", "class3")
_BATCH = 64  # parquet rows decoded at a time


class HarmEvalConfig(Config):
    """Where the harmful half is."""

    path: str
    """The hub's parquet file (test/harm), or a JSON list of rows with question, image and class1 to class3."""
    image_root: str | None = None
    """Folder that the JSON rows' image paths are relative to; parquet files carry their images."""


class HelpEvalConfig(HarmEvalConfig):
    """Where the helpful half is (test/help), and who answers for comparison."""

    baseline: ModelConfig
    """The model to compare with, usually the one before alignment; it answers the same prompts in the same way."""

    @model_validator(mode="after")
    def _engine_can_load_it(self) -> HelpEvalConfig:
        if problems := ignored_by_engines(self.baseline, "helpeval.baseline"):
            raise ConfigError(problems)
        return self


def read_harmeval(
    config: HarmEvalConfig, source: str, image_folder: Path, rejected: RejectedRows, kind: str = ""
) -> list[Item]:
    """The items of one half with groups class1 to class3; ids are "source:id", or the row number where rows have none.

    Images of a parquet file are written into `image_folder`. Bad rows go to `rejected`. Raises DataError for an
    unusable file, a parquet file without the hub's columns among them, ConfigError for a JSON file without an image
    root.
    """
    path = Path(resolve(config.path))
    if path.suffix == ".parquet":
        return _read_parquet(path, source, image_folder, rejected, kind)
    if config.image_root is None:
        raise ConfigError([f"{source}.image_root: {path} is JSON, so its image paths need a folder"])
    images, ids, number = ImageFolder(Path(resolve(config.image_root)), check=False), UniqueIds(), 0

    def parse(row: Row) -> Item:
        nonlocal number
        number += 1
        identifier = row.get("id", number - 1)
        if not isinstance(identifier, int) or isinstance(identifier, bool):
            raise RowError(f"'id' must be an integer, found {identifier!r}")
        ids.check(identifier)
        return _item(row, f"{source}:{identifier}", images.path_of(row), kind)

    return read_rows(path, parse, rejected)


def _item(row: Row, identifier: str, image: str | None, kind: str) -> Item:
    question, tags = without_image_tag(text_of(row, "question"))
    if tags > (0 if image is None else 1) or not question:
        raise RowError(f"the question has {tags} <image> tag(s) for {0 if image is None else 1} image, or no text")
    groups = {name: normal_label(text_of(row, name)) for name in CLASSES if row.get(name) is not None}
    answer = text_of(row, "answer") if "answer" in row else ""
    prompt = Prompt(identifier, question, image, kind=kind, category=groups.get("class1", ""), answer=answer)
    return Item(prompt, groups)


def _read_parquet(path: Path, source: str, image_folder: Path, rejected: RejectedRows, kind: str) -> list[Item]:
    items = []
    for number, row in enumerate(_parquet_rows(path, source)):
        try:
            items.append(_item(row, f"{source}:{number}", _store_image(row["image"], image_folder), kind))
        except DataError as error:
            rejected.add(type(error)(error.reason, source=str(path), row=number))
    return items


def _parquet_rows(path: Path, source: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(
            f"not a parquet file: {error}; mend {source}.path, or download it again", source=str(path)
        ) from None
    with file:
        found = file.schema_arrow.names
        missing = [name for name in ("image", "question", *CLASSES) if name not in found]
        if missing:
            raise DataError(
                f"column(s) missing: {', '.join(missing)} (found: {', '.join(found)}); set {source}.path to the hub's "
                "parquet file of the split, or to JSON rows",
                source=str(path),
            )
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()


def _store_image(cell: Any, folder: Path) -> str:
    """Write an embedded image under the hash of its bytes and return its absolute path."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise RowError("'image' holds no bytes")
    target = folder.absolute() / f"{hashlib.sha256(data).hexdigest()[:24]}.image"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".partial")
        draft.write_bytes(data)
        draft.replace(target)  # a crash must not leave half an image under the final name
    return str(target)
