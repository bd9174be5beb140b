"""The words of each attribute, read from `lexicons/`: which name a person, which describe one, and what misleads.

The attributes are those of Safe-LLaVA (seed page, section 1.1); hair is allowed unless it is asked for.
"""

from __future__ import annotations

import hashlib
import re
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
    titles: frozenset[str]
    idioms: re.Pattern[str]

    def is_person(self, word: str) -> bool:
        """Whether a lower-case noun names a person, possessive or not."""
        bare = word.removesuffix("'s").removesuffix("s'") if word.endswith(("'s", "s'")) else word
        return bare in self.people or bare in self.neutral_people


@lru_cache(maxsize=2)
def taxonomy(with_hair: bool = False) -> Taxonomy:
    """The packaged taxonomy."""
    people, modifiers, contexts = (_read(name) for name in ("people", "modifiers", "contexts"))
    chosen = (*ATTRIBUTES, HAIR) if with_hair else ATTRIBUTES
    return Taxonomy(
        attributes=chosen,
        people={word: PersonWord(neutral, tuple(tells)) for word, (neutral, tells) in people["words"].items()},
        neutral_people=frozenset(people["neutral"]),
        neutral_words=frozenset(word for neutral, _ in people["words"].values() for word in neutral.split()),
        modifiers={word: name for name, words in modifiers.items() if name in chosen for word in words},
        animals=frozenset(contexts["animals"]),
        figures=frozenset(contexts["figures"]),
        things=frozenset(contexts["things"]),
        not_people=frozenset((*contexts["animals"], *contexts["figures"])),
        titles=frozenset(contexts["titles"]),
        idioms=re.compile(r"\b(?:" + "|".join(contexts["idioms"]) + r")\b", re.IGNORECASE),
    )


@lru_cache(maxsize=64)
def word_list(name: str, lexicon: str = "grammar") -> frozenset[str]:
    """A closed class of words from `lexicons/grammar.yaml`, or from another lexicon."""
    return frozenset(_read(lexicon)[name])


@lru_cache(maxsize=8)
def words_digest() -> str:
    """A hash of all lexicons: what was scrubbed with other words is not finished."""
    state = hashlib.sha256()
    for file in sorted(_LEXICONS.glob("*.yaml")):
        state.update(file.read_bytes())
    return state.hexdigest()[:12]


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_LEXICONS / f"{name}.yaml").read_text(encoding="utf-8"))
    return found
