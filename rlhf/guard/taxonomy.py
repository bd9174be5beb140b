"""The categories of a policy, read from `policies/*.yaml`: what each bans and permits, and the text of its variants.

Source: LlavaGuard seed page, 1.1 (names) and 1.2 (variants). The published wording is not used; see `policy.py` for how
to load it as data.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from rlhf.config import Config, read_yaml, validated
from rlhf.errors import ConfigError, PolicyError

Variant = Literal["default", "exempt", "sensitive"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NONE = "NA"  # id of "no category applies", which every taxonomy has and which is always safe

_POLICIES = Path(__file__).parent / "policies"
_RULES = ("banned", "permitted")
_Text = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True, slots=True)
class Category:
    """One category. `name` is what an answer says ("O2: Violence, Harm, or Cruelty")."""

    id: str
    title: str
    banned: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Id and title together."""
        return f"{self.id}: {self.title}"


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Categories in the order of the policy, without the one for none, and the words that their rules stand in.

    `words` are the headings "banned" and "permitted" and the declarations "exempt" and "sensitive"; in a taxonomy of
    single lines, the word that each variant has before the title.
    """

    name: str
    opening: str
    categories: tuple[Category, ...]
    none: Category
    words: dict[str, str]
    lines: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the categories, without NA."""
        return tuple(category.id for category in self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Every value that an answer's category may have, NA's last."""
        return (*(category.name for category in self.categories), self.none.name)

    def category(self, label: str) -> Category:
        """The category with this id or name, in any case. Raises PolicyError with the nearest known one."""
        wanted = label.strip().casefold()
        every = (*self.categories, self.none)
        for category in every:
            if wanted in (category.id.casefold(), category.name.casefold()):
                return category
        known = [name for one in every for name in (one.id, one.name)]
        nearest = difflib.get_close_matches(label, known, n=1, cutoff=0.0)
        raise PolicyError(
            f"{label!r} is no category of the taxonomy {self.name!r} ({', '.join(self.ids)}, {self.none.id}); "
            f"did you mean {nearest[0]!r}?",
            source=self.name,
        )

    def block(self, category: Category, variant: Variant) -> str:
        """The text of one category in one variant (seed page 1.2), its name on the first line."""
        if self.lines:
            return f"{category.id}: {self.words[variant]} {category.title}"
        if variant == "default":
            lists = [(self.words[rule], getattr(category, rule)) for rule in _RULES]
        else:
            lists = [(self.words[variant], (*category.banned, *category.permitted))]
        body = "\n".join(line for heading, rules in lists for line in (heading, *(f"- {rule}" for rule in rules)))
        return f"{category.name}:\n{body}"


def id_in(name: str) -> str:
    """The id in a category's full name: "O2" of "O2: Violence, Harm, or Cruelty"."""
    return name.partition(":")[0].strip()


def is_none(name: str) -> bool:
    """Whether a category's name or id is the one for none, whatever the taxonomy calls it."""
    return id_in(name) == NONE


class NamedEntry(Config):
    """A category of a file of single lines; of any file, the one for none."""

    id: _Text
    title: _Text


class RuledEntry(NamedEntry):
    """A category of any other file."""

    banned: tuple[_Text, ...] = Field(min_length=1)
    permitted: tuple[_Text, ...] = Field(min_length=1)


class NoneEntry(NamedEntry):
    """The category for none."""

    id: Literal["NA"]


class Headings(Config):
    """What stands above the rules of the default variant."""

    banned: _Text
    permitted: _Text


class Declarations(Config):
    """What stands above the rules of the other two variants."""

    exempt: _Text
    sensitive: _Text


class LineWords(Declarations):
    """The word that each variant has before the title."""

    default: _Text


class TaxonomyFile(Config):
    """A YAML file; single lines (`style: lines`) or rules."""

    name: _Text
    opening: _Text
    none: NoneEntry


class RuledFile(TaxonomyFile):
    """Categories with rules."""

    headings: Headings
    declarations: Declarations
    categories: tuple[RuledEntry, ...] = Field(min_length=1)


class LinesFile(TaxonomyFile):
    """Categories of single lines."""

    style: Literal["lines"]
    lines: LineWords
    categories: tuple[NamedEntry, ...] = Field(min_length=1)


@lru_cache(maxsize=16)
def taxonomy(name: str = "default") -> Taxonomy:
    """A packaged taxonomy ("default", "eu", "tiny", "tiny_answers") or one from a YAML file of the same form.

    Raises ConfigError naming the file and every key that is wrong.
    """
    path = taxonomy_file(name)
    content = read_yaml(path)
    problems = _wrong_ids(content.get("categories"))
    try:
        if content.get("style") == "lines":
            return _of_lines(validated(LinesFile, content, problems))
        return _of_rules(validated(RuledFile, content, problems))
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def taxonomy_file(name: str) -> Path:
    """Where a taxonomy is read from: the file that `name` is, which may be absent, or the packaged one that it names.

    Raises ConfigError for the name of none.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in (known := sorted(one.stem for one in _POLICIES.glob("*.yaml"))):
        raise ConfigError([f"taxonomy: {name!r} is not packaged ({', '.join(known)}), and no YAML file"])
    return _POLICIES / f"{name}.yaml"


def _of_rules(file: RuledFile) -> Taxonomy:
    categories = tuple(Category(**one.model_dump()) for one in file.categories)
    words = {**file.headings.model_dump(), **file.declarations.model_dump()}
    return Taxonomy(file.name, file.opening.strip(), categories, Category(**file.none.model_dump()), words)


def _of_lines(file: LinesFile) -> Taxonomy:
    categories = tuple(Category(**one.model_dump()) for one in file.categories)
    none = Category(**file.none.model_dump())
    return Taxonomy(file.name, file.opening.strip(), categories, none, file.lines.model_dump(), lines=True)


def _wrong_ids(categories: Any) -> list[str]:
    """What is wrong with the ids of a file's categories, as far as it has any; case makes no difference."""
    entries = categories if isinstance(categories, list) else []
    ids = [one["id"] for one in entries if isinstance(one, dict) and isinstance(one.get("id"), str)]
    counts, spelled = Counter(one.casefold() for one in ids), {one.casefold(): one for one in ids}
    problems = [f"categories: {spelled[name]!r} occurs twice" for name, count in counts.items() if count > 1]
    if NONE.casefold() in counts:
        problems.append(f"categories: {NONE!r} is the category for none and has no rules; remove it")
    return problems
