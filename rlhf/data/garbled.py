"""Text as a bad model writes it: words repeated, cut off, misspelt or out of order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Manner = Callable[[random.Random, list[str]], list[str]]


def garbled(rng: random.Random, text: str, whole: bool = False) -> str:
    """A text of at least two different words, spoilt in one manner; `whole` leaves every word in it."""
    manners = _WHOLE if whole else _MANNERS
    return " ".join(rng.choice(manners)(rng, text.split()))


def _repeated(rng: random.Random, words: list[str]) -> list[str]:
    place = rng.randrange(len(words))
    return words[:place] + [words[place]] * rng.randint(3, 9) + words[place + 1 :]


def _cut(rng: random.Random, words: list[str]) -> list[str]:
    return words[: rng.randint(1, len(words) - 1)]


def _misspelt(rng: random.Random, words: list[str]) -> list[str]:
    """One of the longest words without one of its inner letters, or with it twice."""
    longest = max(len(word) for word in words)
    place = rng.choice([index for index, word in enumerate(words) if len(word) >= min(longest, 5)])
    word = words[place]
    letter = rng.randrange(1, max(2, len(word) - 2))
    changed = word[:letter] + rng.choice(("", 2 * word[letter])) + word[letter + 1 :]
    return [*words[:place], changed, *words[place + 1 :]]


def _mixed(rng: random.Random, words: list[str]) -> list[str]:
    mixed = words[:]
    while mixed == words:
        rng.shuffle(mixed)
    return mixed


_MANNERS: Sequence[Manner] = (_repeated, _cut, _misspelt, _mixed)
_WHOLE: Sequence[Manner] = (_repeated, _misspelt, _mixed)
