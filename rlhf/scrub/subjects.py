"""Of whom or of what a verb is said: the man, his eyes, the colour of her skin."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.scrub.grammar import VERBS, is_verb_in_s
from rlhf.scrub.people import DETERMINERS, PERSONAL, POSSESSIVE, is_head, of_a_person
from rlhf.scrub.taxonomy import word_list
from rlhf.scrub.text import Text

AUXILIARIES = (
    frozenset((*VERBS, *VERBS.values())) | word_list("unchanged_verbs") | {"have", "seems", "looks", "appears"}
)
CONJUNCTIONS = ("and", "or", "but", "yet", "nor")
ASIDES = word_list("asides")
BREAKS = frozenset(",;:.!?()\u2014") | word_list("clause_breaks")
_STRONG = frozenset(";:.!?") | word_list("strong_breaks")
_SUBJECT_ENDS = word_list("subject_ends")
_PARTITIVES = word_list("partitives")
_ARTICLES = frozenset(("the", "a", "an", "this", "these", "those", "his", "her", "their", "my", "your", "our", "its"))
_POSTPOSED = word_list("postposed")
_OTHERS = frozenset(("both", "one", "other", "others", "another", "each", "neither", "some", "all", "latter", "former"))
_BODY = {
    "eyes": "eyes", "eye": "eyes", "irises": "eyes", "skin": "skin", "complexion": "skin", "age": "age",
    "gender": "gender", "sex": "gender", "race": "race", "ethnicity": "race", "weight": "weight", "build": "weight",
    "physique": "weight", "bmi": "weight", "hair": "hair", "hairstyle": "hair", "haircut": "hair",
}  # fmt: skip
_OF_BODY = {"eye": "eyes", "skin": "skin", "hair": "hair", "age": "age", "body": "weight"}
_PARTS = frozenset(("color", "colour", "tone", "range", "group", "type", "shape", "shade"))
_ONES_OWN = frozenset(("hers", "his", "theirs", "mine", "yours", "one", "other", "others"))  # of eyes just named
_GENERIC = word_list("generic")
_ALONE = frozenset(("eyes", "skin", "hair"))  # "the eyes" are somebody's where nobody is named
_LONGEST_SUBJECT = 40  # words


@dataclass(frozen=True, slots=True)
class Subject:
    """What a verb is said of: a person, or something a person has; `start` is where its clause starts in the text."""

    kind: str
    start: int
    word: str
    shared: int | None = None  # where the conjunction starts that joins the verb to an earlier one of the same subject


def subject_of(text: Text, place: int, plural: bool = False) -> Subject | None:
    """What the verb at this place of the text is said of, if it is a person or something that a person has."""
    words, last = text.words, text.count_before(place) - 1
    if last + 1 < len(words) and words[last + 1].start < place:
        last += 1  # the verb is a part of the word: "he's"
    while (
        last >= 0 and (words[last].lower in ASIDES or words[last].lower.endswith("ly")) and words[last].lower != "both"
    ):
        last -= 1
    if last < 0:
        return None
    if words[last].lower in CONJUNCTIONS or words[last].text == ",":
        return _shared(text, last)
    if words[last].lower == "who" or (words[last].lower == "that" and last and _is_human(text, last - 1)):
        return Subject("person", words[last].start, "who")
    start = walk_back(text, last, BREAKS)
    found = _kind(text, start, last)
    if found is None:
        return None
    kind, word = found
    return Subject(kind, words[_coordinated(text, start) if plural else start].start, word)


def walk_back(text: Text, last: int, breaks: frozenset[str]) -> int:
    """The first word of the clause that the word `last` stands in."""
    start = last
    while (
        start > 0
        and last - start < _LONGEST_SUBJECT
        and text.adjacent(start - 1, last)
        and (text.words[start - 1].lower not in breaks or _is_this(text, start - 1))
    ):
        start -= 1
    return start


def _is_this(text: Text, index: int) -> bool:
    """ "That girl is young": no conjunction."""
    return text.words[index].lower == "that" and text.starts_sentence(index)


def _kind(text: Text, start: int, last: int) -> tuple[str, str] | None:
    """What the noun phrase between these words is, and its head."""
    head = None
    for index in range(start, last + 1):
        lower = text.words[index].lower
        if head is not None and lower in _ARTICLES:  # another phrase begins
            if text.words[head].lower not in _PARTITIVES and text.words[start].lower not in _SUBJECT_ENDS:
                return None  # "the car the man drives"
            head = None
            continue
        if lower in _SUBJECT_ENDS:
            if head is None or lower == "of" and text.words[head].lower in _PARTITIVES:
                head = None
                continue
            if lower == "of" and (_body(text, head) or text.words[head].lower in _PARTS):
                return _of(text, start, head, _kind(text, index + 1, last))
            break
        if head is not None and _is_human(text, head) and (lower.endswith(("ing", "ed")) or lower in _POSTPOSED):
            break
        if text.words[index].is_word:
            head = index
    return _named(text, start, head) if head is not None else None


def _of(text: Text, start: int, head: int, owner: tuple[str, str] | None) -> tuple[str, str] | None:
    """ "the eyes of the man" are eyes, "the colour of her eyes" is said of them; "the average age of" is nobody's."""
    if owner is None or (head > start and text.words[head - 1].lower in _GENERIC):
        return None
    body = _body(text, head)
    if body is None:
        return owner if owner[0] in _ALONE else None
    return (body, text.words[head].lower) if owner[0] == "person" else None


