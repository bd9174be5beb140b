"""VLGuard's rows as LLaVA conversations: one for each image, in the order that the published converter gives them.

Source: VLGuard seed page, section 2. A safe image's two pairs are shuffled and become one conversation of four turns,
so that a refusal may stand before or after a normal answer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from rlhf.data.rows import IMAGE_TAG
from rlhf.data.vlguard import GuardRow
from rlhf.errors import ConfigError, DataError


def convert(
    rows: Sequence[GuardRow], *, seed: int = 0, image_prefix: str = "", source: str = ""
) -> list[dict[str, Any]]:
    """A conversation for every row, in file order; keys id, image, safe, categories where unsafe, conversations.

    One generator, seeded once, shuffles each safe row's pairs in turn: seed 0 gives the published order. The image tag
    stands directly before the first question. `image_prefix` is put before every image path, for an image root that
    other data share. Raises DataError, naming `source` and all rows, where texts cannot be trained on, and ConfigError
    for a prefix that leads out of that root.
    """
    prefix = PurePosixPath(image_prefix)
    if prefix.is_absolute() or ".." in prefix.parts:
        raise ConfigError([f"image_prefix: {image_prefix!r} must stay below the image folder"])
    if problems := [f"\n  row {row.index}, id {row.id}: {one}" for row in rows for one in _problems(row)]:
        raise DataError(f"{len(problems)} texts cannot be trained on; mend them:{''.join(problems)}", source=source)
    draws = random.Random(seed)
    return [_conversation(row, draws, image_prefix) for row in rows]


def conversation_counts(conversations: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many conversations there are, and how many have two and four turns."""
    turns = Counter(len(one["conversations"]) for one in conversations)
    return {"conversations": len(conversations), "two_turns": turns[2], "four_turns": turns[4]}


def _problems(row: GuardRow) -> Iterator[str]:
    for pair in row.pairs:
        if IMAGE_TAG in pair.instruction or IMAGE_TAG in pair.response:
            yield f"the {pair.kind} or its answer has an {IMAGE_TAG} tag; remove it"
        if not pair.response.strip():
            yield f"the answer to the {pair.kind} is empty: nothing to imitate; remove the row"


def _conversation(row: GuardRow, draws: random.Random, prefix: str) -> dict[str, Any]:
    pairs = list(row.pairs)
    if row.safe:
        draws.shuffle(pairs)
    turns: list[dict[str, str]] = []
    for pair in pairs:
        tag = "" if turns else IMAGE_TAG
        turns += [{"from": "human", "value": f"{tag}{pair.instruction}"}, {"from": "gpt", "value": pair.response}]
    labels = {} if row.safe else {"harmful_category": row.category, "harmful_subcategory": row.subcategory}
    image = f"{prefix.rstrip('/')}/{row.image}" if prefix else row.image
    return {"id": row.id, "image": image, "safe": row.safe, **labels, "conversations": turns}
