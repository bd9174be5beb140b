"""The hub's `meta_files` (seed page 1.5): what the parquet files of SPA-VL do not say.

Classes of an image, the question type of a pair, and which response models gave an answer. Texts are kept as digests:
the answers of twelve models take gigabytes, their digests some tens of megabytes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.data.rows import Row, read_json, text_of
from rlhf.data.spa_vl_labels import RESPONSE_MODELS, normal_question_type
from rlhf.errors import ConfigError, DataError, RowError

_KEYS = ("class1", "class2", "class3")


@dataclass(frozen=True)
class MetaFiles:
    """The tables, looked up by the bare name of an image. Build them with `load`."""

    classes: dict[str, set[tuple[str, ...]]]
    types: dict[bytes, set[str]]
    models: dict[bytes, int]  # digest of (image, question, answer) -> one bit per model

    @staticmethod
    def files(folder: Path, with_models: bool) -> list[Path]:
        """Every file that is read, sorted. Raises ConfigError where one is missing."""
        meta = folder / "image_info" / "meta.json"
        if not meta.is_file():
            raise ConfigError([f"source.meta_files: {meta} does not exist; give the hub's folder meta_files"])
        return [meta, *prefer_files(folder).values(), *(_answer_files(folder) if with_models else [])]

    @classmethod
    def load(cls, folder: Path, with_types: bool, with_models: bool) -> MetaFiles:
        """Read the tables that are needed. Raises DataError, naming file and row, for one that is malformed."""
        classes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        meta = folder / "image_info" / "meta.json"
        for index, (row, name) in enumerate(_rows(meta)):
            try:
                classes[name].add(tuple(text_of(row, key) for key in _KEYS))
            except RowError as error:
                raise DataError(error.reason, source=str(meta), row=index) from None
        types: dict[bytes, set[str]] = defaultdict(set)
        for keyword, path in prefer_files(folder).items() if with_types else ():
            for row, name in _rows(path):
                types[_digest(name, str(row.get("question")), str(row.get("chosen")))].add(keyword)
        models: dict[bytes, int] = defaultdict(int)
        for path in _answer_files(folder) if with_models else ():
            for row, name in _rows(path):
                for bit, model in enumerate(RESPONSE_MODELS):
                    if isinstance(row.get(model), str):
                        models[_digest(name, str(row.get("question")), row[model])] |= 1 << bit
        return cls(dict(classes), dict(types), dict(models))

    def classes_of(self, image: str) -> tuple[str, ...]:
        """class1 to class3 as meta.json spells them. Raises RowError when it does not say them, or more than once."""
        found = self.classes.get(PurePosixPath(image).name, set())
        if len(found) != 1:
            raise RowError(f"image {image!r} has {len(found)} entries of different class in image_info/meta.json")
        return next(iter(found))

    def type_of(self, image: str, question: str, chosen: str) -> str:
        """The question type of a pair. Raises RowError when prefer/*.json does not say it, or more than one."""
        found = self.types.get(_digest(PurePosixPath(image).name, question, chosen), set())
        if len(found) != 1:
            names = ", ".join(sorted(found)) or "none"
            raise RowError(f"the question type is not clear: prefer/*.json with this image, question, answer: {names}")
        return next(iter(found))

    def models_of(self, image: str, question: str, answer: str) -> list[str]:
        """The response models that gave this very answer; empty where model_answer was not read or has no match."""
        bits = self.models.get(_digest(PurePosixPath(image).name, question, answer), 0)
        return [model for bit, model in enumerate(RESPONSE_MODELS) if bits >> bit & 1]


def prefer_files(folder: Path) -> dict[str, Path]:
    """The preference file of each question type; a file of the seed's name `hardd` counts as `hards`.

    Raises ConfigError when there is none, or two for one type.
    """
    found: dict[str, Path] = {}
    for name in ("easy", "hardq", "hards", "hardd"):
        path, keyword = folder / "prefer" / f"{name}.json", normal_question_type(name)
        if path.is_file() and keyword in found:
            raise ConfigError([f"source.meta_files: {found[keyword]} and {path} hold the same type; remove one"])
        if path.is_file():
            found[keyword] = path
    if not found:
        raise ConfigError([f"source.meta_files: {folder / 'prefer'} has none of easy.json, hardq.json, hards.json"])
    return found


def check_model_columns(folder: Path, wanted: tuple[str, ...]) -> None:
    """Raise ConfigError unless every wanted response model is a column of model_answer/*.json."""
    columns: set[str] = set()
    for path in _answer_files(folder):
        rows = read_json(path)
        first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
        if not {"image", "question"} <= first.keys():
            raise ConfigError([f"subset.response_models: rows of {path} need the keys image and question"])
        columns |= first.keys() & set(RESPONSE_MODELS)
    if missing := [model for model in wanted if model not in columns]:
        raise ConfigError(
            [
                f"subset.response_models: {folder / 'model_answer'} has no column {', '.join(missing)} "
                f"(found: {', '.join(sorted(columns)) or 'none'}); choose among those, or complete the download"
            ]
        )


def _answer_files(folder: Path) -> list[Path]:
    files = sorted((folder / "model_answer").glob("*.json"))
    if not files:
        raise ConfigError(
            [
                f"subset.response_models: {folder / 'model_answer'} has no .json file, so nothing tells which model "
                "gave an answer; download it, or drop this filter"
            ]
        )
    return files


def _rows(path: Path) -> list[tuple[Row, str]]:
    """Rows with the bare name of their image."""
    rows: Any = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"expected a JSON list of rows, found {type(rows).__name__}", source=str(path))
    named = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise DataError("expected an object with key 'image'", source=str(path), row=index)
        named.append((row, PurePosixPath(row["image"]).name))
    return named


def _digest(*texts: str) -> bytes:
    plain = (" ".join(text.replace("<image>", " ").split()) for text in texts)
    return hashlib.sha256("\0".join(plain).encode()).digest()[:12]