def _named(text: Text, start: int, head: int) -> tuple[str, str] | None:
    word = text.words[head]
    if body := _body(text, head):
        generic = head > start and text.words[head - 1].lower in _GENERIC
        return (body, word.lower) if not generic and _has_an_owner(text, start, head, body) else None
    if word.lower in _ONES_OWN and _eyes_before(text, start):
        return ("eyes", "eyes")
    if word.lower in _OTHERS or (word.lower in text.taxonomy.modifiers and word.lower.endswith("est")):
        before = people_before(text, start)
        return ("person", "they") if before or (before is None and word.lower == "both") else None
    if text.is_protected(word.start, word.end) or not _is_human(text, head):
        return None
    return ("person", word.lower if word.lower in PERSONAL else word.bare)


def _eyes_before(text: Text, start: int) -> bool:
    sentence = text.sentence_of(start)
    return any(text.words[one].lower in ("eyes", "eye") for one in range(max(sentence.start, start - 12), start))


def _is_human(text: Text, index: int) -> bool:
    word = text.words[index]
    return word.lower in PERSONAL or (text.taxonomy.is_person(word.bare) and not word.possessive)


def _body(text: Text, index: int) -> str | None:
    """What of a person the noun is: "eyes", "eye colour"."""
    lower = text.words[index].lower
    if lower in _PARTS:
        return _OF_BODY.get(text.words[index - 1].lower) if index else None
    return _BODY.get(lower)


def _has_an_owner(text: Text, start: int, head: int, body: str) -> bool:
    """Whether the eyes, the age and so on are a person's."""
    for index in range(start, head):
        word = text.words[index]
        if word.lower in POSSESSIVE or word.lower in ("my", "your", "our"):
            nearest = text.known[index - 1] if text.adjacent(index - 1, index) else -1
            return nearest < 0 or text.words[nearest].bare not in text.taxonomy.not_people
        if word.lower == "whose":
            return of_a_person(text, word.start)
        if word.possessive:
            return text.taxonomy.is_person(word.bare)
    return body in _ALONE and of_a_person(text, text.words[head].start, body=True)


def people_before(text: Text, start: int) -> bool | None:
    """Whether the last noun known before the word `start` is a person; None if no noun and no turn before is known."""
    index = start - 1
    while index >= 0 and text.known[index] < 0:
        index = text.sentence_of(index).start - 1
    if index < 0:
        return text.context.people or (False if text.context.animals else None)
    word = text.words[text.known[index]]
    return word.lower in PERSONAL or word.lower in POSSESSIVE or text.taxonomy.is_person(word.bare)


def _shared(text: Text, joint: int) -> Subject | None:
    """The subject of a verb after a conjunction or comma: the first person of the clause, if it begins with one."""
    words, start = text.words, walk_back(text, joint, _STRONG)
    for index in range(start, joint):
        if words[index].text == ",":
            start = index + 1
        elif _is_human(text, index) and (words[index].lower in PERSONAL or is_head(text, index)):
            first = sum(words[one].lower in DETERMINERS for one in range(start, index))
            if first > 1 or any(words[one].lower in _SUBJECT_ENDS for one in range(start, index)):
                return None
            shared = words[joint].start if words[joint].text != "," else None
            word = words[index].lower if words[index].lower in PERSONAL else words[index].bare
            return Subject("person", words[start].start, word, shared)
    return None


def _coordinated(text: Text, start: int) -> int:
    """Where "the man and the woman" starts, of which only the last noun stands from `start` on."""
    words = text.words
    if start < 2 or words[start - 1].lower not in ("and", "or") or not text.adjacent(start - 1, start):
        return start
    first = walk_back(text, start - 1, _STRONG)
    between = (words[one].lower for one in range(first, start - 1))
    return start if any(one in AUXILIARIES or is_verb_in_s(one) for one in between) else first
