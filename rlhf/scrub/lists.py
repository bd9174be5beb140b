"""Attributes among other things that somebody has: "with dark skin, a red hat and blue eyes"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.scrub.clauses import clause_at
from rlhf.scrub.patterns import patterns
from rlhf.scrub.people import of_a_person
from rlhf.scrub.taxonomy import Attribute
from rlhf.scrub.text import Edit, Text

_VERB = re.compile(r"\b(?:(?:has|have|had|having|with)(?: got)?|got)\s+", re.IGNORECASE)
_BETWEEN = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)
_LEAVES = r"is|are|was|were|who|that|which|in|on|at|while|as|but|wearing|holding|standing|sitting"  # the list
_WORD = rf"(?!(?:and|{_LEAVES})\b)[\w'\u2019-]+"
# up to six words, none of which begins something else
_OTHER = re.compile(
    rf"{_WORD}(?:[ \t]+{_WORD}){{0,5}}?(?=\s*,|\s+and\b|\s*[.;:!?]|\s+(?:{_LEAVES})\b|\s*$)", re.IGNORECASE
)
_MOST = 8  # things in one list


@dataclass(frozen=True, slots=True)
class _Thing:
    start: int
    end: int
    attribute: Attribute | None


def list_edits(text: Text) -> Iterator[Edit]:
    """Removal of what tells an attribute from lists of two and more things; the others stay a list.

    Where nothing else is in the list, its first thing stays for the rules of clauses, which take the verb too.
    """
    for match in _VERB.finditer(text.text):
        things = _things(text, match.end(), match.group().lower().startswith("have"))
        telling = [one for one in things if one.attribute is not None]
        if len(things) < 2 or not telling or text.is_protected(match.start(), things[0].end):
            continue
        if of_a_person(text, match.start()):
            yield from _without(things)


def _without(things: list[_Thing]) -> Iterator[Edit]:
    kept = [one for one in things if one.attribute is None] or things[:1]
    for place, thing in enumerate(things):
        if thing.attribute is None or thing in kept:
            continue
        if thing.start > kept[0].start:
            yield Edit(things[place - 1].end, thing.end, "", thing.attribute, "list")
        else:
            yield Edit(thing.start, things[place + 1].start, "", thing.attribute, "list")
    last = things.index(kept[-1])
    if (
        len(kept) > 1 and last < len(things) - 1 and things[last - 1].attribute is None
    ):  # "a hat, a scarf and blue eyes"
        yield Edit(things[last - 1].end, kept[-1].start, " and ", things[-1].attribute or "age", "agreement")


def _things(text: Text, place: int, plural: bool) -> list[_Thing]:
    known, found = patterns(text.taxonomy.attributes).things, list[_Thing]()
    while len(found) < _MOST:
        thing = next(
            (_Thing(place, match.end(), search.attribute) for search in known if (match := search.match(text, place))),
            None,
        )
        if thing is None:
            other = _OTHER.match(text.text, place)
            if other is None or (found and clause_at(text, text.count_before(place), plural)):
                return found
            thing = _Thing(place, other.end(), None)
        found.append(thing)
        between = _BETWEEN.match(text.text, thing.end)
        if between is None:
            return found
        place = between.end()
    return found
