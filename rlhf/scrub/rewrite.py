"""One turn of text without biometric attributes, and what told them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf.scrub.clauses import clause_edits
from rlhf.scrub.lists import list_edits
from rlhf.scrub.patterns import patterns
from rlhf.scrub.people import people_edits
from rlhf.scrub.pronouns import pronoun_edits
from rlhf.scrub.taxonomy import Attribute, Taxonomy
from rlhf.scrub.text import NOTHING_YET, Context, Text, apply


@dataclass(frozen=True, slots=True)
class Cue:
    """A place of the original text that tells an attribute, and the rule that found it."""

    start: int
    end: int
    attribute: Attribute
    rule: str


_PASSES = (list_edits, clause_edits, people_edits, pronoun_edits)
_ROUNDS = 4  # removals that overlap are made one after the other
_FORMAL = frozenset(("article", "agreement"))  # what follows from a change and tells nothing itself
_SAME = re.compile(
    r"\b(?P<first>(?:an?|the|his|her|their|one)\s+)?(?P<word>person|parent|sibling|spouse|student|server|relative|grandparent|"
    r"offspring|partner) and (?:(?:an?|the|another|his|her|their|one)\s+)?(?P=word)\b(?!')",
    re.IGNORECASE,
)
_LISTED = re.compile(
    r"\ban? person, (?:an?|another) person(?=,? and\b)(?:,(?= and (?:an?|two|three) ))?", re.IGNORECASE
)
_SAME_MANY = re.compile(r"\b(?P<many>people|siblings|parents|students) and (?:the )?(?P=many)\b(?!')", re.IGNORECASE)
_ALONE = re.compile(r"(?:(?<=[.!?])|^)\s*[.!?](?=\s|\Z)")  # what is left of a sentence that went
_DOTS = re.compile(r"[.!?]\s*[.!?]|^\s*[.!?]")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_COUNT = "|".join(_NUMBERS[:-1])
_COUNTED = re.compile(
    rf"\b(?P<left>an?|{_COUNT}) (?:person|people) and (?P<right>an?|another|{_COUNT}) (?:person|people)\b(?!')",
    re.IGNORECASE,
)
_PLURALS = {"person": "people", "offspring": "offspring", "spouse": "spouses"}


def find_cues(text: str, taxonomy: Taxonomy, context: Context = NOTHING_YET) -> list[Cue]:
    """Every place that tells an attribute of a person, in order; the verifier asks for none."""
    if not patterns(taxonomy.attributes).may_tell(text):
        return []
    read = Text(text, taxonomy, context)
    edits = [edit for step in _PASSES for edit in step(read) if edit.rule not in _FORMAL]
    found = {Cue(one.start, one.end, one.attribute, one.rule) for one in edits}
    # whole, because a set of strings has another order in every process
    return sorted(found, key=lambda cue: (cue.start, cue.end, cue.attribute, cue.rule))


def rewrite(text: str, taxonomy: Taxonomy, context: Context = NOTHING_YET) -> str:
    """The text said neutrally; the same text if nothing in it tells an attribute. May become empty."""
    may_tell = patterns(taxonomy.attributes).may_tell
    if not may_tell(text):
        return text
    read = Text(text, taxonomy, context)
    for _ in range(_ROUNDS):
        before = read
        for step in _PASSES:
            if edits := list(step(read)):
                read = Text(apply(read.text, edits), taxonomy, context)
        if read is before or not may_tell(read.text):
            break
    return text if read.text == text else _tidy(text, read.text)


def _tidy(before: str, text: str) -> str:
    """Joined twins, single spaces, a capital and a full stop where the original had them."""
    text = _SAME_MANY.sub(lambda match: match.group(1), text)
    text = _LISTED.sub(lambda match: ("Two" if match.group()[0].isupper() else "two") + " people", text)
    text = _SAME.sub(_twins, text)
    text = _COUNTED.sub(_counted, text)
    text = re.sub(r"\b([Tt]here) is (?=(?:two|three|four|five) )", r"\1 are ", text)
    text = re.sub(r"(?<=\S)[ \t]+([.,;:!?])", r"\1", text)
    text = re.sub(r"([,;:])\s*(?=[.!?])", "", text)
    text = re.sub(r"(?<=[^\s])[ \t]{2,}", " ", text)
    text = re.sub(r"(^|[.!?]\s+)[,;]\s*", r"\1", text)
    if not _DOTS.search(before):
        text = _ALONE.sub("", text)
    lead = before[: len(before) - len(before.lstrip())]
    text = lead + text.strip() + before[len(before.rstrip()) :]
    text = (
        re.sub(r"([.!?]\s+)([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)
        if _capital(before)
        else text
    )
    stripped = text.lstrip()
    if before.lstrip()[:1].isupper() and stripped[:1].islower():
        text = text[: len(text) - len(stripped)] + stripped[0].upper() + stripped[1:]
    return text


def _capital(text: str) -> bool:
    """Whether every sentence of the text starts with a capital, as in prose."""
    return not re.search(r"[.!?]\s+[a-z]", text)


def _twins(match: re.Match[str]) -> str:
    word = match["word"].lower()
    first = (match["first"] or "").strip().lower()
    several = f"two {_PLURALS.get(word, word + 's')}"
    if first in ("the", "his", "her", "their"):
        several = f"{first} {several}"
    start = match.group()[:1]
    return several.capitalize() if start.isupper() else several


def _counted(match: re.Match[str]) -> str:
    total = sum(
        _NUMBERS.index(one) + 1 if one in _NUMBERS else 1 for one in (match["left"].lower(), match["right"].lower())
    )
    shown = _NUMBERS[total - 1] if total <= len(_NUMBERS) else str(total)
    return f"{shown.capitalize() if match.group()[:1].isupper() else shown} people"
