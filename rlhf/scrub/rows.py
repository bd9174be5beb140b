"""A conversation without biometric information, with a record of every change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf.data.template import IMAGE_TAG
from rlhf.errors import RowError
from rlhf.scrub.engines import Rejected, Rewriter, RulesRewriter
from rlhf.scrub.meaning import lost_meaning
from rlhf.scrub.questions import NOTHING_ASKED, read_question
from rlhf.scrub.quotes import quotation
from rlhf.scrub.rewrite import Cue, find_cues
from rlhf.scrub.taxonomy import UNKNOWN, Attribute, Taxonomy
from rlhf.scrub.text import Context

REFUSAL = "I'm sorry, but I don't describe age, gender, race, eye colour or weight of people."
_KEYS = ("id", "image", "model", "conversations")  # the keys of LLaVA's files
_NO_TEXT = (bool, int, float, type(None))


class LeakError(RowError):
    """A row whose rewritten text still tells an attribute, or says something else than before."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the lineage: why a turn is not what it was. Offsets are characters of the turn as it was."""

    turn: int
    speaker: str
    attribute: Attribute
    rule: str
    start: int
    end: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A row as it may be trained on, and what was changed in it.

    `kept` has the attributes that questions still tell, by turn: one that asks for an attribute keeps its words.
    `left_out` names keys with text of which nobody knows what it tells.
    """

    row: dict[str, Any]
    changes: list[Change]
    kept: dict[int, list[Attribute]]
    left_out: list[str]


def scrub_row(row: Mapping[str, Any], taxonomy: Taxonomy, engine: Rewriter | None = None) -> Scrubbed:
    """The row with every turn said neutrally; ids, image, turn count and image tags stay.

    Of other keys only numbers and flags stay, and of a turn who speaks and what is said: ShareGPT's turns hold their
    text twice, and captions beside a conversation are not scrubbed.
    A question that asks for an attribute keeps its text and its answer becomes the refusal; what is told in passing is
    rewritten by the engine (default: the rules) and audited by the rules; no engine is asked for a refusal. Raises
    RowError for a malformed row, LeakError where the last try still leaks or says something else.
    """
    turns = _turns(row)
    engine = engine or RulesRewriter(taxonomy)
    context, changes, scrubbed = Context(), [], []
    kept: dict[int, list[Attribute]] = {}
    question = NOTHING_ASKED
    for number, turn in enumerate(turns):
        text = turn["value"]
        if turn["from"] == "human":
            question = read_question(text.replace(IMAGE_TAG, " "), taxonomy, context)
            if question.asks:
                kept[number] = sorted(question.asks | {cue.attribute for cue in find_cues(text, taxonomy, context)})
            here = replace(context, quoted=question.quotes)
            new, cues = (text, []) if question.asks else _neutral(turn, taxonomy, here, engine)
        elif question.asks:
            new, cues = REFUSAL, [Cue(0, len(text), attribute, "asked") for attribute in sorted(question.asks)]
        else:
            quoted = quotation(text) if question.answer_quotes else ()
            new, cues = _neutral(turn, taxonomy, replace(context, quoted=quoted), engine)
            if not new.strip():
                new = REFUSAL
        if new != text:
            before, after = _hash(text), _hash(new)
            changes += [
                Change(number, turn["from"], one.attribute, one.rule, one.start, one.end, before, after) for one in cues
            ]
        context = replace(_seen(text, taxonomy, context), topic=question.topic, asked=question.asks)
        scrubbed.append({"from": turn["from"], "value": new})
    left_out = [key for key, value in row.items() if key not in _KEYS and not isinstance(value, _NO_TEXT)]
    left_out += sorted({f"conversations.{key}" for turn in turns for key in turn if key not in ("from", "value")})
    whole = {key: value for key, value in row.items() if key not in left_out}
    return Scrubbed({**whole, "conversations": scrubbed}, changes, kept, left_out)


def _neutral(turn: Mapping[str, str], taxonomy: Taxonomy, context: Context, engine: Rewriter) -> tuple[str, list[Cue]]:
    text, speaker = turn["value"], turn["from"]
    cues = find_cues(text, taxonomy, context)
    if not cues and not engine.every_turn:
        return text, []
    rejected: list[Rejected] = []
    for _ in range(engine.tries):
        new = engine.rewrite(text, speaker, context, rejected)
        problem = _problem(turn, new, cues, taxonomy, context)
        if problem is None:
            return new, cues or [Cue(0, len(text), UNKNOWN, "model")]
        rejected.append(Rejected(new, problem))
    tried = f" (after {engine.tries} tries)" if engine.tries > 1 else ""
    raise LeakError(f"{rejected[-1].problem}: {rejected[-1].text!r}{tried}")


def _problem(turn: Mapping[str, str], new: str, cues: list[Cue], taxonomy: Taxonomy, context: Context) -> str | None:
    """What the verifier finds in a rewritten turn."""
    if left := find_cues(new, taxonomy, context):
        told = ", ".join(sorted({f"{cue.attribute} ({new[cue.start : cue.end].strip()})" for cue in left}))
        return f"it still tells {told}"
    if turn["from"] == "human" and not new.replace(IMAGE_TAG, "").strip():
        return "nothing is left of the question"
    return lost_meaning(turn["value"], new, cues, taxonomy)


def _turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RowError("'conversations' must be a list of turns that is not empty")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("from") not in ("human", "gpt"):
            raise RowError(f"turn {number} of 'conversations' must be from 'human' or 'gpt'")
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            raise RowError(f"turn {number} has no text")
        if turn["from"] == "gpt" and IMAGE_TAG in turn["value"]:
            raise RowError(f"turn {number} is an answer with an {IMAGE_TAG} tag")
        if number and turn["from"] == turns[number - 1]["from"]:
            raise RowError(f"turns {number - 1} and {number} are both from {turn['from']!r}")
    return turns


def _seen(text: str, taxonomy: Taxonomy, context: Context) -> Context:
    words = {word.strip(".,;:!?\"'()").lower().removesuffix("'s") for word in text.split()}
    people = (
        context.people
        or any(word in taxonomy.people for word in words)
        or not words.isdisjoint(taxonomy.neutral_people)
    )
    animals = context.animals or bool(words & taxonomy.animals)
    return (
        context
        if (people, animals) == (context.people, context.animals)
        else replace(context, people=people, animals=animals)
    )


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
