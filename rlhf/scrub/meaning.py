"""Whether a rewritten turn still says what it said: image tags, boxes, numbers, counts, colours, names of objects.

And whether its sentences are still sentences.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rlhf.data.rows import IMAGE_TAG
from rlhf.scrub.grammar import VERBS, is_verb_in_s, plural_verb, tags
from rlhf.scrub.rewrite import Cue
from rlhf.scrub.taxonomy import Taxonomy, word_list

_BOX = re.compile(r"[\[(]\s*-?\d[\d\s.]*[,;:][\d\s.,;:-]*[\])]")  # two numbers and more
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_VALUES = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "twenty": 20, "dozen": 12,
}  # fmt: skip
_COLOURS = word_list("thing_colours")
_FUNCTION = word_list("function")
_PLURAL_VERBS = frozenset(VERBS.values())
_SAID_OF_PEOPLE = word_list("said_of_people")  # nouns that stand for a person where a rule or a model puts them
# what a removal may leave behind: the end of a sentence, its beginning, and what cannot stand next to each other
_BROKEN = re.compile(
    r"\b(?:an?|the|of|and|or|but|between|is|are|was|were|been|that|which|who|whose|with|than|very|quite|too|to|as)"
    r"\s*(?=[.!?,;:)]|\Z)"
    r"|(?:\A|(?<=[.!?]\s))\s*(?:than|enough|is|are|was|were|has|have|had|wears?|looks?|seems?|appears?|and|or|of|years?)\b"
    r"|\b(?:an?|the) (?:an?|the)\b|\ban? people\b(?!['\u2019])|\(\s*\)|,\s*,"
    r"|\b(?:\d+|\w+ty|\w+teen)[- ](?:years?|months?|weeks?)[- ](?:old[- ])?(?:person|people|individual|student)s?\b",
    re.IGNORECASE,
)
_VERBS_TOGETHER = re.compile(r"\b(?:is|are|was|were|has|have|had) (?P<second>[a-z]+)\b", re.IGNORECASE)
_NO_PARTICIPLES = frozenset(
    ("is", "are", "was", "were", "has", "have", "does", "do", "wear", "hold", "sit", "stand", "look")
)
_REACH = 4  # words after a count in which its noun is looked for
_LONGEST_SENTENCE = 300  # words


def lost_meaning(before: str, after: str, cues: Sequence[Cue], taxonomy: Taxonomy) -> str | None:
    """What a rewriting lost or invented outside the places that told an attribute; None if nothing.

    People who were counted apart may be counted together ("two women and a man", "three people").
    """
    if before.count(IMAGE_TAG) != after.count(IMAGE_TAG):
        return "the image tag was lost or doubled"
    if _BOX.findall(before) != _BOX.findall(after):
        return "box coordinates were changed"
    if broken := _more(list(_fragments(after)), list(_fragments(before))):
        return _told("a sentence was broken", broken)
    found = list(_with_place(before, cues))
    there, all_before = _TOKEN.findall(after), [word for word, _ in found]
    lost, new = _more([word for word, kept in found if kept], there), _more(there, all_before)
    if not lost and not new:
        return None
    return (
        _told("numbers were lost", filter(_is_number, lost))
        or _counts(found, there, taxonomy)
        or _told("numbers were invented", (word for word in new if _is_number(word) and not _is_people(there, word)))
        or _told("colours were lost", _COLOURS & lost)
        or _told("colours were invented", _COLOURS & new)
        or _told("names of objects were lost", _lost_objects(lost, before, there, bool(cues), taxonomy))
        or _told("names of objects were invented", _objects(new, after, set(_lower(all_before)), taxonomy))
    )


def _fragments(text: str) -> Iterator[str]:
    """What stands in no sentence, or only in a question; a text that had it before may keep it."""
    for match in _BROKEN.finditer(text):
        words = match.group().lower().split()
        yield " ".join(VERBS.get(word, word) for word in words)  # "Has he" may have become "Have they"
    for match in _VERBS_TOGETHER.finditer(text):
        second = match["second"].lower()
        if second in _NO_PARTICIPLES or (match.group()[:2].lower() in ("is", "wa") and is_verb_in_s(second)):
            yield match.group()


def _told(what: str, words: Iterable[str]) -> str | None:
    found = sorted(words)
    return f"{what}: {', '.join(found)}" if found else None


def _with_place(text: str, cues: Sequence[Cue]) -> Iterator[tuple[str, bool]]:
    """Each word or number, and whether it stands outside all cues."""
    spans, index, reach = sorted((cue.start, cue.end) for cue in cues), 0, 0
    for match in _TOKEN.finditer(text):
        while index < len(spans) and spans[index][0] <= match.start():
            reach, index = max(reach, spans[index][1]), index + 1
        yield match.group(), match.start() >= reach


def _lower(words: Iterable[str]) -> Iterator[str]:
    """Lower case, without a possessive ending."""
    for word in words:
        lower = word.lower().replace("\u2019", "'")
        yield lower[:-2] if lower.endswith("'s") else lower


def _more(left: Sequence[str], right: Sequence[str]) -> set[str]:
    """Words that occur more often on the left."""
    return set(Counter(_lower(left)) - Counter(_lower(right)))


def _is_number(word: str) -> bool:
    return word[0].isdigit()


def _is_people(words: Sequence[str], number: str) -> bool:
    return any(one == number and after.lower() == "people" for one, after in zip(words, words[1:], strict=False))


def _counts(before: Sequence[tuple[str, bool]], after: Sequence[str], taxonomy: Taxonomy) -> str | None:
    """Counts of things must be the same; people may be counted together, and then each one counts."""
    things, people, counts = _counted(before, taxonomy)
    things_now, people_now, _ = _counted([(word, True) for word in after], taxonomy)
    if things != things_now:
        return _told("counts were changed", (things - things_now) + (things_now - things))
    alone = sum(_is_somebody(word, taxonomy) for word in _lower(word for word, _ in before)) - counts
    if not people <= people_now <= people + max(0, alone):
        return f"people were counted as {people_now}, not {people}"
    return None


def _counted(words: Sequence[tuple[str, bool]], taxonomy: Taxonomy) -> tuple[Counter[str], int, int]:
    """Number words about things; the sum of those about people, and how many; words with False count for nothing."""
    lower, things, people, counts = list(_lower(word for word, _ in words)), Counter[str](), 0, 0
    for place, word in enumerate(lower):
        if word in _VALUES and words[place][1] and word != "one":  # "one" is a pronoun as often as a number
            if _before_a_person(lower, place, taxonomy):
                people, counts = people + _VALUES[word], counts + 1
            else:
                things[word] += 1
    return things, people, counts


def _before_a_person(words: Sequence[str], place: int, taxonomy: Taxonomy) -> bool:
    for word in words[place + 1 : place + 1 + _REACH]:
        if _is_somebody(word, taxonomy):
            return True
        if word in _FUNCTION:
            return False
    return False


def _is_somebody(word: str, taxonomy: Taxonomy) -> bool:
    return taxonomy.is_person(word) or word in _SAID_OF_PEOPLE or word.endswith(("-olds", "-old")) or word == "olds"


def _lost_objects(lost: set[str], before: str, there: Sequence[str], rules_know: bool, taxonomy: Taxonomy) -> set[str]:
    """Names of things that are gone.

    Where no rule found a word for a person but a model said "person", one name that no list has may have been such a
    word ("a codger").
    """
    found = _objects(lost, before, set(_lower(there)), taxonomy)
    if rules_know:
        return found
    unlisted = {word for word in found if word not in taxonomy.things and word not in taxonomy.not_people}
    people = [sum(_is_somebody(word, taxonomy) for word in _lower(words)) for words in (there, _TOKEN.findall(before))]
    return found - unlisted if len(unlisted) <= people[0] - people[1] else found


def _objects(words: set[str], text: str, other: set[str], taxonomy: Taxonomy) -> set[str]:
    """Those of the words that name things in this text; `other` has all words of the other text."""
    left = {word for word in words if not _is_grammar(word, other, taxonomy)}
    found = {word for word in left if word in taxonomy.things or word in taxonomy.not_people}
    if not left - found:
        return found
    for sentence in re.split(r"(?<=[.!?\n])\s*", text):
        tokens = _TOKEN.findall(sentence)
        lower = list(_lower(tokens))
        if len(tokens) <= _LONGEST_SENTENCE and not left.isdisjoint(lower):
            found |= {word for word, tag in zip(lower, tags(tuple(tokens)), strict=True) if tag.startswith("NN")} & left
    return found


def _is_grammar(word: str, other: set[str], taxonomy: Taxonomy) -> bool:
    """Function words, words for people, and verbs that agree with another number now."""
    if (
        word in _FUNCTION
        or word in VERBS
        or word in _PLURAL_VERBS
        or word in taxonomy.neutral_words
        or _is_somebody(word, taxonomy)
    ):
        return True
    if len(word) < 2 or _is_number(word) or word in _COLOURS or word in _VALUES or word in taxonomy.modifiers:
        return True
    if "'" in word and word.split("'")[0] in _FUNCTION:
        return True
    plural = plural_verb(word)
    return (plural != word and plural in other) or any(
        f"{word}{end}" in other and plural_verb(f"{word}{end}") == word for end in ("s", "es")
    )
