"""The words of each attribute, read from `lexicons/`: which name a person, which describe one, and what misleads.

The attributes are those of Safe-LLaVA (seed page, section 1.1); hair is allowed unless it is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

Attribute = Literal["age", "gender", "race", "eye_color", "weight", "hair", "unknown"]

ATTRIBUTES: tuple[Attribute, ...] = ("age", "gender", "race", "eye_color", "weight")
HAIR: Attribute = "hair"
UNKNOWN: Attribute = "unknown"  # what a model changed and no rule knows
_LEXICONS = Path(__file__).parent / "lexicons"
_ENDINGS = {"woman": "person", "women": "people", "man": "person", "men": "people"}  # of words that no list has
_ENDS_OF_PEOPLE = ("an", "en", "on", "le")  # of -man, -men, -person and -people
_PLURALS = (("person", "people"), ("man", "men"), ("child", "children"), ("wife", "wives"), ("offspring", "offspring"))


@dataclass(frozen=True)
class PersonWord:
    """A noun for a person, what is said instead, and the attributes that it tells."""

    neutral: str
    tells: tuple[Attribute, ...]


@dataclass(frozen=True)
class Taxonomy:
    """All word lists, lower case."""

    attributes: tuple[Attribute, ...]
    people: dict[str, PersonWord]
    neutral_people: frozenset[str]
    neutral_words: frozenset[str]  # all words of what is said instead
    modifiers: dict[str, Attribute]
    animals: frozenset[str]
    figures: frozenset[str]
    things: frozenset[str]
    not_people: frozenset[str]  # animals and figures
    not_eyes: frozenset[str]
    titles: frozenset[str]
    idioms: re.Pattern[str]  # of lower-case text
    compounds: dict[str, frozenset[str]]  # last part -> first parts of words that are written with a blank, too
    not_man: frozenset[str]

    def is_person(self, word: str) -> bool:
        """Whether a lower-case noun names a person, possessive or not."""
        if word in self.people or word in self.neutral_people:
            return True
        if word[-2:] in _ENDS_OF_PEOPLE:
            return word.endswith(("person", "people")) or self.person(word) is not None
        return word[-2:] in ("'s", "s'") and self.is_person(word[:-2] if word[-1] == "s" else word[:-1])

    def person(self, bare: str) -> PersonWord | None:
        """What a lower-case noun tells of a person; None for a noun that tells nothing.

        A word that ends in -man and is in no list names a person, too ("craftsman"); one with a hyphen is an adjective
        ("two-man").
        """
        known = self.people.get(bare)
        if known is not None or bare[-3:] not in ("man", "men") or bare in self.not_man or "-" in bare:
            return known
        ending = next(one for one in _ENDINGS if bare.endswith(one))
        stem = bare.removesuffix(ending)
        return PersonWord(stem + _ENDINGS[ending], ("gender",)) if len(stem) > 1 else None


@lru_cache(maxsize=2)
def taxonomy(with_hair: bool = False) -> Taxonomy:
    """The packaged taxonomy."""
    nouns, adjectives, contexts = (_read(name) for name in ("people", "modifiers", "contexts"))
    chosen = (*ATTRIBUTES, HAIR) if with_hair else ATTRIBUTES
    people = dict(_people(nouns))
    neutral = {one for word in nouns["neutral"] for one in (word, plural(word))}
    modifiers = {word: name for name, words in adjectives.items() if name in chosen for word in words}
    return Taxonomy(
        attributes=chosen,
        people=people,
        neutral_people=frozenset((*neutral, *nouns["neutral_only"])),
        neutral_words=frozenset(word for known in people.values() for word in known.neutral.split()),
        modifiers=modifiers,
        animals=frozenset(contexts["animals"]),
        figures=frozenset(contexts["figures"]),
        things=frozenset(contexts["things"]),
        not_people=frozenset((*contexts["animals"], *contexts["figures"])),
        not_eyes=frozenset(contexts["not_eyes"]),
        titles=frozenset(contexts["titles"]),
        idioms=re.compile(r"\b(?:" + "|".join(contexts["idioms"]) + r")\b(?:['\u2019]s?\b)?"),
        compounds=_compounds((*people, *modifiers, *contexts["animals"])),
        not_man=frozenset(nouns["not_man"]),
    )


def plural(noun: str) -> str:
    """The plural of a noun for a person; of "member of the clergy" and "parent-in-law" that of the first word."""
    head, sign, rest = noun.partition(" of ") if " of " in noun else noun.partition("-in-law")
    for one, many in _PLURALS:
        if head.endswith(one) and head not in _read("people")["not_man"]:
            return head.removesuffix(one) + many + sign + rest
    if head.endswith("y") and head[-2] not in "aeiou":
        return head[:-1] + "ies" + sign + rest
    return head + ("es" if head.endswith(("s", "x", "ch", "sh")) and not head.endswith("arch") else "s") + sign + rest


def _people(nouns: dict[str, Any]) -> Iterator[tuple[str, PersonWord]]:
    for tells, said in nouns["words"].items():
        for neutral, words in said.items():
            for word in words:
                yield word, PersonWord(neutral, tuple(tells.split()))
                yield plural(word), PersonWord(plural(neutral), tuple(tells.split()))
    for word, (neutral, told) in nouns["exact"].items():
        yield word, PersonWord(neutral, tuple(told))


def _compounds(words: Iterable[str]) -> dict[str, frozenset[str]]:
    """ "middle-aged" is found as "middle aged", too."""
    found = defaultdict[str, set[str]](set)
    for word in words:
        left, hyphen, right = word.partition("-")
        if hyphen and "-" not in right:
            found[right].add(left)
    return {right: frozenset(lefts) for right, lefts in found.items()}


@lru_cache(maxsize=256)
def word_list(name: str, lexicon: str = "grammar") -> frozenset[str]:
    """A closed class of words from `lexicons/grammar.yaml`, or from another lexicon."""
    return frozenset(_read(lexicon)[name])


@lru_cache(maxsize=64)
def values(name: str) -> tuple[str, ...]:
    """What may be said of something, from `lexicons/values.yaml`."""
    return tuple(_read("values")[name])


@lru_cache(maxsize=64)
def one_of(*names: str) -> str:
    """A regular expression of the values of these names, the longest first."""
    return any_of(value for name in names for value in values(name))


def any_of(words: Iterable[str]) -> str:
    """A regular expression of these words, the longest first; a hyphen may be a blank."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return "|".join(re.escape(word).replace(r"\-", "[ -]").replace(r"\ ", " ") for word in longest_first)


@lru_cache(maxsize=1)
def words_digest() -> str:
    """A hash of all lexicons: what was scrubbed with other words is not finished."""
    state = hashlib.sha256()
    for file in sorted(_LEXICONS.glob("*.yaml")):
        state.update(file.read_bytes())
    return state.hexdigest()[:12]


@lru_cache(maxsize=8)
def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_LEXICONS / f"{name}.yaml").read_text(encoding="utf-8"))
    return found
