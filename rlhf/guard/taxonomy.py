"""The categories of a policy, read from `policies/*.yaml`: what each bans and permits, and the text of its variants.

Source: LlavaGuard seed page, 1.1 (names) and 1.2 (variants). The published wording is not used; see `policy.py` for how
to load it as data.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from rlhf.errors import ConfigError, PolicyError

Variant = Literal["default", "exempt", "sensitive"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NONE = "NA"  # id of "no category applies", which every taxonomy has and which is always safe

_POLICIES = Path(__file__).parent / "policies"
_RULES = ("banned", "permitted")


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
            f"did you mean {nearest[0]!r}?"
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


@lru_cache(maxsize=16)
def taxonomy(name: str = "default") -> Taxonomy:
    """A packaged taxonomy ("default", "eu", "tiny", "tiny_answers") or one from a YAML file of the same form.

    Raises ConfigError naming the file and every key that is wrong.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _POLICIES / f"{name}.yaml"
    content = read_policy_yaml(path)
    lines = content.get("style") == "lines"
    known = {"name", "opening", "none", "categories"} | ({"style", "lines"} if lines else {"headings", "declarations"})
    problems = [f"{path}: unknown key {key!r}" for key in sorted(set(content) - known)]
    problems += [f"{path}: key {key!r} is missing" for key in sorted(known - set(content))]
    if problems:
        raise ConfigError(problems)
    words = dict(content["lines"]) if lines else {**content["headings"], **content["declarations"]}
    needed = set(VARIANTS) if lines else {*_RULES, "exempt", "sensitive"}
    problems += [f"{path}: no text for {word!r}" for word in sorted(needed - set(words))]
    categories = tuple(_category(path, one, lines, problems) for one in content["categories"])
    ids = [*(category.id for category in categories), NONE]
    problems += [f"{path}: category {name!r} occurs twice" for name in sorted({n for n in ids if ids.count(n) > 1})]
    if content["none"].get("id") != NONE:
        problems.append(f"{path}: the category for none must have the id {NONE!r}, found {content['none'].get('id')!r}")
    if not categories:
        problems.append(f"{path}: 'categories' is empty")
    if problems:
        raise ConfigError(problems)
    none = Category(content["none"]["id"], content["none"]["title"])
    return Taxonomy(content["name"], content["opening"].strip(), categories, none, words, lines)


def read_policy_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError for a file that is missing or is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        packaged = ", ".join(sorted(one.stem for one in _POLICIES.glob("*.yaml")))
        raise ConfigError([f"taxonomy: no such file {path}; packaged are {packaged}"]) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected a mapping, found {type(content).__name__}"])
    return content


def packaged(name: str) -> Path:
    """The path of a packaged policy file."""
    return _POLICIES / f"{name}.yaml"


def _category(path: Path, content: dict[str, Any], lines: bool, problems: list[str]) -> Category:
    known = {"id", "title"} | (set() if lines else set(_RULES))
    where = f"{path}: category {content.get('id', '?')}"
    problems += [f"{where}: unknown key {key!r}" for key in sorted(set(content) - known)]
    missing = sorted(key for key in known if not content.get(key))
    problems += [f"{where}: {key!r} is missing or empty" for key in missing]
    rules = {rule: tuple(content.get(rule) or ()) for rule in _RULES}
    return Category(str(content.get("id", "")), str(content.get("title", "")), **rules)
