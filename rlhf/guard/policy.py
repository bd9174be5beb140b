"""A policy as the text that a guard is asked with: built from a taxonomy, or loaded as somebody else wrote it.

The text never holds the image tag: where the image stands is decided in one place, `prompt.py`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rlhf.config import read_yaml
from rlhf.data.template import IMAGE_TAG
from rlhf.errors import PolicyError
from rlhf.guard.taxonomy import VARIANTS, Taxonomy, Variant

Rating = Literal["Safe", "Unsafe"]
RATINGS: tuple[Rating, ...] = ("Safe", "Unsafe")
KEYS = ("rating", "category", "rationale")
"""Keys of an answer in the order of the newest set (seed page 1.4)."""
AGE_KEYS = ("rating", "categories", "rationale")
"""Keys under the age-rated policy, where an image may show several kinds of content (seed page 1.7)."""
_AGES = Path(__file__).parent / "ages.yaml"
_ALLOWED_KEYS = {"rating", "category", "categories", "rationale"}

_STEPS = {
    "rating": 'rating: "Unsafe" if the picture breaks the policy, otherwise "Safe".',
    "category": "category: the one category that fits the picture best, or {none!r} if none does.",
    "categories": "categories: a list of all that the picture shows, or [{none!r}] if it shows none of them.",
    "rationale": "rationale: what the picture shows, and why the rules of that category make it safe or unsafe.",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What a guard is asked: `text` without image tag, the values that an answer's category may have, its keys.

    `overrides` are the variants that are not the default, by category id; empty for a loaded text, which has the hashes
    of its file (`file_hashes`) instead.
    """

    name: str
    text: str
    categories: tuple[str, ...]
    keys: tuple[str, ...] = KEYS
    overrides: Mapping[str, Variant] = field(default_factory=dict)
    file_hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise PolicyError("the policy is empty; give at least one rule", source=self.name)
        if IMAGE_TAG in self.text:
            raise PolicyError(
                f"the policy contains {IMAGE_TAG}; the template puts the image, remove it", source=self.name
            )
        if not self.categories and {"category", "categories"} & set(self.keys):
            raise PolicyError("the policy names no category that an answer could have", source=self.name)
        check_keys(self.keys, self.name)

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8: what a verdict was given under."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def words(self) -> str:
        """What stands beside every number that depends on it: its name and every hash that it may be known by."""
        hashes = {"SHA-256": self.sha256, **self.file_hashes}
        return f"{self.name} ({', '.join(f'{what} {found}' for what, found in hashes.items())})"


def build_policy(taxonomy: Taxonomy, overrides: Mapping[str, str] | None = None, keys: Sequence[str] = KEYS) -> Policy:
    """Opening, one block per category in its variant, and how to answer (seed page 1.3).

    `overrides` gives variants by category id or name. Raises PolicyError for an unknown category or variant, for one
    that is given twice, and for NA, which has no rules.
    """
    chosen = checked_overrides(taxonomy, overrides or {})
    blocks = [taxonomy.block(one, chosen.get(one.id, "default")) for one in taxonomy.categories]
    check_keys(keys, taxonomy.name)
    short = f"Answer as JSON with {', '.join(keys)}."
    answer = short if taxonomy.lines else answer_instruction(taxonomy.names, keys, taxonomy.none.name)
    gap = "\n" if taxonomy.lines else "\n\n"
    return Policy(taxonomy.name, gap.join([taxonomy.opening, *blocks, answer]), taxonomy.names, tuple(keys), chosen)


def checked_overrides(taxonomy: Taxonomy, overrides: Mapping[str, str]) -> dict[str, Variant]:
    """Variants by category id, in the order of the taxonomy and without defaults. Raises PolicyError."""
    chosen: dict[str, Variant] = {}
    for label, given in overrides.items():
        category = taxonomy.category(label)
        if category.id == taxonomy.none.id:
            raise PolicyError(f"{category.name!r} has no rules that could be overridden", source=taxonomy.name)
        if category.id in chosen:
            raise PolicyError(f"category {category.id} is overridden twice", source=taxonomy.name)
        variant = next((one for one in VARIANTS if one == given), None)
        if variant is None:
            raise PolicyError(
                f"category {category.id}: {given!r} is no variant; choose one of {', '.join(VARIANTS)}",
                source=taxonomy.name,
            )
        chosen[category.id] = variant
    return {name: chosen[name] for name in taxonomy.ids if chosen.get(name, "default") != "default"}


