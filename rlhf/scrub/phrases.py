"""A question as words with parts of speech, and its noun phrases: whom or what is spoken of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from rlhf.scrub.grammar import tags
from rlhf.scrub.taxonomy import Attribute, Taxonomy, word_list
from rlhf.scrub.text import Context

_TOKEN = re.compile(
    r"\d+(?:[.,]\d+)*|(?:is|are|was|were|does|do|did|has|have)(?=n['\u2019]t\b)|n['\u2019]t\b|can(?=not\b)|"
    r"[^\W\d_]+(?:-[^\W\d_]+)*|['\u2019](?:s|re|m|ve|ll|d)\b|[^\w\s]",
    re.IGNORECASE,
)
_LONGEST = 80  # words of a sentence that are read, its last ones
_OF_IS = frozenset(
    ("what", "who", "where", "how", "he", "she", "it", "that", "this", "there", "which", "when", "old", "heavy")
)
_NOUNS = ("NN", "NP")
_BEFORE_NOUNS = ("AT", "AJ", "DT", "DPS", "CRD", "ORD", "AV0")
_PARTICIPLES = ("VVG", "VVN", "VVD")
SCENES = word_list("scenes", "questions")
_QUANTITIES = word_list("quantities", "questions")
_STAND_INS = word_list("stand_ins", "questions")
_BY_PRONOUN = word_list("people_by_pronoun", "questions")
_PRONOUNS = word_list("pronouns", "questions")
_DEMONSTRATIVES = word_list("demonstratives", "questions")
_NOBODYS = word_list("nobodys", "questions")
_THINGS_TOO = word_list("people_or_things")
_SIZES = word_list("sizes") | word_list("colours")
_GROUPS = word_list("groups")
_ADJECTIVES = frozenset().union(
    *(word_list(one, "questions") for one in ("said_of_weight", "said_of_race", "part_colours"))
)
_VERBS = frozenset(("look", "looks", "appear", "seem", "weigh", "belong"))  # never the head of a question's phrase
_ASKS = re.compile(
    r"\?|\b(?:whether|if)\b|^(?:\W*(?:please|and|then|now|also|so)\W+)*(?:what|which|how|who|can|could|is|are|do|does)\b"
)


Kind = Literal["person", "animal", "thing"]


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words start to end (exclusive) of a sentence; `head` is what is spoken of, `own` where its own words start."""

    start: int
    own: int
    head: int
    end: int


@dataclass(frozen=True, slots=True)
class Asking:
    """An attribute that is asked for, of whom, and the words of the question that say it of somebody."""

    attribute: Attribute
    of: Kind
    said: str = ""


@dataclass(frozen=True)
class Sentence:
    """Lower-case words, their CLAWS-5 tags and their places in the text."""

    text: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    taxonomy: Taxonomy
    context: Context
    in_scene: bool = False  # whether "in the picture" was said

    @cached_property
    def joined(self) -> str:
        """The words with single blanks between them."""
        return " ".join(self.words)

    @cached_property
    def asks(self) -> bool:
        """Whether it is a question."""
        return _ASKS.search(self.joined) is not None

    def index(self, place: int) -> int:
        """The word at a place of `joined`."""
        return self.joined.count(" ", 0, place)

    def word(self, index: int) -> str:
        """The word; empty outside the sentence."""
        return self.words[index] if 0 <= index < len(self.words) else ""

    def tag(self, index: int) -> str:
        """The tag; empty outside the sentence."""
        return self.tags[index] if 0 <= index < len(self.tags) else ""

    def from_word(self, index: int) -> Sentence:
        """The sentence without the words before this one."""
        return replace(self, words=self.words[index:], tags=self.tags[index:], spans=self.spans[index:])

    def up_to(self, index: int) -> Sentence:
        """The sentence without this word and those after it."""
        return replace(self, words=self.words[:index], tags=self.tags[:index], spans=self.spans[:index])

    def original(self, start: int, end: int) -> str:
        """Words start to end (exclusive) as they stand in the text."""
        return self.text[self.spans[start][0] : self.spans[end - 1][1]]

    def told(self, word: str) -> set[Attribute]:
        """What a noun for a person, or an adjective said of one, tells."""
        known = self.taxonomy.people.get(word)
        found: set[Attribute] = set(known.tells) if known else set()
        if word in self.taxonomy.modifiers:
            found.add(self.taxonomy.modifiers[word])
        return found


