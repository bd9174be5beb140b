"""From a data set's rows to requests, and from a file of answers to verdicts: both ends of an evaluation.

A file of predictions is JSON lines {id, response}, whoever made it; each response is read under its own row's policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, Row, UniqueIds, read_json_rows, read_rows, text_of
from rlhf.errors import RowError
from rlhf.guard.policy import KEYS, build_policy
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
        identifier = text_of({"id": str(row.get("id", ""))}, "id")
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


def asked_again(requests: Sequence[GuardRequest]) -> list[str]:
    """Ids of requests that ask the same about an image as an earlier one does: they count twice in every rate."""
    first: dict[tuple[str, str], str] = {}
    return [one.id for one in requests if first.setdefault((one.image, one.text), one.id) != one.id]


def read_predictions(path: Path, requests: Sequence[GuardRequest], rejected: RejectedRows) -> dict[str, Verdict]:
    """Verdicts by id, each read under its request's policy. An id that nobody asked is kept, as `invalid`.

    `metrics.align` then reports it as extra. A repeated id or a line without response is refused.
    """
    policies, ids = {request.id: request.policy for request in requests}, UniqueIds()

    def parse(row: Row, _: int) -> tuple[str, Verdict]:
        identifier = text_of({"id": str(row.get("id", ""))}, "id")
        ids.check(identifier)
        response = row.get("response")
        if not isinstance(response, str):
            raise RowError(f"'response' must be a string, found {type(response).__name__}")
        if identifier not in policies:
            return identifier, Verdict("invalid", None, (), "", response, "no row has this id")
        return identifier, parse_verdict(response, policies[identifier])

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


def _quoted(row: Row, key: str) -> str | None:
    """What a row quotes, which may be empty; None where it quotes nothing."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key!r} must be a string, found {type(value).__name__}")
    return value
