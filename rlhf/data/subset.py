"""Which rows of SPA-VL are used: the filters and the seeded, nested subsets of the paper's ablations (row 31)."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, field_validator

from rlhf.config import Config
from rlhf.data.spa_vl_labels import QUESTION_TYPES, RESPONSE_MODELS, normal_label, normal_question_type


class SubsetConfig(Config):
    """What to keep. Filters are applied first; `size` counts rows that passed them."""

    size: int | None = Field(default=None, ge=1)
    """Rows to keep (the paper: 100 to 90000); unset keeps all. A subset contains every smaller one of its seed."""
    seed: int = 0
    """Which rows a subset holds."""
    question_types: tuple[str, ...] = ()
    """Keep these types only: easy, hardq, hards (hardd is accepted for hards); empty keeps all."""
    class1: tuple[str, ...] = ()
    """Keep these domains only; empty keeps all. Case and missing white space do not matter."""
    class2: tuple[str, ...] = ()
    """Keep these second-level classes only; empty keeps all."""
    class3: tuple[str, ...] = ()
    """Keep these leaf classes only; empty keeps all."""
    response_models: tuple[str, ...] = ()
    """Keep pairs whose two answers were both written by these models; empty keeps all."""

    @field_validator("question_types")
    @classmethod
    def _known_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        types = tuple(dict.fromkeys(normal_question_type(name) for name in names))
        if unknown := [name for name in types if name not in QUESTION_TYPES]:
            raise ValueError(f"unknown question type {', '.join(unknown)}; known: {', '.join(QUESTION_TYPES)}")
        return types

    @field_validator("class1", "class2", "class3")
    @classmethod
    def _one_spelling(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normal_label(label) for label in labels)

    @field_validator("response_models")
    @classmethod
    def _known_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in RESPONSE_MODELS]:
            raise ValueError(f"unknown response model {', '.join(unknown)}; known: {', '.join(RESPONSE_MODELS)}")
        return names

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The wanted labels of each level that is filtered."""
        levels = {"class1": self.class1, "class2": self.class2, "class3": self.class3}
        return {level: labels for level, labels in levels.items() if labels}

    def excluded_by(self, record: Mapping[str, Any]) -> str | None:
        """The key of the first filter that a converted row does not pass, None if it passes all."""
        if self.question_types and record["keyword"] not in self.question_types:
            return "question_types"
        for level, labels in self.classes.items():
            if label_key(record[level]) not in {label_key(label) for label in labels}:
                return level
        wanted = set(self.response_models)
        if wanted and not (wanted & set(record["chosen_models"]) and wanted & set(record["rejected_models"])):
            return "response_models"
        return None


def label_key(label: str) -> str:
    """What two spellings of one normalised label have in common."""
    return "".join(label.casefold().split())


def nested_subset(ids: Iterable[int], size: int, seed: int) -> set[int]:
    """The `size` ids with the smallest seeded hash: the same whatever their order, and contained in larger subsets.

    A row's rank depends on its id alone, so a filter removes rows from a subset without reordering the others.
    """
    return set(heapq.nsmallest(size, ids, key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest()))