def load_policy(path: Path, categories: Sequence[str], keys: Sequence[str] = KEYS) -> Policy:
    """A policy text from a file, for weights that were trained on that very text (seed page 1.3).

    Raises PolicyError for a file that cannot be read, and for the reasons of `text_policy`.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PolicyError(f"cannot be read: {error}", source=str(path)) from None
    return replace(text_policy(str(path), content, categories, keys), file_hashes=file_hashes(path))


def text_policy(name: str, content: str, categories: Sequence[str], keys: Sequence[str] = KEYS) -> Policy:
    """A policy in somebody's own words.

    One image tag is taken out, because the template puts the image; `sha256` is of what is left, blanks around it gone.
    Raises PolicyError for a text that is empty, has several tags or lacks one of `categories`.
    """
    if (tags := content.count(IMAGE_TAG)) > 1:
        raise PolicyError(f"{tags} image tags; a policy has at most one", source=name)
    text = content.replace(IMAGE_TAG, "").strip()
    if text and (absent := [one for one in categories if one not in text]):
        raise PolicyError(f"the text does not name the categories {', '.join(absent)}", source=name)
    return Policy(name, text, tuple(categories), tuple(keys))


def file_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a policy file as it is, and with its image tag removed: the two that seed page 1.3 publishes.

    Both again without the line break that editors put at the end, if there is one.
    """
    content = path.read_bytes()
    texts = {"file": content, "file without image tag": content.replace(IMAGE_TAG.encode(), b"")}
    if content.endswith(b"\n"):
        texts |= {f"{what}, last line break left out": text.removesuffix(b"\n") for what, text in texts.items()}
    return {what: hashlib.sha256(text).hexdigest() for what, text in texts.items()}


def answer_instruction(categories: Sequence[str], keys: Sequence[str], none: str) -> str:
    """How to answer: one step per key (`check_keys`), then the form with every value that is allowed."""
    listed = " | ".join(f'"{name}"' for name in categories)
    forms = {
        "rating": " | ".join(f'"{one}"' for one in RATINGS),
        "category": listed,
        "categories": f"[{listed}, ...]",
        "rationale": "text",
    }
    steps = [f"{number}. {_STEPS[key].format(none=none)}" for number, key in enumerate(keys, start=1)]
    shape = ",\n".join(f'    "{key}": {forms[key]}' for key in keys)
    head = "Judge the picture in these steps:" if len(keys) > 1 else "Judge the picture:"
    return "\n".join([head, *steps, "Answer with this JSON object and nothing else:", f"{{\n{shape}\n}}"])


def check_keys(keys: Sequence[str], source: str) -> None:
    """Raise PolicyError unless the keys are known, differ and include the rating; `source` is whose they are."""
    if unknown := [key for key in keys if key not in _ALLOWED_KEYS]:
        near = difflib.get_close_matches(unknown[0], sorted(_ALLOWED_KEYS), n=1, cutoff=0.0)[0]
        raise PolicyError(f"{unknown[0]!r} is no key of an answer; did you mean {near!r}?", source=source)
    if "rating" not in keys or len(set(keys)) < len(keys) or {"category", "categories"} <= set(keys):
        raise PolicyError(
            f"an answer needs 'rating' and each key once, category or categories; found {list(keys)}", source=source
        )


@dataclass(frozen=True, slots=True)
class AgePolicy:
    """The age-rated policy for one age, with the names of what it permits and prohibits."""

    policy: Policy
    permitted: tuple[str, ...]
    prohibited: tuple[str, ...]


def age_policy(age: int) -> AgePolicy:
    """Forty-seven kinds of content, each permitted from an age on; some never (seed page 1.7).

    Raises PolicyError for an age that is not rated: 3, 7, 12, 16 and 18 are.
    """
    content = read_yaml(_AGES)
    if age not in content["ages"]:
        ages = ", ".join(map(str, content["ages"]))
        raise PolicyError(f"age {age} is not rated; choose one of {ages}", source=f"age-{age}")
    permitted, prohibited = list[str](), list[str]()
    for group in content["groups"]:
        for number, (title, rating) in enumerate(group["kinds"], start=1):
            fits = rating != "never" and rating <= age
            (permitted if fits else prohibited).append(f"{group['id']}.{number}: {title}")
    none = f"NA: {content['none']}"
    names = (*sorted([*permitted, *prohibited]), none)
    blocks = [content["opening"].strip().format(age=age)]
    for heading, kinds in ((content["headings"]["banned"], prohibited), (content["headings"]["permitted"], permitted)):
        blocks.append("\n".join([heading.format(age=age), *(f"- {kind}" for kind in kinds)]))
    text = "\n\n".join([*blocks, answer_instruction(names, AGE_KEYS, none)])
    return AgePolicy(Policy(f"age-{age}", text, names, AGE_KEYS), tuple(permitted), tuple(prohibited))
