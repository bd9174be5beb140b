"""A conversation without biometric information, with a record of every change."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.data.template import IMAGE_TAG
from rlhf.errors import RowError
from rlhf.scrub.questions import asked_attributes
from rlhf.scrub.rewrite import Cue, find_cues, rewrite
from rlhf.scrub.taxonomy import Attribute, Taxonomy
from rlhf.scrub.text import Context

REFUSAL = "I'm sorry, but I don't describe age, gender, race, eye colour or weight of people."
VERSION = "1"

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class LeakError(RowError):
    """A row whose rewritten text still tells an attribute, or says something else than before."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the lineage: why a turn is not what it was. Offsets are characters of the turn as it was."""

    turn: int
    speaker: str
    attribute: Attribute
    rule: str
    start: int
    end: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A row as it may be trained on, and what was changed in it."""

    row: dict[str, Any]
    changes: list[Change]


def scrub_row(row: Mapping[str, Any], taxonomy: Taxonomy) -> Scrubbed:
    """The row with every turn said neutrally; ids, image, turn count and image tags stay.

    A question that asks for an attribute keeps its text and its answer becomes the refusal; what is told in passing is
    rewritten. Raises RowError for a malformed row, LeakError where the result still leaks or lost something else.
    """
    turns = _turns(row)
    context, changes, scrubbed = Context(), [], []
    asked: frozenset[Attribute] = frozenset()
    for number, turn in enumerate(turns):
        text = turn["value"]
        if turn["from"] == "human":
            asked = asked_attributes(text.replace(IMAGE_TAG, " "), taxonomy, context)
            new, cues = (text, []) if asked else _neutral(text, taxonomy, context)
        elif asked:
            new, cues = REFUSAL, [Cue(0, len(text), attribute, "asked") for attribute in sorted(asked)]
        else:
            new, cues = _neutral(text, taxonomy, context)
            if not new.strip():
                new = REFUSAL
        if new != text:
            before, after = _hash(text), _hash(new)
            changes += [
                Change(number, turn["from"], one.attribute, one.rule, one.start, one.end, before, after) for one in cues
            ]
        context = _seen(text, taxonomy, context)
        scrubbed.append({**turn, "value": new})
    return Scrubbed({**row, "conversations": scrubbed}, changes)


def _neutral(text: str, taxonomy: Taxonomy, context: Context) -> tuple[str, list[Cue]]:
    cues = find_cues(text, taxonomy, context)
    if not cues:
        return text, []
    new = rewrite(text, taxonomy, context)
    if left := find_cues(new, taxonomy, context):
        raise LeakError(f"still tells {', '.join(sorted({cue.attribute for cue in left}))}: {new!r}")
    _check_meaning(text, new, cues)
    return new, cues


def _check_meaning(before: str, after: str, cues: list[Cue]) -> None:
    """Image tags and numbers outside what was taken away are as they were."""
    if before.count(IMAGE_TAG) != after.count(IMAGE_TAG):
        raise LeakError(f"the image tag was lost: {after!r}")
    taken = [(cue.start, cue.end) for cue in cues]
    kept = [match.group() for match in _NUMBER.finditer(before) if not any(a <= match.start() < b for a, b in taken)]
    if lost := Counter(kept) - Counter(_NUMBER.findall(after)):
        raise LeakError(f"numbers were lost ({', '.join(sorted(lost))}): {after!r}")


def _turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RowError("'conversations' must be a list of turns that is not empty")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("from") not in ("human", "gpt"):
            raise RowError(f"turn {number} of 'conversations' must be from 'human' or 'gpt'")
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            raise RowError(f"turn {number} has no text")
        if turn["from"] == "gpt" and IMAGE_TAG in turn["value"]:
            raise RowError(f"turn {number} is an answer with an {IMAGE_TAG} tag")
        if number and turn["from"] == turns[number - 1]["from"]:
            raise RowError(f"turns {number - 1} and {number} are both from {turn['from']!r}")
    return turns


def _seen(text: str, taxonomy: Taxonomy, context: Context) -> Context:
    words = {word.strip(".,;:!?\"'()").lower().removesuffix("'s") for word in text.split()}
    people = context.people or any(taxonomy.is_person(word) for word in words)
    animals = context.animals or bool(words & taxonomy.animals)
    return context if (people, animals) == (context.people, context.animals) else Context(people, animals)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
