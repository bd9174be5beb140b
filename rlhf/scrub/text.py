"""A turn's words with their places, and edits on it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from rlhf.scrub.ages import OLD, UNITS
from rlhf.scrub.taxonomy import Attribute, Taxonomy, word_list

_WORD = re.compile(
    "|".join(
        (
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
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,200}`|(?:https?://|www\.)\S+", re.DOTALL)
RUN = re.compile(r"[a-z]+")
_SENTENCE_END = frozenset(".!?\n")
_AGES = ("old", "olds", "yo")
_AGE = re.compile(rf"{OLD}\Z", re.IGNORECASE)
_LONGEST_AGE = 48  # characters of "two and a half year old" and the like
_MOST_PARTS = 9  # words of one
_MASSES = frozenset(("pound", "lb", "lbs", "kg", "kgs", "kilo", "kilogram"))
_SOMEBODY = word_list("personal") | word_list("possessive")
_TITLE_REACH = 4  # words before a quotation that may say that it is a title


class Word(NamedTuple):
    """One token: `lower` has straight apostrophes, `bare` no possessive ending, `sentence` counts from 0."""

    text: str
    lower: str
    bare: str
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


class Spans:
    """Places of a text; asking takes no longer where there are many."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        in_order = sorted(spans)
        self._starts = [low for low, _ in in_order]
        self._reach = list(accumulate((high for _, high in in_order), max))

    def cover(self, start: int, end: int) -> bool:
        """Whether one of them has all of this place in it."""
        index = bisect_right(self._starts, start)
        return index > 0 and end <= self._reach[index - 1]

    def touch(self, start: int, end: int) -> bool:
        """Whether one of them has some of this place in it."""
        index = bisect_left(self._starts, end)
        return index > 0 and start < self._reach[index - 1]


@dataclass
class Text:
    """A turn, tokenised once per pass."""

    text: str
    taxonomy: Taxonomy
    context: Context = NOTHING_YET
    words: list[Word] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = _joined(_words(self.text), self.text, self.taxonomy)

    @cached_property
    def lower(self) -> str:
        """Lower case, of the same length: patterns are looked for in it, which is faster than to ignore case."""
        lower = self.text.lower()
        if len(lower) == len(self.text):
            return lower
        return "".join(low if len(low := one.lower()) == 1 else one for one in self.text)

    @cached_property
    def runs(self) -> frozenset[str]:
        """All runs of letters, lower case: what a pattern needs is looked up here before it is searched for."""
        return frozenset(RUN.findall(self.lower))

    @cached_property
    def _protected(self) -> Spans:
        """Fixed expressions, code and quoted titles."""
        spans = [match.span() for match in self.taxonomy.idioms.finditer(self.lower)]
        spans += [match.span() for match in _CODE.finditer(self.text)]
        for quoted in self.context.quoted:
            spans += [match.span() for match in re.finditer(re.escape(quoted), self.text)]
        for match in _QUOTED.finditer(self.text):
            last = self.count_before(match.start())
            near = self.words[max(0, last - _TITLE_REACH) : last]
            after = self.count_before(match.end())
            near += self.words[after : after + 1]
            if not self.taxonomy.titles.isdisjoint(word.lower for word in near):
                spans.append(match.span())
        return Spans(spans)

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
        """Whether the span lies in a fixed expression, in code or in a quoted title."""
        return self._protected.cover(start, end)

    @cached_property
    def known(self) -> list[int]:
        """For each word the last one in its sentence up to it that is a person, an animal or a figure; -1 if none."""
        return self._last_of(frozenset())

    @cached_property
    def known_to_have_eyes(self) -> list[int]:
        """The same, with things that are said to have eyes."""
        return self._last_of(self.taxonomy.not_eyes)

    def _last_of(self, others: frozenset[str]) -> list[int]:
        lists, found, last = self.taxonomy, list[int](), -1
        for index, word in enumerate(self.words):
            if self.starts_sentence(index):
                last = -1
            bare = word.bare
            if bare in lists.not_people or bare in others or word.lower in _SOMEBODY or lists.is_person(bare):
                last = index
            found.append(last)
        return found

    @cached_property
    def with_animals(self) -> frozenset[int]:
        """Numbers of the sentences that name an animal or a figure."""
        return frozenset(word.sentence for word in self.words if word.bare in self.taxonomy.not_people)

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
    """The text with the edits made; of two that overlap the earlier in the text counts, and removals go together."""
    parts, place, removed = [], 0, False
    for edit in sorted(edits, key=lambda one: (one.start, -one.end)):
        if edit.start < place:
            if removed and not edit.replacement:
                place = max(place, edit.end)
            continue
        removed = not edit.replacement
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
        lower = token.lower()
        if "\u2019" in lower:
            lower = lower.replace("\u2019", "'")
        words.append(Word(token, lower, _bare(lower), match.start(), match.end(), sentence))
        place = match.end()
        if token in _SENTENCE_END:
            ended = True
    return words


def _bare(lower: str) -> str:
    if "'" not in lower:
        return lower
    return lower[:-2] if lower.endswith("'s") else lower[:-1] if lower.endswith("s'") else lower


def _joined(words: list[Word], text: str, taxonomy: Taxonomy) -> list[Word]:
    """Words that may be written with blanks as one, with hyphens in `lower`: "middle aged", "3 year old", "90 kg"."""
    made: list[Word] = []
    for word in words:
        ends = word.bare in taxonomy.compounds or word.lower in _MASSES or word.lower.endswith(_AGES)
        start = _first_part(made, word, text, taxonomy) if made and ends else None
        if start is not None:
            while made and made[-1].start >= start:
                first = made.pop()
            token = text[start : word.end]
            lower = re.sub(r"\s", "-", token.lower().replace("\u2019", "'"))
            word = Word(token, lower, _bare(lower), start, word.end, first.sentence)
        made.append(word)
    return made


def _first_part(made: list[Word], word: Word, text: str, taxonomy: Taxonomy) -> int | None:
    """Where the compound that ends in this word starts, if one does."""
    last, lower = made[-1], word.lower
    if lower.endswith(_AGES) and (last.lower.endswith(UNITS) or lower == "yo" or "-" in lower):
        age = _AGE.search(text, max(0, word.end - _LONGEST_AGE), word.end)
        return age.start() if age and any(one.start == age.start() for one in made[-_MOST_PARTS:]) else None
    if last.sentence != word.sentence or text[last.end : word.start] not in (" ", "-"):
        return None
    if lower in _MASSES and last.text[0].isdigit():
        return last.start
    return last.start if last.lower in taxonomy.compounds.get(word.bare, ()) else None
