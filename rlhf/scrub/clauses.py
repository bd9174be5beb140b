"""Attributes told by a phrase, by what somebody has or by a line of a sheet: "with blue eyes", "aged 7", "Age: 30"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf.scrub.complements import appositions, predicate_edits, verb_said
from rlhf.scrub.patterns import Patterns, patterns
from rlhf.scrub.people import DETERMINERS, PERSONAL, POSSESSIVE, article_edit, of_a_person
from rlhf.scrub.removal import Drop, finite, follows, separator
from rlhf.scrub.subjects import AUXILIARIES, people_before, subject_of
from rlhf.scrub.taxonomy import Attribute, word_list
from rlhf.scrub.text import Edit, Spans, Text

_PERSONAL_KEYS = frozenset(
    ("gender", "sex", "race", "ethnicity", "complexion", "nationality", "eye color", "eye colour")
)
_SAYING = AUXILIARIES | {"looks", "look", "looked", "seemed", "appeared", "seem", "appear", "like", "be", "been"}
_GROUPS = word_list("groups") | {"couple"}
_ONE_YEAR = re.compile(r"(?:year|yr|month|week|day)[ -]old|y/?o\Z")
_NEAR = 5  # words from a place in which somebody is looked for
_OPEN = re.compile(r"\s*\(\s*$")
_BRACKETS = 3  # characters in front of a phrase in which its bracket is looked for


def clause_edits(text: Text) -> Iterator[Edit]:
    """Removal of clauses and phrases that tell an attribute of a person; of two that overlap the clause counts."""
    known = patterns(text.taxonomy.attributes)
    clauses = [*predicate_edits(text, known), *appositions(text, known)]
    phrases = [*_numbers(text, known)]
    if not known.needs.isdisjoint(text.runs):
        clauses += [*_sheet(text, known), *verb_said(text, known), *_possessions(text, known)]
        phrases += [*_phrases(text, known), *_words(text, known)]
    yield from clauses
    taken, gone = (Spans((one.start, one.end) for one in clauses if there or not one.replacement) for there in (1, 0))
    for edit in phrases:
        if not taken.touch(edit.start, edit.end) or gone.cover(edit.start, edit.end):
            yield edit


def _sheet(text: Text, known: Patterns) -> Iterator[Edit]:
    """Lines of "Age: 30", if they are about a person for sure."""
    found = [(search, match) for search in known.sheet for match in search.finditer(text)]
    if not found or text.with_animals or not text.context.somebody:
        return
    keys = {match["key"] for _, match in found}
    if not keys & _PERSONAL_KEYS and not any(text.taxonomy.is_person(word.bare) for word in text.words):
        return
    for search, match in found:
        yield Edit(match.start(), match.end(), "", search.attribute, search.rule)


def _possessions(text: Text, known: Patterns) -> Iterator[Edit]:
    """ "has blue eyes", "with dark skin and a hat": what stays after "and" keeps its verb or preposition."""
    for search in known.possessions:
        for match in search.finditer(text):
            if text.is_protected(match.start(), match.end()) or not of_a_person(text, match.start("value")):
                continue
            value, last = text.count_before(match.start("value")), text.count_before(match.end("value"))
            verb = match["verb"]
            if verb in ("with", "having"):
                joint = separator(text, last)
                if joint is not None and not clause_at(text, joint):
                    yield Edit(match.start("value"), text.words[joint].start, "", search.attribute, search.rule)
                continue
            subject = subject_of(text, match.start())
            if subject is not None and subject.kind == "person":
                drop = Drop(text, subject, match.start(), value, last, verb == "have", verb, has=True)
                yield drop.edit(search.attribute, search.rule)


def _phrases(text: Text, known: Patterns) -> Iterator[Edit]:
    """ "aged 7", "with blue eyes", "Mr.", where they stand."""
    for search in known.phrases:
        for match in search.finditer(text):
            start, end = match.span()
            if text.is_protected(start + 1, end) or not _of_somebody(text, start):
                continue
            if not _is_said(text, start) and not (search.rule == "years" and _describes(text, match)):
                yield Edit(*_with_signs(text, start, end), "", search.attribute, search.rule)
    for search in known.addresses:
        for match in search.finditer(text):
            names = (
                text.text[match.start() : match.start() + 2].istitle()
                and text.text[match.end() : match.end() + 1].isupper()
            )
            if (names or search.rule != "title") and not text.is_protected(*match.span()):
                yield Edit(*match.span(), "", search.attribute, search.rule)


def _of_somebody(text: Text, place: int) -> bool:
    """Whether a phrase at this place is about a person: the last one known, or, in front of a sentence, the next."""
    first = text.count_before(place)
    if first < len(text.words) and not text.starts_sentence(first):
        return of_a_person(text, place)
    sentence = text.sentence_of(first) if first < len(text.words) else range(0)
    nearest = next((text.known[index] for index in sentence if text.known[index] >= 0), -1)
    if nearest < 0:
        return False
    word = text.words[nearest]
    return word.lower in PERSONAL or word.lower in POSSESSIVE or text.taxonomy.is_person(word.bare)


def _is_said(text: Text, place: int) -> bool:
    """Whether a verb stands in front: then the rules of predicates have decided."""
    index = text.count_before(place) - 1
    if index < 0:
        return False
    lower = text.words[index].lower
    return lower in _SAYING or lower.endswith(("'s", "'re")) and lower in PERSONAL


def _describes(text: Text, match: re.Match[str]) -> bool:
    """Whether "3 year old" is an adjective or a noun here, not a phrase of its own: "a 3 year old girl"."""
    if _ONE_YEAR.search(match.group()) and not match.group().startswith(","):
        return True
    index, last = text.count_before(match.start()), text.count_before(match.end())
    before = text.words[index - 1].lower if index and text.adjacent(index - 1, index) else ""
    return before in DETERMINERS or follows(text, last) == "noun" and not finite(text, last, True)


def _with_signs(text: Text, start: int, end: int) -> tuple[int, int]:
    """A phrase between two commas or brackets takes both with it, and one in front of a sentence its comma."""
    opening = _OPEN.search(text.text, max(0, start - _BRACKETS), start + 1)
    if opening and text.text[end : end + 1] == ")":
        return opening.start(), end + 1
    both = text.text[start:end].lstrip().startswith(",") and text.text[end : end + 1] == ","
    leads = text.text[end : end + 2] == ", " and text.starts_sentence(text.count_before(start))
    return start, end + (2 if leads else both)


def _numbers(text: Text, known: Patterns) -> Iterator[Edit]:
    """ "a man of forty", "a man of 90 kg", "At 90, he drives", "the younger of the two"."""
    if "age" in text.taxonomy.attributes:
        for match in known.of_number.finditer(text.lower):
            index, last = text.count_before(match.start()) - 1, text.count_before(match.end())
            after = follows(text, last)
            hedged = len(match.group().split()) > 2
            if index >= 0 and _has_an_age(text, index, hedged) and (after != "noun" or finite(text, last, False)):
                yield Edit(text.words[index].end, match.end(), "", "age", "of number")
    for match in known.of_mass.finditer(text.lower):
        index = text.count_before(match.start()) - 1
        if index >= 0 and text.taxonomy.is_person(text.words[index].bare) and "weight" in text.taxonomy.attributes:
            yield Edit(text.words[index].end, match.end(), "", "weight", "of mass")
    for match in known.at_number.finditer(text.lower):
        attribute: Attribute = "weight" if match["mass"] else "age"
        first = text.count_before(match.end())
        if attribute in text.taxonomy.attributes and _somebody_at(text, first):
            yield Edit(*match.span(), "", attribute, "at number")
    for match in known.one_of_them.finditer(text.lower):
        told, place = text.taxonomy.modifiers[match["word"].replace(" ", "-")], text.count_before(match.end())
        if match["alone"] is None:
            people = any(text.taxonomy.is_person(word.bare) for word in text.words[place : place + _NEAR])
        else:  # "the oldest is reading"
            ends = follows(text, place) in ("end", "comma", "conj") or finite(text, place, False)
            people = ends and people_before(text, place - 2) is True
        if told in text.taxonomy.attributes and people:
            said = "one of them" if match["alone"] is not None else "one of "
            said = said.capitalize() if text.text[match.start()].isupper() else said
            yield Edit(*match.span(), said, told, "one of them")


def _has_an_age(text: Text, index: int, hedged: bool) -> bool:
    """Whether "of ten" after this noun is an age: "a boy of ten", not "a mother of two" and "a group of ten"."""
    word = text.words[index]
    known = text.taxonomy.person(word.bare)
    if known is not None:
        return known.neutral in ("person", "student")
    one = (
        word.bare in text.taxonomy.neutral_people
        and word.bare not in _GROUPS
        and not word.bare.endswith(("s", "people"))
    )
    return one and (hedged or word.bare in ("person", "individual", "human"))


def _somebody_at(text: Text, index: int) -> bool:
    """Whether a subject that is a person starts here."""
    words = text.words[index : index + _NEAR]
    if not words or words[0].lower not in PERSONAL and words[0].lower not in POSSESSIVE | DETERMINERS:
        return False
    return any(
        word.lower in PERSONAL or word.lower in POSSESSIVE or text.taxonomy.is_person(word.bare) for word in words
    )


def _words(text: Text, known: Patterns) -> Iterator[Edit]:
    """What stands before eyes, skin and the like: the noun stays."""
    for search in known.words:
        for match in search.finditer(text):
            body = search.attribute in ("eye_color", "race", "hair")
            if of_a_person(text, match.start(), body=body) and not text.is_protected(*match.span()):
                yield Edit(match.start(), match.end(), "", search.attribute, search.rule)
                first, last = text.count_before(match.start()), text.count_before(match.end())
                yield from article_edit(text, first, last, search.attribute)


def clause_at(text: Text, index: int, plural: bool = False) -> bool:
    """Whether a subject or a verb stands at the word: then nothing is left for the verb in front."""
    word = text.words[index].lower
    return word in PERSONAL or word.endswith("ing") or finite(text, index, plural)
