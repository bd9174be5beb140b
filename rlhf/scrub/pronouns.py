"""Gendered pronouns: "she smiles at her dog" -> "they smile at their dog"."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.scrub.grammar import VERBS, plural_verb, tags
from rlhf.scrub.people import EITHER, FUNCTION, is_head
from rlhf.scrub.taxonomy import word_list
from rlhf.scrub.text import Edit, Text

SUBJECTS = frozenset(("he", "she"))
_CONTRACTED = {"'s": "'re", "'ll": "'ll", "'d": "'d"}
_FORMS = {
    "him": "them",
    "himself": "themselves",
    "herself": "themselves",
    "hers": "theirs",
    "his": "their",
}
_LONGEST_SENTENCE = 300  # words; what is longer is a list or noise, and not worth tagging
_ADVERBS = word_list("adverbs")
# words that cannot come after a possessive "her"
_AFTER_OBJECT = FUNCTION - word_list("after_possessive")


def pronoun_edits(text: Text) -> Iterator[Edit]:
    """Neutral pronouns for people, and verbs that agree with them. Pronouns of animals stay."""
    if "gender" not in text.taxonomy.attributes:
        return
    owners = _owners(text)
    for index, word in enumerate(text.words):
        kind, ending = _kind(word.lower)
        if not kind or text.is_protected(word.start, word.end) or word.text.isupper() and len(word.text) > 1:
            continue
        if not owners[index]:
            continue
        neutral = _neutral(text, index, kind)
        if ending:
            following = text.words[index + 1].lower if index + 1 < len(text.words) else ""
            neutral += "'ve" if ending == "'s" and following in ("got", "been", "had") else _CONTRACTED[ending]
        shown = neutral.capitalize() if word.capitalised else neutral
        yield Edit(word.start, word.end, shown, "gender", "pronoun")
        if kind in SUBJECTS and not ending:
            yield from _agreement(text, index)


def _kind(lower: str) -> tuple[str, str]:
    for ending in _CONTRACTED:
        if lower.endswith(ending) and lower.removesuffix(ending) in SUBJECTS:
            return lower.removesuffix(ending), ending
    return (lower, "") if lower in SUBJECTS or lower in _FORMS or lower == "her" else ("", "")


def _neutral(text: Text, index: int, kind: str) -> str:
    if kind in SUBJECTS:
        return "they"
    following = text.words[index + 1] if text.adjacent(index, index + 1) else None
    alone = following is None or not (following.is_word or following.text[0].isdigit())
    ends = alone or (following is not None and following.lower in _AFTER_OBJECT)
    if kind == "her":
        return "them" if ends else "their"
    if kind == "his":
        return "theirs" if ends else "their"
    return _FORMS[kind]


def _owners(text: Text) -> list[bool]:
    """For each word whether a pronoun there means a person.

    A person named before it in its sentence wins over an animal; its own sentence counts more than those before it, and
    earlier turns count where nobody was named.
    """
    lists, found = text.taxonomy, []
    before, person, sure, other = text.context.somebody, False, False, False
    for index, word in enumerate(text.words):
        if text.starts_sentence(index):
            before = _verdict(before, person, sure, other)
            person = sure = other = False
        found.append(_verdict(before, person, sure, other))
        if word.bare in lists.not_people:
            other = True
        elif lists.is_person(word.bare) and is_head(text, index):
            person, sure = True, sure or word.bare not in EITHER
    return found


def _verdict(before: bool, person: bool, sure: bool, other: bool) -> bool:
    if sure or (person and not other):
        return True
    return False if other else before


def _agreement(text: Text, subject: int) -> Iterator[Edit]:
    """The verbs of "he" or "she": the next one, an auxiliary before it in a question, and coordinated ones."""
    words = text.words
    if subject and text.adjacent(subject - 1, subject) and words[subject - 1].lower in VERBS:
        auxiliary = words[subject - 1]  # a question
        yield _edit(auxiliary.start, auxiliary.text, VERBS[auxiliary.lower])
        return
    place = _after_adverbs(text, subject + 1)
    while place is not None and text.adjacent(subject, place):
        word = words[place]
        changed = plural_verb(word.lower)
        if changed is None:
            return
        if changed != word.lower:
            yield _edit(word.start, word.text, changed)
        place = _coordinated(text, place)


def _after_adverbs(text: Text, place: int) -> int | None:
    while place < len(text.words) and (
        text.words[place].lower in _ADVERBS or (text.words[place].lower.endswith("ly") and text.words[place].is_word)
    ):
        place += 1
    return place if place < len(text.words) and text.words[place].is_word else None


def _coordinated(text: Text, verb: int) -> int | None:
    """The next verb of the same subject, after a conjunction or comma in its sentence and before another subject."""
    for place in range(verb + 1, len(text.words) - 1):
        if not text.adjacent(verb, place):
            return None
        if text.words[place].lower in (
            "who",
            "that",
            "which",
            "while",
            "because",
            "if",
            "he",
            "she",
            "they",
            "it",
            ";",
        ):
            return None
        if text.words[place].lower in ("and", "or", "but", "then", ","):
            following = _after_adverbs(text, place + 1)
            if following is not None and _is_verb(text, following):
                return following
    return None


def _is_verb(text: Text, place: int) -> bool:
    """Whether a word in -s after a conjunction is a verb: a noun would end the phrase or have an article before it."""
    word = text.words[place].lower
    if word in VERBS:
        return True
    if plural_verb(word) in (None, word):
        return False
    sentence = text.sentence_of(place)
    if len(sentence) > _LONGEST_SENTENCE:
        return False
    return tags(tuple(text.words[index].text for index in sentence))[place - sentence.start] in (
        "VVZ",
        "VBZ",
        "VHZ",
        "VDZ",
    )


def _edit(start: int, was: str, now: str) -> Edit:
    return Edit(start, start + len(was), now.capitalize() if was[:1].isupper() else now, "gender", "agreement")
