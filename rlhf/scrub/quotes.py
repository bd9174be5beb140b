"""Questions that want something read: titles, names and written words stay as they are."""

from __future__ import annotations

import re

from rlhf.scrub.taxonomy import word_list

_WORKS = "|".join(sorted(word_list("works", "questions")))
_WRITTEN = "|".join(sorted(word_list("written", "questions")))
_ASKS_TO_READ = re.compile(
    rf"\b(?:what|who|whose|which|tell|give|name|provide|read)\b[^?.]{{0,80}}\b(?:{_WRITTEN})\b|"
    r"\bwho (?:wrote|authored|published|directed|sings|is (?:the )?(?:writer|author))\b|"
    rf"\b(?:what|which) (?:type|kind|genre|sort)? ?(?:of )?(?:{_WORKS})\b|"
    rf"\bname of (?:the|this|that) (?:\w+ )?(?:{_WORKS}|product|ship|boat|drink|beer|street|team|restaurant)\b|"
    r"\bwhat (?:does|do|did) [^?.]{0,80}\b(?:say|says|read|spell)\b|"
    r"\bwhat (?:is|are|was) [^?.]{0,80}\b(?:written|printed|spelled)\b|"
    r"\bwhat (?:is|are) the (?:words?|text|letters?|lettering)\b|"
    r"\b(?:what|which) (?:words?|text|letters?) (?:is|are|appears?|can)\b",
    re.IGNORECASE,
)
_QUOTES = (
    re.compile(r"\brelated to (?P<said>[^?\n]{1,80})", re.IGNORECASE),
    re.compile(rf"\bis this (?:an? )?(?P<said>[^?\n]{{1,60}}?)[ -](?:related )?(?:{_WORKS})\s*\?", re.IGNORECASE),
    re.compile(r"\breference ocr tokens?: (?P<said>[^\n]{1,2000})", re.IGNORECASE),
)
_SAYS = re.compile(
    r"^(?:(?:the|this|it|its|that)\b[^.\n]{0,80}?\b"
    r"(?:is|says|reads|said|called|titled|named|(?:written )?by)(?: that)?:?|(?:it|this) is)\s+(?P<said>\S.*?)[.]?$",
    re.IGNORECASE,
)
_SMALL = word_list("small_in_titles", "questions")
_SOMEBODY = re.compile(r"\b(?:he|she|him|his|her|hers)\b", re.IGNORECASE)
_DESCRIBES = re.compile(r"\b(?:an?|the|two|three|this|that)\b|\b(?:is|are|was|has|wearing|holding)\b", re.IGNORECASE)
_SHORT = 6  # words of an answer without capitals that can be what is written
_LONGEST = 25
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


def asks_to_read(question: str) -> bool:
    """Whether the answer is a title, a name or what is written somewhere."""
    return _ASKS_TO_READ.search(question) is not None


def quoted_in(question: str) -> tuple[str, ...]:
    """What a question says that is written somewhere, or names a genre: "related to Teen & Young Adult"."""
    return tuple(found["said"].strip() for pattern in _QUOTES if (found := pattern.search(question)))


def quotation(answer: str) -> tuple[str, ...]:
    """The part of an answer that reads as a title or as written words; a description of somebody is none."""
    answer = answer.strip()
    if (said := _SAYS.match(answer)) and _title(said["said"]):
        return (said["said"],)
    return (answer,) if _title(answer) or _few_words(answer) else ()


def _title(text: str) -> bool:
    words = [word for word in _WORD.findall(text) if word.lower() not in _SMALL]
    return 0 < len(words) <= _LONGEST and "\n" not in text and all(word[0].isupper() for word in words)


def _few_words(text: str) -> bool:
    few = 0 < len(text.split()) <= _SHORT
    return few and not _SOMEBODY.search(text) and not _DESCRIBES.search(text)
