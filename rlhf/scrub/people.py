"""Words for people and what describes them: "an elderly woman" -> "a person"."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.scrub.grammar import is_verb_in_s
from rlhf.scrub.taxonomy import Attribute, word_list
from rlhf.scrub.text import Edit, Text, Word

# words that end a noun phrase when it is read from its head to the left
FUNCTION = word_list("function")
DETERMINERS = word_list("determiners")
_DEGREES = word_list("degrees")
_SMALL = word_list("small")  # about a child they tell its age
_GROUPS = word_list("groups")
_SIZES = word_list("sizes")
_COLOURS = word_list("colours")
# nouns that are people or things: only what can be said of people alone counts before them
EITHER = word_list("people_or_things")
# nouns for people that are adjectives too: they are nouns where no other noun follows
_ALSO_ADJECTIVES = word_list("also_adjectives")
# "the men's room" is a room, whoever owns it
_MANY = word_list("plural_people")
_FACILITIES = word_list("facilities")
_VOWELS = frozenset("aeiou")
_NAMED = word_list("titles_of_people")


def people_edits(text: Text) -> Iterator[Edit]:
    """Neutral words for people, and the removal of what describes their biometric attributes."""
    for index, word in enumerate(text.words):
        known = text.taxonomy.people.get(word.bare)
        told = known.tells if known else ()
        if not (known or word.bare in text.taxonomy.neutral_people):
            if _is_age_noun(text, index):
                yield from _replace(text, index, "person", "age")
            continue
        if text.is_protected(word.start, word.end) or not is_head(text, index):
            continue
        active = [one for one in told if one in text.taxonomy.attributes]
        yield from modifier_edits(text, index)
        if known:
            for attribute in active:
                yield from _replace(text, index, known.neutral, attribute)


def modifier_edits(text: Text, head: int) -> Iterator[Edit]:
    """Removal of what stands before the head and tells an attribute."""
    words, child = text.words, bool(_tells(text, head, "age"))
    place = head - 1
    while place >= 0 and text.adjacent(place, head) and head - place <= 7:
        word = words[place]
        if word.lower in (",", "and", "or", "-") and place and _attribute(text, place - 1, head, child):
            place -= 1
            continue
        if word.lower in FUNCTION or not (word.is_word or word.text[0].isdigit()):
            break
        attribute = _attribute(text, place, head, child)
        if attribute and not text.is_protected(word.start, words[place + 1].end):
            start = place
            while start and words[start - 1].lower in _DEGREES:
                start -= 1
            end = place + 1
            if (
                end == head
                and start > 1
                and words[start - 1].lower == ","
                and not _attribute(text, start - 2, head, child)
            ):
                start -= 1  # "a tall, thin person": the comma goes with the last adjective
                yield Edit(words[start].start, words[end].start, " ", attribute, "modifier")
                place = start - 1
                continue
            if words[end].lower in ("and", "or", ","):
                end += 1
                if words[end].lower in ("and", "or"):
                    end += 1
            yield Edit(words[start].start, words[end].start, "", attribute, "modifier")
            yield from article_edit(text, start, end, attribute)
            place = start
        place -= 1


def article_edit(text: Text, start: int, end: int, attribute: Attribute, following: str = "") -> Iterator[Edit]:
    """`a` or `an` before a gap from word `start` to word `end`, as what follows wants it."""
    if start == 0 or text.words[start - 1].lower not in ("a", "an"):
        return
    after = following or _survivor(text, end)
    article = text.words[start - 1]
    wanted = "an" if after[:1].lower() in _VOWELS and not after.lower().startswith(("uni", "use", "one", "eu")) else "a"
    if article.lower != wanted:
        shown = wanted.capitalize() if article.capitalised else wanted
        yield Edit(article.start, article.end, shown, attribute, "article")


def _survivor(text: Text, index: int) -> str:
    """The first word from `index` on that stays, as it will read."""
    while index < len(text.words) - 1 and (
        text.words[index].lower in text.taxonomy.modifiers or text.words[index].lower in (",", "and", *_SMALL)
    ):
        if text.taxonomy.people.get(text.words[index].bare) and not _modifies(text, index):
            break
        index += 1
    known = text.taxonomy.people.get(text.words[index].bare)
    return known.neutral if known else text.words[index].text


def _modifies(text: Text, index: int) -> bool:
    following = text.words[index + 1] if index + 1 < len(text.words) else None
    return following is not None and following.is_word and following.lower not in FUNCTION


def _attribute(text: Text, place: int, head: int, child: bool) -> Attribute | None:
    """What the word at `place` tells about the person at `head`; None if nothing."""
    word, noun = text.words[place], text.words[head]
    attribute = text.taxonomy.modifiers.get(word.lower) or _measure(word)
    if word.lower in _SMALL:
        attribute = "age" if child else None
    if attribute is None or attribute not in text.taxonomy.attributes:
        return None
    if noun.bare in _GROUPS and word.lower in _SIZES:
        return None
    if noun.bare in EITHER and (word.lower in _SIZES or word.lower in _COLOURS) and noun.bare != "couple":
        return None
    if word.lower in _COLOURS and _describes_a_thing(text, head):
        return None
    return attribute


def _describes_a_thing(text: Text, head: int) -> bool:
    following = text.words[head + 1].lower if head + 1 < len(text.words) else ""
    return text.words[head].possessive and following in text.taxonomy.things


def _measure(word: Word) -> Attribute | None:
    """ "25-year-old" and "200-pound", also in words ("five-year-old")."""
    if word.lower.endswith(("-year-old", "-years-old", "-month-old", "-something")):
        return "age"
    if word.lower.endswith(("-pound", "-kg", "-kilo", "-lb", "-lbs", "-kilogram")):
        return "weight"
    return None


def _is_age_noun(text: Text, index: int) -> bool:
    """ "a five-year-old" without a noun after it."""
    word = text.words[index]
    if not word.lower.endswith(("-year-old", "-years-old", "-year-olds")) or "age" not in text.taxonomy.attributes:
        return False
    following = text.words[index + 1] if text.adjacent(index, index + 1) else None
    return following is None or not following.is_word or following.lower in FUNCTION or _verb_like(following.lower)


def is_head(text: Text, index: int) -> bool:
    """Whether the word is a noun that names a real person here, not a part of a thing's, an animal's or a name."""
    words, word, lists = text.words, text.words[index], text.taxonomy
    following = words[index + 1] if text.adjacent(index, index + 1) else None
    if following is not None:
        if not word.possessive and _goes_on(text, index, following):
            return False
        if word.possessive and following.lower in lists.things and not _owned(text, index):
            return False
        if word.bare in _MANY and word.possessive and following.lower in _FACILITIES:
            return False
    before = [one.lower for one in words[max(0, index - 5) : index]]
    if any(one in lists.figures for one in before[-1:]):
        return False
    if any(one in lists.figures and "of" in before[place:] for place, one in enumerate(before)):
        return False
    return not _is_name(text, index)


def _goes_on(text: Text, index: int, following: Word) -> bool:
    """Whether the noun only describes the next one: "baby elephant", "men room", "female voice"."""
    lists, word = text.taxonomy, text.words[index]
    if following.lower in lists.not_people or following.lower in lists.things:
        return True
    if lists.is_person(following.bare) and word.bare in _ALSO_ADJECTIVES:
        return True  # the next word is the head and this one describes it
    if word.bare in _ALSO_ADJECTIVES and word.bare in lists.modifiers:
        return following.is_word and following.lower not in FUNCTION and not _verb_like(following.lower)
    return False


def _verb_like(word: str) -> bool:
    return word.endswith(("ing", "ed")) or is_verb_in_s(word)


def _owned(text: Text, index: int) -> bool:
    """Whether a determiner stands before the noun: "the boy's shoes" are somebody's, "men's shoes" are goods."""
    before = index - 1
    while before >= 0 and text.words[before].lower in text.taxonomy.modifiers:
        before -= 1
    return (
        before >= 0
        and text.words[before].lower in DETERMINERS
        and text.words[before].sentence == text.words[index].sentence
    )


def _is_name(text: Text, index: int) -> bool:
    word, words = text.words[index], text.words
    if not word.capitalised or text.title_case:
        return False
    left = words[index - 1] if index and text.adjacent(index - 1, index) else None
    right = words[index + 1] if text.adjacent(index, index + 1) else None
    after = right is not None and right.capitalised and right.is_word and right.lower not in ("i",)
    if text.starts_sentence(index):
        return after and word.bare in _NAMED
    return after or (left is not None and left.capitalised and not text.starts_sentence(index - 1)) or False


def _tells(text: Text, index: int, attribute: Attribute) -> bool:
    known = text.taxonomy.people.get(text.words[index].bare)
    return known is not None and attribute in known.tells


def _replace(text: Text, index: int, neutral: str, attribute: Attribute) -> Iterator[Edit]:
    word = text.words[index]
    ending = ("'" if neutral.endswith("s") else "'s") if word.possessive else ""
    always = attribute == "race" and not text.starts_sentence(index)  # "Asian" is a capital wherever it stands
    shown = neutral.capitalize() if word.capitalised and not always else neutral
    yield Edit(word.start, word.end, shown + ending, attribute, "word")
    yield from article_edit(text, index, index, attribute, following=neutral)
