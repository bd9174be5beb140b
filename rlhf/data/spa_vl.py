"""SPA-VL preference data: the seed's JSON and keyword config (seed page 1.1).

Ids must be unique within a file; a row that repeats one is refused. Prompts are called "keyword:id", so two keywords
may hold the same id without being mixed up.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.batch import PreferencePair, Prompt
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, Record, Row, UniqueIds, read_json, read_rows, text_of, without_image_tag
from rlhf.data.spa_vl_labels import normal_label
from rlhf.errors import ConfigError, DataError, RowError


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


def read_keyword_config(config_path: str, keywords: Sequence[str] | None) -> list[tuple[str, Path]]:
    """The JSON files of the selected keywords, in the given order, from a flat map keyword -> path; None selects all.

    Relative paths are relative to the config file. Raises ConfigError: not a ".json" file, not such a map, a keyword
    that the map holds twice, no or repeated keywords, two keywords of one file (its rows would be used twice), or an
    unknown keyword (the message lists the known ones, nearest first).
    """
    path = Path(config_path)
    if path.suffix != ".json":
        raise ConfigError([f"keyword config {config_path!r} must end in .json"])
    try:
        pairs = read_json(path, pairs_hook=_Pairs)
    except DataError as error:
        raise ConfigError([f"keyword config {error}"]) from None
    if not isinstance(pairs, _Pairs) or not all(isinstance(value, str) for _, value in pairs):
        raise ConfigError([f"keyword config {config_path}: expected a flat map from keyword to JSON path"])
    problems = [
        f"keyword config {config_path}: keyword {name!r} stands for {' and for '.join(named)}; rename or remove one"
        for name in dict(pairs)
        if len(named := [value for key, value in pairs if key == name]) > 1
    ]
    table = dict(pairs)
    files = {keyword: path.parent / file for keyword, file in table.items()}
    real = {keyword: file.resolve() for keyword, file in files.items()}  # a file has many names, through links too
    given, keywords = "" if keywords is None else "data.keywords: ", tuple(table) if keywords is None else keywords
    for keyword in dict.fromkeys(keywords):
        if keywords.count(keyword) > 1:
            problems.append(
                f"{given}{keyword!r} of {config_path} is given {keywords.count(keyword)} times; name it once"
            )
        if keyword not in table:
            nearest = difflib.get_close_matches(keyword, list(table), n=len(table), cutoff=0.0)
            problems.append(f"unknown keyword {keyword!r} in {config_path}; known: {', '.join(nearest)}")
        elif twins := [one for one in dict.fromkeys(keywords) if one < keyword and real.get(one) == real[keyword]]:
            problems.append(
                f"{given}{twins[0]!r} and {keyword!r} of {config_path} are the same file, {real[keyword]}; "
                "name one of them, or its rows would be used twice"
            )
    if not keywords:
        problems.append(f"no keyword was selected from {config_path}; known: {', '.join(table)}")
    if problems:
        raise ConfigError(problems)
    return [(keyword, files[keyword]) for keyword in keywords]


def load_pairs(
    config_path: str, keywords: Sequence[str], image_root: Path, rejected: RejectedRows, *, check_images: bool = True
) -> list[PreferencePair]:
    """The pairs of all selected keywords, concatenated in the order of `keywords`. Errors as in the two readers."""
    read = partial(read_pairs, image_root=image_root, rejected=rejected, check_images=check_images)
    return _concatenate(read, config_path, keywords)


def load_prompts(
    config_path: str,
    keywords: Sequence[str] | None,
    image_root: Path,
    rejected: RejectedRows,
    *,
    check_images: bool = True,
) -> list[Prompt]:
    """The prompts of all selected keywords, concatenated in the order of `keywords`; None selects all of the map.

    Errors as in the two readers.
    """
    read = partial(read_prompts, image_root=image_root, rejected=rejected, check_images=check_images)
    return _concatenate(read, config_path, keywords)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the file; a dict would keep the last of two equal keys and say nothing."""


def _concatenate(read: Callable[..., list[Record]], config_path: str, keywords: Sequence[str] | None) -> list[Record]:
    files = read_keyword_config(config_path, keywords)
    return [record for keyword, path in files for record in read(path, keyword=keyword)]


def _prompt_parser(path: Path, image_root: Path, keyword: str, check_images: bool) -> Callable[..., Prompt]:
    """A function from a row (and more fields of Prompt) to its Prompt, which raises RowError or ImageError."""
    images, ids, prefix = ImageFolder(image_root, check_images), UniqueIds(), keyword or path.stem

    def parse(row: Row, **more: Any) -> Prompt:
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
    """`class1` in one spelling, empty where the row has none."""
    value = row.get("class1")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"'class1' must be a string, found {type(value).__name__}")
    return normal_label(value)