def read_sentence(text: str, taxonomy: Taxonomy, context: Context) -> Sentence:
    """The last words of a sentence, tagged, without "in the picture" and the like."""
    found = list(_TOKEN.finditer(text))[-_LONGEST:]
    words = [one.group().lower().replace("\u2019", "'") for one in found]
    tagged = [tag for _, tag in zip(words, tags(tuple(one.group() for one in found)), strict=True)] if found else []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word == "'s":
            words[place], tagged[place] = ("is", "VBZ") if before in _OF_IS else (word, "POS")
        elif word == "'re":
            words[place], tagged[place] = "are", "VBB"
        elif word == "'" and before.endswith("s"):
            tagged[place] = "POS"
        elif word in _VERBS and not (tagged[place - 1] if place else "").startswith(("AT", "AJ", "DPS", "DT")):
            tagged[place] = "VVB"
        elif (
            taxonomy.is_person(word)
            and word not in taxonomy.modifiers
            and before in ("the", "a", "an", "this", "these")
        ):
            tagged[place] = "NN1"
    keep = [place for place in range(len(words)) if words[place] != "n't" and not _of_the_scene(words, place)]
    return Sentence(
        text,
        tuple(words[place] for place in keep),
        tuple(tagged[place] for place in keep),
        tuple(found[place].span() for place in keep),
        taxonomy,
        context,
        any(_of_the_scene(words, place) for place in range(len(words))),
    )


def _of_the_scene(words: list[str], place: int) -> bool:
    """Whether a word is part of "in the picture"."""
    for start in range(max(0, place - 3), place + 1):
        if words[start] not in ("in", "on", "within", "from"):
            continue
        end = start + 1
        while end < min(len(words), start + 3) and words[end] in ("the", "this", "that", "a", "given", "above"):
            end += 1
        if end > start and end < len(words) and place <= end and words[end] in SCENES:
            return True
    return False


def noun_phrase(sentence: Sentence, at: int) -> Phrase | None:
    """The noun phrase that starts at a word; "the man's car" is about the car, "a group of men" about the men."""
    found = _simple_phrase(sentence, at)
    if found and sentence.word(found.end) == "of" and sentence.word(found.head) in _QUANTITIES:
        inner = noun_phrase(sentence, found.end + 1)
        return Phrase(found.start, inner.own, inner.head, inner.end) if inner else found
    return found


def _simple_phrase(sentence: Sentence, at: int) -> Phrase | None:
    own, head, place = at, -1, at
    if sentence.word(at) in _BY_PRONOUN | _PRONOUNS | _NOBODYS and sentence.tag(at) != "DPS":
        return Phrase(at, at, at, at + 1)
    while place < len(sentence.words):
        tag = sentence.tag(place)
        if tag == "POS":
            if head < 0:
                break
            own, head = place + 1, -1
        elif tag.startswith(_NOUNS) or tag == "PNI" and sentence.word(place) in _STAND_INS:
            if head >= 0 and _new_phrase(sentence, head, place):
                break
            head = place
        elif head >= 0 or not _before_a_noun(sentence, at, place):
            break
        place += 1
    return Phrase(at, own, head, place) if head >= 0 else _without_noun(sentence, at, own, place - 1)


def _without_noun(sentence: Sentence, at: int, own: int, last: int) -> Phrase | None:
    """ "The one", "these", "the elderly": words that stand for a noun."""
    if last < at:
        return None
    if sentence.word(last) in _STAND_INS | _DEMONSTRATIVES | _QUANTITIES or sentence.told(sentence.word(last)):
        return Phrase(at, own, last, last + 1)
    return Phrase(at, own, at, at + 1) if sentence.word(at) in _DEMONSTRATIVES else None


