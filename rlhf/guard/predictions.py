"""From a data set's rows to requests, and from a file of answers to verdicts: both ends of an evaluation.

A file of predictions is JSON lines {id, response}, whoever made it; how a response is read depends on who that was
(`baselines.py`), and a guard's is read under its own row's policy.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf.data.prepared import file_hash
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, Row, UniqueIds, id_of, read_json_rows, read_rows
from rlhf.errors import RowError
from rlhf.guard.metrics import Truth
from rlhf.guard.policy import KEYS, Policy, build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import Taxonomy
from rlhf.guard.verdict import Verdict, parse_verdict
from rlhf.ledger import write_whole


def read_requests(
    path: Path,
    image_root: Path,
    taxonomy: Taxonomy,
    rejected: RejectedRows,
    keys: Sequence[str] = KEYS,
    check_images: bool = True,
) -> list[GuardRequest]:
    """A request per row of a file that `dataset.py` wrote, under the policy of its overrides.

    A row about an answer has it as `said`, and its question as `asked`. A row whose conversation asks with another text
    is refused: it was made with another taxonomy or other keys, and its truth would be that of another policy. Bad
    rows and images go to `rejected`.
    """
    images, ids = ImageFolder(image_root, check_images), UniqueIds()

    def parse(row: Row) -> GuardRequest:
        identifier = id_of(row)
        ids.check(identifier)
        overrides = row.get("overrides")
        if not isinstance(overrides, dict):
            raise RowError(f"'overrides' must be a map of variants by category, found {overrides!r}")
        policy = build_policy(taxonomy, overrides, keys)
        image = images.path_of(row)
        if image is None:
            raise RowError("'image' is missing")
        request = GuardRequest(identifier, image, policy, _quoted(row, "said"), _quoted(row, "asked"))
        turns = row.get("conversations")
        given = turns[0].get("value", "") if isinstance(turns, list) and turns and isinstance(turns[0], dict) else ""
        if not str(given).endswith(request.text):
            raise RowError(
                f"the row asks with another policy than taxonomy {taxonomy.name!r} and keys {list(keys)} make"
            )
        return request

    return read_rows(path, parse, rejected)


def repetitions(requests: Sequence[GuardRequest], truths: Sequence[Truth]) -> dict[str, Any]:
    """Rows that ask the same about an image as an earlier one does, and those of them that are told another truth.

    Equal files are one image, whatever they are called; a path without a file is an image of its own. `repeated` has
    ids that count twice in every rate. `contradictions` has lists of ids of which at least one truth is wrong, because
    rating or category differ.
    """
    told = {truth.id: (truth.rating, truth.category) for truth in truths}
    asked, image = defaultdict[tuple[str, str], list[str]](list), lru_cache(maxsize=None)(_content_of)
    for one in requests:
        asked[image(one.image), one.text].append(one.id)
    return {
        "repeated": [name for ids in asked.values() for name in ids[1:]],
        "contradictions": [ids for ids in asked.values() if len({told.get(name) for name in ids} - {None}) > 1],
    }


def text_in(response: Any) -> str:
    """A response that is text. Raises RowError."""
    if not isinstance(response, str):
        raise RowError(f"'response' must be a string, found {type(response).__name__}")
    return response


def read_predictions(
    path: Path,
    requests: Sequence[GuardRequest],
    rejected: RejectedRows,
    read: Callable[[Any, Policy], Verdict] = lambda response, policy: parse_verdict(text_in(response), policy),
) -> dict[str, Verdict]:
    """Verdicts by id, each read under its request's policy. An id that nobody asked is kept, as `invalid`.

    `metrics.align` then reports it as extra. A repeated id, or a line without a response that `read` takes, is refused.
    """
    policies, ids = {request.id: request.policy for request in requests}, UniqueIds()

    def parse(row: Row, _: int) -> tuple[str, Verdict]:
        identifier = id_of(row)
        ids.check(identifier)
        if "response" not in row:
            raise RowError("key 'response' is missing")
        if identifier not in policies:
            return identifier, Verdict("invalid", None, (), "", str(row["response"]), "no row has this id")
        return identifier, read(row["response"], policies[identifier])

    return dict(read_json_rows(path, parse, rejected))


def write_predictions(path: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Write verdicts as JSON lines that `read_predictions` reads, with what was made of them, whole or not at all."""
    lines = [prediction_line(name, one) for name, one in verdicts.items()]
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def prediction_line(name: str, verdict: Verdict) -> dict[str, Any]:
    """A line of a file of predictions: the answer, and what was made of it."""
    return {
        "id": name,
        "response": verdict.raw,
        "status": verdict.status,
        "rating": verdict.rating,
        "categories": list(verdict.categories),
        "reason": verdict.reason,
    }


def _content_of(image: str) -> str:
    path = Path(image)
    return str(file_hash(path)["sha256"]) if path.is_file() else image


def _quoted(row: Row, key: str) -> str | None:
    """What a row quotes, which may be empty; None where it quotes nothing."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key!r} must be a string, found {type(value).__name__}")
    return value
