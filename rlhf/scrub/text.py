"""A turn's words with their places, and edits on it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rlhf.scrub.taxonomy import Attribute, Taxonomy

_WORD = re.compile(
    "|".join(
        (
            r"[Nn]ative[ -][Aa]mericans?\b",
            r"\d+(?:-[^\W\d_]+)+",  # 25-year-old
            r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*(?:(?<=s)['\u2019](?=\s))?",
            r"\d+(?:[.,:]\d+)*",
            r"[^\w\s]",
            "_",
        )
    )
)
_QUOTED = re.compile(
    "|".join((r"\"([^\"\n]{1,120})\"", r"\u201c([^\u201d\n]{1,120})\u201d", r"(?<!\w)'([^'\n]{1,80})'(?!\w)"))
)
_SENTENCE_END = frozenset(".!?\n")
_TITLE_REACH = 4  # words before a quotation that may say that it is a title


@dataclass(frozen=True, slots=True)
class Word:
    """One token: `lower` has straight apostrophes, `sentence` counts from 0."""

    text: str
    lower: str
    start: int
    end: int
    sentence: int

    @property
    def capitalised(self) -> bool:
        """Whether it starts with a capital letter."""
        return self.text[:1].isupper()

    @property
    def is_word(self) -> bool:
        """Whether it is letters, not a number or a sign."""
        return self.text[:1].isalpha()

    @property
    def bare(self) -> str:
        """Lower case, without a possessive ending."""
        lower = self.lower
        if lower.endswith("'s"):
            return lower[:-2]
        return lower[:-1] if lower.endswith("s'") else lower

    @property
    def possessive(self) -> bool:
        """Whether it ends in 's or s'."""
        return self.lower.endswith(("'s", "s'"))


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace text[start:end] by `replacement`, because of `attribute`, by a named rule."""

    start: int
    end: int
    replacement: str
    attribute: Attribute
    rule: str


@dataclass(frozen=True, slots=True)
class Context:
    """What earlier turns of a conversation spoke of: it decides whom a pronoun or "the eyes" mean.

    `topic` has the attributes that the question before is about, of whomever, `asked` those of people among them;
    `quoted` has what stays in this turn: a title, a written word, what is said of an animal.
    """

    people: bool = False
    animals: bool = False
    topic: frozenset[Attribute] = frozenset()
    asked: frozenset[Attribute] = frozenset()
    quoted: tuple[str, ...] = ()

    @property
    def somebody(self) -> bool:
        """Whether a person is meant where nobody is named."""
        return self.people or not self.animals


NOTHING_YET = Context()


@dataclass
class Text:
    """A turn, tokenised once per pass."""

    text: str
    taxonomy: Taxonomy
    context: Context = NOTHING_YET
    words: list[Word] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = _words(self.text)

    @cached_property
    def lower(self) -> str:
        """Lower case, for a first look."""
        return self.text.lower()

    @cached_property
    def protected(self) -> list[tuple[int, int]]:
        """Fixed expressions, quoted titles and what the question says is one."""
        spans = [match.span() for match in self.taxonomy.idioms.finditer(self.text)]
        for quoted in self.context.quoted:
            spans += [match.span() for match in re.finditer(re.escape(quoted), self.text)]
        for match in _QUOTED.finditer(self.text):
            last = self.count_before(match.start())
            before = {word.lower for word in self.words[max(0, last - _TITLE_REACH) : last]}
            if self.taxonomy.titles & before:
                spans.append(match.span())
        return spans

    @cached_property
    def _ends(self) -> list[int]:
        return [word.end for word in self.words]

    def count_before(self, place: int) -> int:
        """How many words end at or before a place of the text."""
        return bisect_right(self._ends, place)

    def word_at(self, place: int) -> Word | None:
        """The first word that starts at or after a place of the text."""
        index = self.count_before(place)
        if index < len(self.words) and self.words[index].start < place:
            index += 1
        return self.words[index] if index < len(self.words) else None

    def sentence_of(self, index: int) -> range:
        """Indices of the words of a word's sentence."""
        low = bisect_left(self.words, self.words[index].sentence, key=lambda word: word.sentence)
        return range(low, bisect_right(self.words, self.words[index].sentence, key=lambda word: word.sentence))

    def is_protected(self, start: int, end: int) -> bool:
        """Whether the span lies in a fixed expression or a quoted title."""
        return any(low <= start and end <= high for low, high in self.protected)

    def adjacent(self, left: int, right: int) -> bool:
        """Whether the left word, given by index, comes before the right one in the same sentence."""
        return 0 <= left < right < len(self.words) and self.words[left].sentence == self.words[right].sentence

    @cached_property
    def title_case(self) -> bool:
        """Whether most longer words start with a capital, so that capitals say nothing about names."""
        longer = [word for word in self.words if word.is_word and len(word.text) > 3]
        return len(longer) > 1 and sum(word.capitalised for word in longer) > 0.7 * len(longer)

    def starts_sentence(self, index: int) -> bool:
        """Whether the word is the first one of its sentence."""
        return index == 0 or self.words[index - 1].sentence != self.words[index].sentence


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits made; of two that overlap the earlier in the text counts."""
    parts, place = [], 0
    for edit in sorted(edits, key=lambda one: (one.start, -one.end)):
        if edit.start < place:
            continue
        parts += [text[place : edit.start], edit.replacement]
        place = edit.end
    return "".join([*parts, text[place:]])


def _words(text: str) -> list[Word]:
    words, sentence, ended = [], 0, False
    place = 0
    for match in _WORD.finditer(text):
        if "\n" in text[place : match.start()]:
            ended = True
        token = match.group()
        if ended and token not in "\"')]\u201d.!?":
            sentence, ended = sentence + 1, False
        words.append(Word(token, token.lower().replace("\u2019", "'"), match.start(), match.end(), sentence))
        place = match.end()
        if token in _SENTENCE_END:
            ended = True
    return words
