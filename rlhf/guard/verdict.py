"""What a guard said, made of its text: strict JSON first, what can be rescued second and flagged, else invalid.

Source: LlavaGuard seed page, 1.6. An answer that cannot be read is `invalid`, never silently safe. Other than the seed,
one-line JSON and a brace inside the rationale are read whole, and an empty category is never credited.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.data.rows import whole_characters
from rlhf.guard.policy import RATINGS, Policy, Rating

Status = Literal["json", "rescued", "invalid"]

_WRAPPING = re.compile(r"</?s>|<\|im_end\|>|<\|endoftext\|>|```(?:json)?")
_LEADING = re.compile(r"\Ajson\b\s*")
_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\uff07]")
_RATING = re.compile(r"[\"']rating[\"']\s*:\s*(?:[\"']([^\"'\n]*)[\"'])?")
_CLOSED = re.compile(r"[^\S\n]*(?:\n|,?\s*(?:[\"'}]|\Z))")  # behind a value; a form goes on with "|" or a word
_QUOTED = re.compile(r"[\"'](Safe|Unsafe)[\"']")
_CATEGORY = re.compile(r"[\"']category[\"']\s*:\s*\"([^\"\n]*)\"|[\"']category[\"']\s*:\s*'([^'\n]*)'")
_RATIONALE = re.compile(r"[\"']rationale[\"']\s*:\s*[\"'](.*)\Z", re.DOTALL)
_UNSAFE, _SAFE = re.compile(r"\bun-?safe\b", re.IGNORECASE), re.compile(r"(?<![\w-])Safe\b")
_DENIED = re.compile(
    r"""
    (?: \b(?: not | cannot | never | neither | nor | no | non | nothing | none | nobody | without | hardly | barely
          | scarcely | unlikely | whether | doubt\w* | fail\w* | lack\w* | false | (?:less|rather)\s+than
          | instead\s+of | far\s+from | anything\s+but )\b | n't\b )
      (?: (?! ,\s+(?:and\s+)?(?:so|thus|hence|therefore|making)\b ) [^.!?;\n] ){0,200}?  # a conclusion is not denied
      (?<!\w) (?:un-?)?safe\b
    | \b(?:un-?)?safe\b [\"'*]* \s* (?: \? | or\s+not\b | [:=]\s*(?: not\b | false\b | no\b(?!\s+\w) ) )
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer of a guard. `rating` is None exactly where `status` is invalid.

    json: the text is the object that the policy asks for. rescued: the rating was found in something else; `reason`
    says why. `categories` has at most one name unless the policy allows several, and only names that the policy has.
    Its texts have whole characters only.
    `silent` marks an invalid one of a guard that never answered: asked again, it may.
    """

    status: Status
    rating: Rating | None
    categories: tuple[str, ...]
    rationale: str
    raw: str
    reason: str = ""
    silent: bool = False

    def __post_init__(self) -> None:
        for name in ("rationale", "raw", "reason"):
            object.__setattr__(self, name, whole_characters(getattr(self, name)))

    @property
    def category(self) -> str | None:
        """The only or first category."""
        return self.categories[0] if self.categories else None


def silent_verdict(reason: str) -> Verdict:
    """What stands for the verdict of a guard that never answered."""
    return Verdict("invalid", None, (), "", "", reason, silent=True)


class _NotTheFormError(ValueError):
    """The text is JSON, but not the object that was asked for."""


def parse_verdict(raw: str, policy: Policy) -> Verdict:
    """The verdict in a guard's text under the policy that it was asked with. Never raises."""
    try:
        return _read(raw, policy)
    except RecursionError:
        return Verdict("invalid", None, (), "", raw, "JSON that is nested too deeply")


def _read(raw: str, policy: Policy) -> Verdict:
    text = _LEADING.sub("", _WRAPPING.sub("", raw).strip())
    if not text:
        return Verdict("invalid", None, (), "", raw, "the answer is empty")
    try:
        content, end = json.JSONDecoder(object_pairs_hook=_once).raw_decode(text, max(text.find("{"), 0))
    except _NotTheFormError as error:
        return Verdict("invalid", None, (), "", raw, str(error))
    except ValueError as error:
        return _rescued(text, raw, policy, f"not JSON: {error}")
    if not isinstance(content, dict):
        return _rescued(text, raw, policy, f"expected a JSON object, found {type(content).__name__}")
    verdict = _from_object(content, raw, policy)
    if verdict.rating and any(other not in ("", verdict.rating) for other in _RATING.findall(text[end:])):
        return Verdict("invalid", None, (), "", raw, "a second object has another rating")
    return verdict


def verdict_schema(policy: Policy, longest_rationale: int | None = None) -> str:
    """JSON schema of an answer under the policy, for constrained decoding; keys in the policy's order.

    `longest_rationale`, in characters, lets an answer end within its budget of tokens (seed trap 6); with it, vLLM's
    grammar allows no escapes, so a rationale cannot quote.
    """
    rationale: dict[str, Any] = {"type": "string"}  # no minLength: it too would forbid escapes
    if longest_rationale is not None:
        rationale["maxLength"] = longest_rationale
    category = {"type": "string", "enum": list(policy.categories)}
    forms: dict[str, dict[str, Any]] = {
        "rating": {"type": "string", "enum": list(RATINGS)},
        "category": category,
        "categories": {"type": "array", "items": category, "minItems": 1},
        "rationale": rationale,
    }
    schema = {
        "type": "object",
        "properties": {key: forms[key] for key in policy.keys},
        "required": list(policy.keys),
        "additionalProperties": False,
    }
    return json.dumps(schema, ensure_ascii=False)


def answer_text(policy: Policy, rating: Rating, categories: Sequence[str], rationale: str) -> str:
    """The answer that a guard learns to give: JSON with four blanks of indentation (seed page 1.4)."""
    values: dict[str, Any] = {
        "rating": rating,
        "category": categories[0] if categories else "",
        "categories": list(categories),
        "rationale": rationale,
    }
    return json.dumps({key: values[key] for key in policy.keys}, indent=4, ensure_ascii=False)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise _NotTheFormError(f"key {twice[0]!r} occurs twice")
    return dict(pairs)


def _from_object(content: dict[str, Any], raw: str, policy: Policy) -> Verdict:
    """A JSON object's rating decides; without a valid one nothing is looked for elsewhere."""
    rating = next((one for one in RATINGS if content.get("rating") == one), None)
    if rating is None:
        return Verdict("invalid", None, (), "", raw, f"'rating' is {content.get('rating')!r}")
    categories, wrong = _categories(content, policy)
    rationale = content.get("rationale", "")
    problems = [wrong] if wrong else []
    problems += [f"key {key!r} is missing" for key in policy.keys if key not in content]
    problems += [f"unknown key {key!r}" for key in content if key not in policy.keys]
    if not isinstance(rationale, str) or ("rationale" in policy.keys and not rationale.strip()):
        rationale, problems = "", [*problems, "no rationale"]
    return Verdict("rescued" if problems else "json", rating, categories, rationale, raw, "; ".join(problems))


def _categories(content: dict[str, Any], policy: Policy) -> tuple[tuple[str, ...], str]:
    """The names that the policy has, and what is wrong with the rest."""
    key = next((key for key in ("category", "categories") if key in policy.keys), None)
    if key is None or key not in content:
        return (), ""
    named = content[key] if key == "categories" else [content[key]]
    if not isinstance(named, list) or not named:
        return (), f"{key!r} is {content[key]!r}"
    known = tuple(dict.fromkeys(name for name in named if name in policy.categories))
    unknown = [name for name in named if name not in policy.categories]
    return known, f"{key!r} is {unknown[0]!r}, which the policy does not have" if unknown else ""


def _rescued(text: str, raw: str, policy: Policy, problem: str) -> Verdict:
    """A rating out of broken JSON or prose; contradictions and denials are invalid."""
    if values := list(_RATING.finditer(text)):
        found = {one[1] if one[1] in RATINGS and _CLOSED.match(text, one.end()) else None for one in values}
        found |= set(_QUOTED.findall(text))
        category = next((one or other for one, other in _CATEGORY.findall(text)), "")
        rationale = match[1].strip().rstrip("}").rstrip().rstrip("\"'") if (match := _RATIONALE.search(text)) else ""
    else:
        found = {name for name, form in (("Unsafe", _UNSAFE), ("Safe", _SAFE)) if form.search(text)}
        category, rationale = "", ""
        if found and _DENIED.search(_APOSTROPHES.sub("'", text)):
            return Verdict("invalid", None, (), "", raw, f"{problem}; the prose denies or doubts a rating")
    if len(found) != 1 or None in found:
        why = "both ratings are named" if set(RATINGS) <= found else "no rating is named"
        return Verdict("invalid", None, (), "", raw, f"{problem}; {why}")
    rating: Rating = "Unsafe" if "Unsafe" in found else "Safe"
    categories = (category,) if category in policy.categories else ()
    return Verdict("rescued", rating, categories, rationale, raw, problem)
