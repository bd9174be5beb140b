"""Removal of what is said: the clause goes, or its verb, or the value alone, so that a sentence stays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rlhf.scrub.grammar import is_verb_in_s
from rlhf.scrub.people import DETERMINERS, FUNCTION, PERSONAL, tag_of
from rlhf.scrub.subjects import ASIDES, AUXILIARIES, BREAKS, CONJUNCTIONS, Subject, walk_back
from rlhf.scrub.taxonomy import Attribute, word_list
from rlhf.scrub.text import Edit, Text

_STARTS = word_list("clause_starts")
_PREPOSITIONS = word_list("prepositions")
_PLACES = word_list("subject_ends") - {"who", "which", "that"}
_SUBORDINATE = word_list("strong_breaks")
_ADVERBS = word_list("adverbs_after")
_OBJECTS = frozenset(
    ("at", "to", "into", "up", "down", "toward", "towards", "through", "him", "them", "it", "us", "me", "her")
)
_LONGEST_COMPLEMENT = 20  # words
_CONJUNCTION = 40  # characters in front of a clause that its conjunction fits in
_BEFORE = re.compile(
    r"(?:,?\s*\b(?:and|but|while|because|as|so|since|although|though|when|where|whereas|if|whether|which|who)|,)\s*$",
    re.IGNORECASE,
)
_AFTER = re.compile(r"\s*(?:,\s*(?:and\b|but\b|while\b)?|\b(?:and|but|while)\b|[.!?;]+)?\s*", re.IGNORECASE)
_RELATIVE = re.compile(r",?\s*\b(?:who|that|whose(?: [\w-]+){1,3})\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Drop:
    """A verb and what it says, all of which tells: the clause goes, or what is left of it keeps its subject.

    `value` and `last` are the words from which and before which it is said; `having` takes the place of verb and value
    before "with".
    """

    text: Text
    subject: Subject
    verb: int  # where the verb starts in the text
    value: int
    last: int
    plural: bool
    having: str | None
    has: bool = False  # the value is a thing, and other things may follow

    def edit(self, attribute: Attribute, rule: str) -> Edit:
        """The removal."""
        text, words, last = self.text, self.text.words, self.last
        if follows(text, last) == "adverb":
            last = clause_end(text, last + 1)
        value, after = words[self.value].start, follows(text, last)
        with_it = last + (after == "comma")
        next_word = words[with_it].lower if after in ("prep", "comma") and text.adjacent(last - 1, with_it) else ""
        if next_word == "with" and self.having is not None:
            return Edit(self.verb, words[with_it].end, self.having, attribute, rule)
        if after == "comma" and next_word in _PLACES and not self._relative():
            return self._clause(words[clause_end(text, with_it + 1) - 1].end, attribute, rule)
        if after == "ing":
            return Edit(value, words[last].start, "", attribute, rule)
        if after == "prep" and not (next_word in _PLACES and self._relative()):
            last = clause_end(text, last + 1, words[last].lower in _SUBORDINATE)
            after = follows(text, last)
        closes = after == "comma" and self._relative() is not None  # "who is young, smiles": the comma ends it
        joint = separator(text, last) if after in ("comma", "conj") and not closes else None
        if joint is not None:
            goes_on = self._goes_on(joint, words[last].text == "," and joint == last + 1)
            if goes_on == "verb":
                contracted = text.text[self.verb] in "'\u2019"
                return Edit(self.verb, words[joint].start, " " if contracted else "", attribute, rule)
            if goes_on == "more":
                return Edit(value, words[joint].start, "", attribute, rule)
        return self._clause(words[last - 1].end, attribute, rule)

    def _goes_on(self, index: int, comma: bool) -> str:
        """What comes after the conjunction: another verb of the subject, more that is said, or something else."""
        text, words = self.text, self.text.words
        while words[index].lower in ASIDES and text.adjacent(index, index + 1):
            index += 1
        word = words[index]
        if finite(text, index, self.plural) or (not self.has and is_verb_in_s(word.lower)):
            return "verb"
        if word.lower.endswith("ing"):
            return "more"
        if comma or word.lower in PERSONAL or not word.is_word or (self._relative() and word.lower in DETERMINERS):
            return "clause"
        return "clause" if _has_a_verb(text, index) else "more"

    def _relative(self) -> re.Match[str] | None:
        return _RELATIVE.search(self.text.text, max(0, self.verb - _CONJUNCTION), self.verb)

    def _clause(self, end: int, attribute: Attribute, rule: str) -> Edit:
        text, relative = self.text.text, self._relative()
        if relative and self.subject.shared is None:
            both = relative.group().lstrip().startswith(",") and text[end : end + 1] == ","
            return Edit(relative.start(), end + both, "", attribute, rule)
        if self.subject.shared is not None:
            start = self.subject.shared
            before = text[:start].rstrip()
            return Edit(len(before) - before.endswith(","), end, "", attribute, rule)
        return without_clause(self.text, self.subject.start, end, attribute, rule)


def without_clause(text: Text, start: int, end: int, attribute: Attribute, rule: str) -> Edit:
    """Removal of a clause with the conjunction before it, or with the one after it if it opens the sentence.

    "It seems that" goes with its clause, and so does "in the picture,".
    """
    first = text.count_before(start)
    if first and text.words[first - 1].lower == "that" and text.adjacent(first - 1, first):
        first = walk_back(text, first - 2, BREAKS) if first > 1 else first
    first = _without_opening(text, first)
    start = min(start, text.words[first].start)
    before = _BEFORE.search(text.text, max(0, start - _CONJUNCTION), start)
    if before:
        return Edit(before.start(), end, "", attribute, rule)
    after = _AFTER.match(text.text, end)
    return Edit(start, after.end() if after else end, "", attribute, rule)


def _without_opening(text: Text, first: int) -> int:
    """Where the sentence starts if nothing but "in the picture," is in front of the clause."""
    words = text.words
    if not first or words[first - 1].text != "," or not text.adjacent(first - 1, first):
        return first
    start = text.sentence_of(first).start
    if not 1 < first - start <= _LONGEST_COMPLEMENT:
        return first
    opening = [word.lower for word in words[start : first - 1]]
    if opening[0] in ("yes", "no") or (len(opening) > 1 and opening[0] not in _PREPOSITIONS):
        return first
    return first if "," in opening or any(one in AUXILIARIES for one in opening) else start


def follows(text: Text, index: int) -> str:
    """What stands at `index`, after what is said: end, comma, conj, prep, ing, adverb, or a noun that it describes."""
    if not text.adjacent(index - 1, index):
        return "end"
    word = text.words[index]
    lower = word.lower
    if not word.is_word:
        return "comma" if lower == "," else "noun" if word.text[0].isalnum() else "end"
    if lower in CONJUNCTIONS:
        return "conj"
    if lower in _PREPOSITIONS:
        return "prep"
    if lower in _ADVERBS or (lower.endswith("ly") and len(lower) > 4):
        return "adverb"
    return "ing" if lower.endswith("ing") else "noun"


def clause_end(text: Text, index: int, subordinate: bool = False) -> int:
    """The word before which the rest of a clause ends; one that is subordinate has a verb of its own."""
    stop = min(index + _LONGEST_COMPLEMENT, len(text.words))
    while index < stop and text.adjacent(index - 1, index):
        lower = text.words[index].lower
        before = text.words[index - 1]
        if not subordinate and before.lower not in PERSONAL:
            verb = is_verb_in_s(lower) and (before.text[0].isdigit() or text.taxonomy.is_person(before.bare))
            if verb or finite(text, index, False):
                break
        if lower in BREAKS and lower not in ("as", "than", "or") and not _joins_nouns(text, index):
            break
        index += 1
    return index


def _joins_nouns(text: Text, index: int) -> bool:
    """Whether "and" goes on with a noun, not with a clause."""
    if text.words[index].lower != "and" or not text.adjacent(index, index + 1):
        return False
    following = text.words[index + 1].lower
    return not (
        following in PERSONAL or following in _STARTS or following.endswith("ing") or finite(text, index + 1, False)
    )


def _has_a_verb(text: Text, index: int) -> bool:
    """Whether a finite verb stands between here and the next sign or clause."""
    stop = min(index + _LONGEST_COMPLEMENT, len(text.words))
    while index < stop and text.adjacent(index - 1, index) and text.words[index].lower not in BREAKS | {"who", "which"}:
        if text.words[index].lower in AUXILIARIES or finite(text, index, False):
            return True
        index += 1
    return False


def finite(text: Text, index: int, plural: bool) -> bool:
    """Whether a verb of its own stands at `index`: "wears glasses" and, of several people, "wear glasses"."""
    word = text.words[index]
    lower = word.lower
    if lower in AUXILIARIES:
        return not word.capitalised or text.starts_sentence(index)  # no month
    if not word.is_word or lower in FUNCTION or lower.endswith("ing"):
        return False
    following = text.words[index + 1].lower if text.adjacent(index, index + 1) else ""
    starts_object = (
        following in DETERMINERS or following in _OBJECTS or (following.endswith("ly") and len(following) > 4)
    )
    if is_verb_in_s(lower):
        return starts_object or not _may_be_noun(lower) or tag_of(text, index).startswith("VV")
    kinds = _lemmas(lower)
    if "VERB" not in kinds or "ADJ" in kinds:
        return False
    base = lower in kinds["VERB"]
    if base:
        return plural and (starts_object or tag_of(text, index).startswith("VV"))
    return starts_object if lower.endswith("ed") else "NOUN" not in kinds  # "carried a bag", "wore"


def _may_be_noun(lower: str) -> bool:
    return "NOUN" in _lemmas(lower)


@lru_cache(maxsize=10_000)
def _lemmas(word: str) -> dict[str, tuple[str, ...]]:
    from lemminflect import getAllLemmas

    found: dict[str, tuple[str, ...]] = getAllLemmas(word)
    return found


def separator(text: Text, index: int) -> int | None:
    """The word after a comma or conjunction at `index`."""
    if not text.adjacent(index - 1, index):
        return None
    lower, after = text.words[index].lower, index + 1
    if lower == "," and text.adjacent(index, after) and text.words[after].lower in CONJUNCTIONS:
        after += 1
    elif lower != "," and lower not in CONJUNCTIONS:
        return None
    return after if text.adjacent(index, after) else None
