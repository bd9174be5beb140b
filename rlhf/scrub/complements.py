"""What a verb says of a person or of what a person has: "she is young and happy", "his eyes are blue"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf.scrub.grammar import is_verb_in_s
from rlhf.scrub.patterns import Patterns
from rlhf.scrub.people import FUNCTION, is_head, of_a_person
from rlhf.scrub.removal import Drop, clause_end, finite, follows, separator
from rlhf.scrub.subjects import ASIDES, CONJUNCTIONS, Subject, people_before, subject_of
from rlhf.scrub.taxonomy import Attribute, word_list
from rlhf.scrub.text import Edit, Text

_DEGREES = word_list("degrees")
_LOOSE = word_list("loose")
_SIZES = word_list("sizes") | word_list("colours")
_OPENERS = word_list("openers")
_MOSTLY_THINGS = word_list("mostly_things")
_TWO_WORDS = frozenset((("a", "bit"), ("a", "little"), ("kind", "of"), ("sort", "of"), ("a", "lot"), ("no", "longer")))
_COUNTED = frozenset(("they", "people", "group", "crowd", "family", "team", "couple", "staff", "we", "you"))
_CONTRACTED = frozenset(("he's", "she's", "who's", "they're"))
_PLURAL = frozenset(("are", "were", "look", "seem", "appear", "have", "remain", "become", "aren't", "weren't"))
_HAVING = {"is": "has", "are": "have", "was": "had", "were": "had"}
_OLDEST = 115  # years
_MOST_ITEMS = 6


@dataclass(frozen=True, slots=True)
class _Item:
    """One of the things that are said, from word `start` to before word `end`; it tells these attributes."""

    start: int
    end: int
    told: tuple[Attribute, ...]


def predicate_edits(text: Text, known: Patterns) -> Iterator[Edit]:
    """What "is", "looks" and the like say of a person or of what a person has."""
    for word in text.words:
        place = word.start if word.lower not in _CONTRACTED else word.end - word.lower[::-1].index("'") - 1
        match = known.verb.match(text.lower, place) if word.lower in known.verb_starts else None
        if match is None:
            continue
        verb = match["verb"]
        plural = verb.split()[0] in _PLURAL or verb.endswith("re")
        if match["participle"]:
            near = of_a_person(text, match.start())
            subject = Subject("person", match.start(), "person", match.start()) if near else None
        else:
            subject = subject_of(text, match.start(), plural)
        first = text.count_before(match.end())
        items = _items(text, known, first, subject, plural) if subject else []
        if subject is None or not any(item.told for item in items):
            continue
        words = {text.words[one].lower for one in range(items[0].start, items[0].end)}
        negated = "n't" in verb or " not" in verb or not words.isdisjoint(("not", "never", "longer", "neither"))
        if all(item.told for item in items) or negated:
            told = dict.fromkeys(one for item in items for one in item.told)
            having = _HAVING.get(verb) if not negated else None
            drop = Drop(text, subject, match.start(), items[0].start, items[-1].end, plural, having)
            yield from (drop.edit(attribute, "predicate") for attribute in told)
        else:
            yield from _without_some(text, items)


def verb_said(text: Text, known: Patterns) -> Iterator[Edit]:
    """ "weighs 80 kg", "turned 50 last week"."""
    for search in known.verbs:
        for match in search.finditer(text):
            first, last = text.count_before(match.start()), text.count_before(match.end())
            subject = subject_of(text, match.start()) if follows(text, last) != "noun" else None
            if subject is not None and subject.kind == "person":
                yield Drop(text, subject, match.start(), first, last, False, None).edit(search.attribute, search.rule)


def _items(text: Text, known: Patterns, index: int, subject: Subject, plural: bool) -> list[_Item]:
    """The adjectives and phrases from word `index` on that are said of the subject."""
    items: list[_Item] = []
    while len(items) < _MOST_ITEMS:
        item = _item(text, known, index, subject, plural)
        if item is None:
            break
        items.append(item)
        after = separator(text, item.end)
        if after is None:
            break
        index = after
    return items


def _item(text: Text, known: Patterns, start: int, subject: Subject, plural: bool) -> _Item | None:
    words, index = text.words, start
    found = _value(text, known, index, subject, plural)
    while found is None and index - start < 5:
        step = _step(text, index)
        if not step or not text.adjacent(start, index + step):
            break
        index += step
        found = _value(text, known, index, subject, plural)
    if found is not None:
        return _telling(text, start, index, found, subject, plural)
    lower = words[index].lower if text.adjacent(start - 1, index) else ""
    if not lower or not words[index].is_word or lower in FUNCTION or text.taxonomy.is_person(words[index].bare):
        return None
    verb = finite(text, index, plural) or is_verb_in_s(lower)
    ends = follows(text, index + 1) in ("end", "comma", "conj", "prep")
    return _Item(start, index + 1, ()) if ends and not verb else None


def _telling(
    text: Text, start: int, index: int, found: tuple[int, tuple[Attribute, ...]], subject: Subject, plural: bool
) -> _Item | None:
    """The item with its complement ("older than his friend"); None where the word describes a noun."""
    words, (end, told) = text.words, found
    degrees = {word.lower for word in words[start:index]}
    following = words[end].lower if text.adjacent(end - 1, end) else ""
    if (
        following in ("than", "enough")
        or (following == "as" and "as" in degrees)
        or (following == "to" and "too" in degrees)
    ):
        return _Item(start, clause_end(text, end + 1), told)
    after = follows(text, end)
    loose = subject.kind == "person" and words[index].lower in _LOOSE and after == "prep" and following != "with"
    noun = after == "noun" and (text.taxonomy.is_person(words[end].bare) or not finite(text, end, plural))
    return None if noun or loose else _Item(start, end, told)


def _step(text: Text, index: int) -> int:
    """How many words of degree or of doubt stand at `index`."""
    if index >= len(text.words):
        return 0
    lower = text.words[index].lower
    if lower in _DEGREES or lower in ASIDES or (lower.endswith("ly") and len(lower) > 4):
        return 1
    following = text.words[index + 1].lower if text.adjacent(index, index + 1) else ""
    return 2 if (lower, following) in _TWO_WORDS else 0


def _value(
    text: Text, known: Patterns, index: int, subject: Subject, plural: bool
) -> tuple[int, tuple[Attribute, ...]] | None:
    """What the word at `index` or a phrase from it on tells of the subject, and the word after it."""
    if index >= len(text.words):
        return None
    word = text.words[index]
    told = text.taxonomy.modifiers.get(word.lower) if subject.kind == "person" else None
    if told is not None:
        unsure = subject.word in _MOSTLY_THINGS or subject.word == "they"
        they = subject.word == "they" and people_before(text, text.sentence_of(index).start)
        if unsure and word.lower in _SIZES and not they:
            return None
        return None if text.is_protected(word.start, word.end) else (index + 1, (told,))
    if subject.kind == "person" and not (word.text[0].isdigit() or word.lower.partition("-")[0] in _OPENERS):
        return None
    for attribute, pattern in known.said[subject.kind]:
        match = pattern.match(text.lower, word.start)
        if match is not None and (end := text.count_before(match.end())) > index:
            return end, (attribute,)
    if subject.kind == "person" and "age" in text.taxonomy.attributes:
        return _bare_number(text, known, index, subject, plural)
    return None


def _bare_number(
    text: Text, known: Patterns, index: int, subject: Subject, plural: bool
) -> tuple[int, tuple[Attribute, ...]] | None:
    """ "is 45", "looks about five": an age where nothing is counted and the subject is one person."""
    match = known.number.match(text.lower, text.words[index].start)
    several = plural and match is not None and not re.match(r"(?:under|over|at least|at most) ", match["about"])
    if match is None or several or subject.word in _COUNTED or subject.word in _MOSTLY_THINGS:
        return None
    end = text.count_before(match.end())
    after = follows(text, end)
    then = after == "prep" and text.words[end].lower in ("when", "while", "at", "because", "but", "with")
    if end <= index or not (after in ("end", "comma", "conj", "adverb") or then):
        return None
    figures = re.findall(r"\d+", match.group())
    if any(not 0 < int(one) <= _OLDEST for one in figures):
        return None
    small = not figures and not match["about"] and not re.search(r"ty|teen|\bten\b|eleven|twelve", match.group())
    return None if small and not _tells_alone(text, subject) else (end, ("age",))


def _tells_alone(text: Text, subject: Subject) -> bool:
    """Whether the subject is one person for sure, so that "is five" is no count."""
    known = text.taxonomy.person(subject.word)
    return subject.word in ("he", "she", "he's", "she's", "who") or (known is not None and "age" in known.tells)


def _without_some(text: Text, items: Sequence[_Item]) -> Iterator[Edit]:
    """The list with what tells nothing."""
    words = text.words
    kept = [text.text[words[one.start].start : words[one.end - 1].end] for one in items if not one.told]
    joints = [words[two.start - 1].lower for two in items[1:]]
    joint = next((one for one in reversed(joints) if one in CONJUNCTIONS), "and")
    said = kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])} {joint} {kept[-1]}"
    for attribute in dict.fromkeys(one for item in items for one in item.told):
        yield Edit(words[items[0].start].start, words[items[-1].end - 1].end, said, attribute, "predicate")


def appositions(text: Text, known: Patterns) -> Iterator[Edit]:
    """What stands between commas or brackets after a person: "the man, old and tired,", "a girl (7)"."""
    words = text.words
    for index in range(1, len(words) - 1):
        if words[index].text not in (",", "(") or not text.adjacent(index - 1, index + 1):
            continue
        subject = _apposed(text, index)
        items = _items(text, known, index + 1, subject, False) if subject else []
        if not any(item.told for item in items):
            continue
        while not items[-1].told and words[items[-1].start - 1].text == ",":
            items.pop()  # a verb: "the couple, both elderly, dance"
        last = items[-1].end
        closing = words[last].text if text.adjacent(index, last) else "."
        if closing not in ((")",) if words[index].text == "(" else (",", ".", ";", "!", "?")):
            continue
        if not all(item.told for item in items):
            yield from _without_some(text, items)
            continue
        start, end = words[index - 1].end, words[last].end if closing in ",)" else words[last - 1].end
        for attribute in dict.fromkeys(one for item in items for one in item.told):
            yield Edit(start, end, "", attribute, "apposition")


def _apposed(text: Text, index: int) -> Subject | None:
    """The person in front of a comma or bracket; a name counts for a number, and where only a verb can follow."""
    word, bracket = text.words[index - 1], text.words[index].text == "("
    number = text.words[index + 1].text[0].isdigit()
    if text.is_protected(word.start, word.end) or word.possessive:
        return None
    if text.taxonomy.is_person(word.bare) and is_head(text, index - 1):
        tells = text.taxonomy.person(word.bare) is not None
        return Subject("person", word.start, word.bare) if tells or not (bracket and number) else None
    if (
        not number
        or not word.capitalised
        or not text.adjacent(index, index + 3)
        or text.words[index + 2].text not in ",)"
    ):
        return None
    kin = index > 1 and text.taxonomy.is_person(text.words[index - 2].bare)
    named = kin if bracket else finite(text, index + 3, False) or text.words[index + 3].lower in ("and", "who", "of")
    return Subject("person", word.start, "who") if named else None
