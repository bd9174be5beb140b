"""Whether a question asks for a biometric attribute of a person, and which.

What decides is the head of the noun phrase that is asked about (`phrases.py`): "the man's car" is a car.
`traits.py` reads questions that name an attribute, `predicates.py` those that say a value,
`quotes.py` those that want something read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rlhf.scrub.phrases import Asking, Sentence, kind, noun_phrase, read_sentence
from rlhf.scrub.predicates import asked_predicates, same_told
from rlhf.scrub.quotes import asks_to_read, quoted_in
from rlhf.scrub.taxonomy import Attribute, Taxonomy, word_list
from rlhf.scrub.taxonomy import taxonomy as packaged
from rlhf.scrub.text import NOTHING_YET, Context
from rlhf.scrub.traits import asked_traits

_SHORT = 300  # characters of a question whose result is remembered
_RUN = re.compile(r"[a-z]+")
_HINTS = word_list("hints", "questions")
_NUMBERS = re.compile(
    r"\b(?:over|under|above|below|than|least|most|about|around|past|nearly|to)\s+(?:\d|\w+ty\b)|\d0 ?'?s\b",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(r"^\W*(?:and|but|or|(?:and )?(?:what|how) about|the other|what of)\b", re.IGNORECASE)
_PARTS = re.compile(r"\babout\b.*\b(?:eyes|skin)\b", re.IGNORECASE)
_INSISTS = re.compile(
    r"^\W*(?:are you (?:sure|certain|positive)(?: about (?:that|it|this))?|"
    r"why(?: do you (?:think|say|believe) (?:so|that))?|"
    r"how (?:do|can|could|did) you (?:know|tell)(?: that)?|really|can you be more (?:specific|precise)|"
    r"(?:please |just |at least |can you )*(?:guess|estimate|try)(?: again| roughly)?|how so)\W*$",
    re.IGNORECASE,
)
_LEAD = re.compile(r"^(?:and |but |or |so |then |what about |how about |what of |for |with |about )+")
_OPTION = re.compile(r"(?:^|\s|\()([A-F])[.):]\s+(.+?)(?=\s*\(?\b[B-F][.):]\s|\s*\n|\s+Answer\b|\s*$)", re.DOTALL)
_CHOICE = re.compile(r"(?:^|\s|\()A[.):]\s")
_STEERS = re.compile(r"\banswer the question using\b.*|\banswer with\b.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a question asks.

    `asks` has attributes of people, `topic` those of anybody; `quotes` has its words that are titles or say something
    of an animal, and `answer_quotes` whether its answer is one.
    """

    asks: frozenset[Attribute]
    topic: frozenset[Attribute]
    quotes: tuple[str, ...] = ()
    answer_quotes: bool = False


NOTHING_ASKED = Reading(frozenset(), frozenset())


def asked_attributes(question: str, taxonomy: Taxonomy, context: Context = NOTHING_YET) -> frozenset[Attribute]:
    """The attributes of a person that the question asks for; empty for a question about anything else.

    A question that mentions an attribute in passing ("what is the young man holding?") does not ask for it, and one
    about an animal or a thing ("how old is the church?") asks for nothing biometric.
    """
    return read_question(question, taxonomy, context).asks


def read_question(question: str, taxonomy: Taxonomy, context: Context = NOTHING_YET) -> Reading:
    """What a question asks for, after the turns before it."""
    if len(question) <= _SHORT:
        return _read(question, taxonomy.attributes, context)
    return _reading(question, taxonomy, context)


@lru_cache(maxsize=4096)
def _read(question: str, attributes: tuple[Attribute, ...], context: Context) -> Reading:
    """Instructions repeat: the captions' data set has eleven of them for half a million rows."""
    return _reading(question, packaged("hair" in attributes), context)


def _reading(question: str, taxonomy: Taxonomy, context: Context) -> Reading:
    found: list[Asking] = []
    for text in re.split(r"(?<=[?.!])\s+|\n", question):
        if not (text := _STEERS.sub("", text)).strip():
            continue
        if _INSISTS.match(text):
            found += [Asking(attribute, "person") for attribute in context.asked]
        follows = _FOLLOWS.match(text) is not None and (bool(context.topic) or _PARTS.search(text) is not None)
        if follows or may_ask(text, taxonomy):
            sentence = read_sentence(text, taxonomy, context)
            heard = [*asked_traits(sentence), *asked_predicates(sentence)]
            found += heard or (_followed(sentence) if follows else ())
    if _CHOICE.search(question):
        options = [read_sentence(option[1], taxonomy, context) for option in _OPTION.findall(question)]
        found += [Asking(attribute, "person") for attribute in same_told(options)]
    known = [one for one in found if one.attribute in taxonomy.attributes]
    asks = frozenset(one.attribute for one in known if one.of == "person")
    animal = tuple(one.said for one in known if one.of == "animal" and one.said)
    spared = not asks and any(one.of == "animal" for one in known)
    return Reading(
        asks,
        frozenset(one.attribute for one in known),
        () if asks else (*quoted_in(question), *animal),
        not asks and (spared or asks_to_read(question)),
    )


@lru_cache(maxsize=2)
def _telling(attributes: tuple[Attribute, ...]) -> frozenset[str]:
    lists = packaged("hair" in attributes)
    said = [word_list(f"said_of_{one}", "questions") for one in ("age", "weight", "race")]
    words = (
        *(word for word, known in lists.people.items() if known.tells),
        *lists.modifiers,
        *frozenset().union(*said),
    )
    return _HINTS | {run for word in words for run in _RUN.findall(word)[:1]}


def may_ask(text: str, taxonomy: Taxonomy) -> bool:
    """Whether a sentence has a word that a question for an attribute needs: most have none and are not tagged."""
    return not _telling(taxonomy.attributes).isdisjoint(_RUN.findall(text.lower())) or _NUMBERS.search(text) is not None


def _followed(sentence: Sentence) -> Iterator[Asking]:
    """ "And the woman?", "What about her eyes?", "And the one on the right?" ask what was asked before."""
    lead = _LEAD.match(sentence.joined)
    rest = sentence.from_word(sentence.index(lead.end())) if lead else sentence
    phrase = noun_phrase(rest, 0)
    if phrase is None or any(
        tag.startswith(("VB", "VD", "VV", "VM")) and tag != "VVG" for tag in rest.tags[phrase.end :]
    ):
        return
    head = rest.word(phrase.head)
    if head in word_list("eyes", "questions") | word_list("skin", "questions"):
        owner = rest.word(phrase.start)
        of_it = owner in ("its", "your", "my") or not sentence.context.somebody
        topic: frozenset[Attribute] = frozenset(("race" if head in word_list("skin", "questions") else "eye_color",))
        yield from (Asking(attribute, "animal" if of_it else "person") for attribute in topic)
        return
    for attribute in sorted(sentence.context.topic):
        yield Asking(attribute, kind(rest, phrase))
