"""SPA-VL preference data: the seed's JSON and keyword config (seed page 1.1) and the hub's parquet files (1.5)."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.batch import PreferencePair, Prompt
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, Row, UniqueIds, read_json, read_rows, text_of, without_image_tag
from rlhf.errors import ConfigError, DataError, RowError

_PARQUET_BATCH = 64  # rows decoded at a time: the image bytes of a whole row group would not fit


def read_pairs(
    path: Path, image_root: Path, *, keyword: str = "", rejected: RejectedRows, check_images: bool = True
) -> list[PreferencePair]:
    """Preference pairs of one JSON list; `keyword` is the question type (easy, hardq, hards) and prefixes the ids.

    Rows that are malformed, repeat an id or have a bad image go to `rejected`; `check_images=False` leaves images
    unopened. Raises DataError when the file is not a JSON list.
    """
    prompt = _prompt_parser(path, image_root, keyword, check_images)

    def parse(row: Row) -> PreferencePair:
        chosen, refused = text_of(row, "chosen"), text_of(row, "rejected")
        return PreferencePair(prompt(row, question_type=keyword), chosen, refused)

    return read_rows(path, parse, rejected)


def read_prompts(
    path: Path, image_root: Path, *, keyword: str = "", rejected: RejectedRows, check_images: bool = True
) -> list[Prompt]:
    """Prompts of one JSON list; `keyword` is their `kind`. Answers are not needed; key "answer" is the right one.

    Bad rows go to `rejected`. Raises DataError when the file is not a JSON list.
    """
    prompt = _prompt_parser(path, image_root, keyword, check_images)

    def parse(row: Row) -> Prompt:
        return prompt(row, kind=keyword, answer=text_of(row, "answer") if "answer" in row else "")

    return read_rows(path, parse, rejected)


def read_keyword_config(config_path: str, keywords: Sequence[str]) -> list[tuple[str, Path]]:
    """The JSON files of the selected keywords, in the given order, from a flat map keyword -> path.

    Relative paths are relative to the config file. Raises ConfigError: not a ".json" file, not such a map, no or
    repeated keywords, or an unknown keyword (the message lists the known ones, nearest first).
    """
    path = Path(config_path)
    if path.suffix != ".json":
        raise ConfigError([f"keyword config {config_path!r} must end in .json"])
    try:
        table = read_json(path)
    except DataError as error:
        raise ConfigError([f"keyword config {error}"]) from None
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ConfigError([f"keyword config {config_path}: expected a flat map from keyword to JSON path"])
    problems = [f"keyword {k!r} is given more than once" for k in dict.fromkeys(keywords) if keywords.count(k) > 1]
    if not keywords:
        problems.append(f"no keyword was selected from {config_path}; known: {', '.join(table)}")
    for keyword in keywords:
        if keyword not in table:
            nearest = difflib.get_close_matches(keyword, list(table), n=len(table), cutoff=0.0)
            problems.append(f"unknown keyword {keyword!r} in {config_path}; known: {', '.join(nearest)}")
    if problems:
        raise ConfigError(problems)
    return [(keyword, path.parent / table[keyword]) for keyword in keywords]


def load_pairs(
    config_path: str, keywords: Sequence[str], image_root: Path, rejected: RejectedRows, *, check_images: bool = True
) -> list[PreferencePair]:
    """The pairs of all selected keywords, concatenated in the order of `keywords`. Errors as in the two readers."""
    return [
        pair
        for keyword, path in read_keyword_config(config_path, keywords)
        for pair in read_pairs(path, image_root, keyword=keyword, rejected=rejected, check_images=check_images)
    ]


def load_prompts(
    config_path: str, keywords: Sequence[str], image_root: Path, rejected: RejectedRows, *, check_images: bool = True
) -> list[Prompt]:
    """The prompts of all selected keywords, concatenated in the order of `keywords`. Errors as in the two readers."""
    return [
        prompt
        for keyword, path in read_keyword_config(config_path, keywords)
        for prompt in read_prompts(path, image_root, keyword=keyword, rejected=rejected, check_images=check_images)
    ]


def read_parquet_pairs(paths: Sequence[Path], image_dir: Path, *, rejected: RejectedRows) -> list[PreferencePair]:
    """Pairs of the hub's parquet files; the embedded images are written below `image_dir` under their `image_name`.

    `image` is a struct {bytes, path} or bytes. Ids are "parquet:N", N counting the rows of all files in order. Bad
    rows go to `rejected`. Raises DataError when a file is not parquet or lacks a column.
    """
    folder = ImageFolder(image_dir, check=True)
    pairs = []
    number = 0
    for path in paths:
        for index, row in enumerate(_parquet_rows(path)):
            try:
                image = folder.locate(_store_image(row, image_dir, number))
                question, count = without_image_tag(text_of(row, "question"))
                prompt = Prompt(f"parquet:{number}", question, image, category=_category(row))
                if count > 1:
                    raise RowError("the question has more than one <image> tag")
                pairs.append(PreferencePair(prompt, text_of(row, "chosen"), text_of(row, "rejected")))
            except DataError as error:
                rejected.add(type(error)(error.reason, source=str(path), row=index))
            number += 1
    return pairs


def _prompt_parser(path: Path, image_root: Path, keyword: str, check_images: bool) -> Callable[..., Prompt]:
    """A function from a row (and more fields of Prompt) to its Prompt, which raises RowError or ImageError."""
    images, ids, prefix = ImageFolder(image_root, check_images), UniqueIds(), keyword or path.stem

    def parse(row: Row, **more: str) -> Prompt:
        identifier = _integer_id(row)
        ids.check(identifier)
        question, tags = without_image_tag(_question(row))
        image = images.path_of(row)
        if tags > 1 or (tags == 1 and image is None):
            raise RowError(f"the question has {tags} <image> tag(s) for {0 if image is None else 1} image")
        if not question:
            raise RowError("'question' is empty")
        return Prompt(f"{prefix}:{identifier}", question, image, category=_category(row), **more)

    return parse


def _integer_id(row: Row) -> int:
    value = row.get("id")
    if "id" not in row:
        raise RowError("key 'id' is missing")
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowError(f"'id' must be an integer, found {value!r}")
    return value


def _question(row: Row) -> str:
    """The question as one string; a list of turns is accepted when it holds one Human turn and no answer."""
    value = row.get("question")
    if not isinstance(value, list):
        return text_of(row, "question")
    for turn in value:
        if not isinstance(turn, dict) or turn.get("from") not in ("Human", "Assistant"):
            raise RowError("a turn of 'question' must be an object with 'from' Human or Assistant and 'value'")
    human = [turn for turn in value if turn["from"] == "Human"]
    answered = any(turn["from"] == "Assistant" and turn.get("value") for turn in value)
    if len(human) != 1 or answered:
        raise RowError(f"'question' must hold a single Human turn and no answer, found {len(value)} turns")
    return text_of({"question": human[0].get("value")}, "question")


def _category(row: Row) -> str:
    """`class1` with the white space that the hub's labels lack ("...ToxicityHarms")."""
    value = row.get("class1")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"'class1' must be a string, found {type(value).__name__}")
    return " ".join(re.sub(r"(?<=[a-z])Harms$", " Harms", value.strip()).split())


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"not a parquet file: {error}", source=str(path)) from None
    with file:
        missing = [c for c in ("image", "question", "chosen", "rejected") if c not in file.schema_arrow.names]
        if missing:
            raise DataError(f"column(s) missing: {', '.join(missing)}", source=str(path))
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
            yield from batch.to_pylist()


def _store_image(row: Row, image_dir: Path, number: int) -> str:
    """Write the row's image bytes and return the name below `image_dir`.

    The hub's names are bare and may repeat for different images; the second of such a pair gets its digest as suffix.
    """
    cell: Any = row["image"]
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise RowError("'image' holds no bytes")
    name = row.get("image_name") or (cell.get("path") if isinstance(cell, dict) else None) or f"{number}.image"
    if not isinstance(name, str):
        raise RowError(f"'image_name' must be a string, found {type(name).__name__}")
    ImageFolder(image_dir, check=False).locate(name)
    target = image_dir / name
    if target.exists() and target.read_bytes() != data:
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = str(Path(name).with_name(f"{target.stem}-{digest}{target.suffix}"))
        target = image_dir / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        partial.write_bytes(data)
        partial.replace(target)  # a crash must not leave half an image under the final name
    return name
