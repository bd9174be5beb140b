"""The hub's `meta_files` (seed page 1.5): what the parquet files of SPA-VL do not say.

Classes of an image, the question type of a pair, and which response models gave an answer. Files are streamed, and
texts are kept as digests: the answers of twelve models take gigabytes, their digests some ten megabytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from rlhf.data.json_stream import is_text, stream_rows
from rlhf.data.rows import Row, text_of
from rlhf.data.spa_vl_labels import RESPONSE_MODELS, normal_question_type
from rlhf.errors import ConfigError, DataError, RowError

_KEYS = ("class1", "class2", "class3")


class Names:
    """Which of at most 16 names belong to a digest: sorted arrays of ten bytes a digest, where a dict takes 150."""

    def __init__(self, names: tuple[str, ...], found: Iterable[tuple[int, int]]) -> None:
        """`found` are digests with the place of a name that belongs to each; a digest may come again."""
        keys, bits = array("Q"), array("H")
        for key, place in found:
            keys.append(key)
            bits.append(1 << place)
        order = np.argsort(np.array(keys, dtype=np.uint64), kind="stable")
        self._names = names
        self._keys, starts = np.unique(np.array(keys, dtype=np.uint64)[order], return_index=True)
        self._bits = np.bitwise_or.reduceat(np.array(bits, dtype=np.uint16)[order], starts)

    def of(self, key: int) -> list[str]:
        """The names of a digest, in the order of all names."""
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        if place == len(self._keys) or self._keys[place] != key:
            return []
        return [name for bit, name in enumerate(self._names) if int(self._bits[place]) >> bit & 1]


@dataclass(frozen=True)
class MetaFiles:
    """The tables, looked up by the bare name of an image. Build them with `load`, once: workers are given them."""

    classes: dict[str, set[tuple[str, ...]]]
    types: Names  # of (image, question, chosen answer)
    models: Names  # of (image, question, answer)

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
        prefer = prefer_files(folder) if with_types else {}
        answers = _answer_files(folder) if with_models else []
        return cls(dict(classes), Names(tuple(prefer), _typed(prefer)), Names(RESPONSE_MODELS, _answered(answers)))

    def classes_of(self, image: str) -> tuple[str, ...]:
        """class1 to class3 as meta.json spells them. Raises RowError when it does not say them, or more than once."""
        found = self.classes.get(PurePosixPath(image).name, set())
        if len(found) != 1:
            raise RowError(f"image {image!r} has {len(found)} entries of different class in image_info/meta.json")
        return next(iter(found))

    def type_of(self, image: str, question: str, chosen: str) -> str:
        """The question type of a pair. Raises RowError when prefer/*.json does not say it, or more than one."""
        found = self.types.of(_digest(PurePosixPath(image).name, question, chosen))
        if len(found) != 1:
            names = ", ".join(sorted(found)) or "none"
            raise RowError(f"the question type is not clear: prefer/*.json with this image, question, answer: {names}")
        return found[0]

    def models_of(self, image: str, question: str, answer: str) -> list[str]:
        """The response models that gave this very answer; empty where model_answer was not read or has no match."""
        return self.models.of(_digest(PurePosixPath(image).name, question, answer))


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
        first = next(stream_rows(path), None)
        if not isinstance(first, dict) or not {"image", "question"} <= first.keys():
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


def _typed(files: dict[str, Path]) -> Iterator[tuple[int, int]]:
    """The digest of every preferred answer, with the place of its file."""
    for place, path in enumerate(files.values()):
        for row, name in _rows(path):
            yield _digest(name, str(row.get("question")), str(row.get("chosen"))), place


def _answered(files: list[Path]) -> Iterator[tuple[int, int]]:
    """The digest of every answer, with the place of the model that gave it."""
    for path in files:
        for row, name in _rows(path):
            for place, model in enumerate(RESPONSE_MODELS):
                if isinstance(row.get(model), str):
                    yield _digest(name, str(row.get("question")), row[model]), place


def _rows(path: Path) -> Iterator[tuple[Row, str]]:
    """Rows with the bare name of their image."""
    for index, row in enumerate(stream_rows(path)):
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise DataError("expected an object with key 'image'", source=str(path), row=index)
        if not all(is_text(value) for value in row.values() if isinstance(value, str)):
            raise DataError("not UTF-8", source=str(path), row=index)
        yield row, PurePosixPath(row["image"]).name


def _digest(*texts: str) -> int:
    plain = (" ".join(text.replace("<image>", " ").split()) for text in texts)
    return int.from_bytes(hashlib.sha256("\0".join(plain).encode()).digest()[:8], "big")
