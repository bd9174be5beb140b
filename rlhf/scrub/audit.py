"""What scrubbing changed: counts per attribute, speaker and source, and examples with their words marked."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.scrub.taxonomy import ATTRIBUTES, HAIR, UNKNOWN, Attribute

_EXAMPLES = 8  # of each attribute and source
_LONGEST_EXAMPLE = 2000  # characters; comparing two texts word by word takes the square of their length
_SOMETIMES: tuple[Attribute, ...] = (HAIR, UNKNOWN)  # shown where they occur
_SPEAKERS = {"human": "question", "gpt": "answer"}


@dataclass(frozen=True)
class Piece:
    """Part of a turn: `kind` is same, gone or new."""

    text: str
    kind: str


@dataclass(frozen=True)
class Example:
    """One changed turn."""

    source: str
    identifier: str
    speaker: str
    attributes: tuple[str, ...]
    pieces: tuple[Piece, ...]


class Audit:
    """Collects rows as they are written; its size depends on attributes and sources, not on rows."""

    def __init__(self) -> None:
        self._cues: Counter[tuple[str, str, str]] = Counter()  # source, attribute, speaker
        self._turns: Counter[tuple[str, str, str]] = Counter()
        self._asked: Counter[tuple[str, str]] = Counter()
        self._kept: Counter[tuple[str, str]] = Counter()  # questions that ask for something, which keep their words
        self._all: Counter[str] = Counter()
        self._examples: dict[tuple[str, str], list[Example]] = defaultdict(list)

    def add(
        self,
        source: str,
        row: Mapping[str, Any],
        changes: Sequence[Mapping[str, Any]],
        before: Mapping[str, str],
        kept: Mapping[str, Sequence[str]],
    ) -> None:
        """Count a row's changes; `before` has the old text of changed turns, `kept` what questions still tell."""
        self._all[source] += len(row["conversations"])
        self._kept.update((source, attribute) for told in kept.values() for attribute in told)
        seen = set()
        for change in changes:
            key = (source, change["attribute"], _SPEAKERS[change["speaker"]])
            self._cues[key] += 1
            self._asked[source, change["attribute"]] += change["rule"] == "asked"
            if (change["turn"], change["attribute"]) not in seen:
                seen.add((change["turn"], change["attribute"]))
                self._turns[key] += 1
                self._remember(source, row, changes, change, before[str(change["turn"])])

    def table(self) -> list[dict[str, Any]]:
        """One record per source and attribute: turns that tell it before and after, by question and answer.

        After, questions that ask for an attribute still tell what they told. The rest is none by construction: a row in
        which the verifier finds anything is refused.
        """
        return [
            {
                "source": source,
                "attribute": attribute,
                "turns": self._all[source],
                "question_turns": self._turns[source, attribute, "question"] + self._kept[source, attribute],
                "question_turns_after": self._kept[source, attribute],
                "answer_turns": self._turns[source, attribute, "answer"],
                "answer_turns_after": 0,
                "cues": sum(self._cues[source, attribute, speaker] for speaker in _SPEAKERS.values()),
                "refused_answers": self._asked[source, attribute],
            }
            for source in self._all
            for attribute in (*ATTRIBUTES, *_SOMETIMES)
            if attribute in ATTRIBUTES
            or self._kept[source, attribute]
            or any(self._turns[source, attribute, one] for one in _SPEAKERS.values())
        ]

    def page(self, manifest: Mapping[str, Any]) -> str:
        """The audit as one HTML page."""
        from rlhf.report import environment

        examples = [one for found in self._examples.values() for one in found]
        return (
            environment()
            .get_template("scrub.html.j2")
            .render(table=self.table(), examples=examples, manifest=manifest, attributes=(*ATTRIBUTES, *_SOMETIMES))
        )

    def _remember(
        self,
        source: str,
        row: Mapping[str, Any],
        changes: Sequence[Mapping[str, Any]],
        change: Mapping[str, Any],
        before: str,
    ) -> None:
        found = self._examples[source, change["attribute"]]
        if len(found) < _EXAMPLES and len(before) <= _LONGEST_EXAMPLE:
            turn = change["turn"]
            told = tuple(dict.fromkeys(one["attribute"] for one in changes if one["turn"] == turn))
            pieces = difference(before, row["conversations"][turn]["value"])
            found.append(Example(source, str(row["id"]), _SPEAKERS[change["speaker"]], told, pieces))


def difference(before: str, after: str) -> tuple[Piece, ...]:
    """Words that stayed, went and came."""
    left, right = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    pieces = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("".join(left[a:b]), "same"))
            continue
        pieces += [Piece("".join(left[a:b]), "gone")] if b > a else []
        pieces += [Piece("".join(right[c:d]), "new")] if d > c else []
    return tuple(pieces)