def _before_a_noun(sentence: Sentence, at: int, place: int) -> bool:
    """Whether a word can stand in a noun phrase before its noun; an article only starts one, "all the people" apart."""
    tag = sentence.tag(place)
    if place > at and tag.startswith("AT"):
        return sentence.word(place - 1) in ("all", "both")
    followed = sentence.tag(place + 1).startswith((*_NOUNS, "AJ"))
    return tag.startswith(_BEFORE_NOUNS) or tag in _PARTICIPLES and followed


def _new_phrase(sentence: Sentence, head: int, place: int) -> bool:
    """Whether a noun after a noun is what is said of it: "Is the player male?", "Are the people women?"."""
    lists, before, word = sentence.taxonomy, sentence.word(head), sentence.word(place)
    after = sentence.word(place + 1)
    if sentence.tag(place + 1).startswith(_NOUNS) and after not in lists.modifiers and after not in _ADJECTIVES:
        return False
    if word in lists.modifiers or word in _ADJECTIVES:
        return True
    plural = sentence.tag(head) == "NN2" or before in ("people", "men", "women", "children")
    return (
        lists.is_person(word) and lists.is_person(before) and (plural or before in lists.neutral_people - _THINGS_TOO)
    )


def is_somebody(sentence: Sentence, phrase: Phrase) -> bool:
    """Whether a phrase means a person: by its noun, or by a pronoun where the conversation spoke of one."""
    word, lists = sentence.word(phrase.head), sentence.taxonomy
    if word in _BY_PRONOUN:
        return True
    if word in _PRONOUNS or word in _STAND_INS:
        return sentence.context.somebody
    if word in _NOBODYS or word in _DEMONSTRATIVES or word in lists.not_people:
        return False
    if any(one in lists.figures for one in sentence.words[phrase.own : phrase.head]):
        return False
    return lists.is_person(word) and word not in ("body", "face", "complexion", "physique")


def kind(sentence: Sentence, phrase: Phrase) -> Kind:
    """What a phrase means."""
    if is_somebody(sentence, phrase):
        return "person"
    return "animal" if is_animal(sentence, phrase) else "thing"


def is_animal(sentence: Sentence, phrase: Phrase) -> bool:
    """Whether a phrase means an animal or a figure."""
    word = sentence.word(phrase.head)
    if word in _PRONOUNS | _DEMONSTRATIVES | _STAND_INS:
        return not sentence.context.somebody
    return word in sentence.taxonomy.not_people


def phrase_tells(sentence: Sentence, phrase: Phrase) -> set[Attribute]:
    """What the words of a phrase tell of the people it means: "women", "black people", but not "black chairs"."""
    if not is_somebody(sentence, phrase):
        return set()
    head = sentence.word(phrase.head)
    known = sentence.taxonomy.people.get(head)
    found: set[Attribute] = set(known.tells) if known else set()
    found |= adjectives_tell(sentence, sentence.words[phrase.own : phrase.head], head)
    return found


def adjectives_tell(sentence: Sentence, words: Iterable[str], head: str) -> set[Attribute]:
    """What adjectives tell before a noun for people: "a large crowd" and "a white speaker" tell nothing."""
    modifiers = sentence.taxonomy.modifiers
    open_to_things = head in _THINGS_TOO or head in _GROUPS
    return {modifiers[one] for one in words if one in modifiers and not (open_to_things and one in _SIZES)}


def phrase_before(sentence: Sentence, end: int) -> Phrase | None:
    """The noun phrase whose last word stands before `end`."""
    start = end - 1
    if start < 0 or not (sentence.tag(start).startswith(_NOUNS) or sentence.told(sentence.word(start))):
        return None
    while start > 0 and sentence.tag(start - 1).startswith((*_NOUNS, "AJ", "AT", "DT", "DPS", "CRD")):
        if sentence.tag(start).startswith("AT"):
            break
        start -= 1
    own = start
    return Phrase(start, own, end - 1, end)
