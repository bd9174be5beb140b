"""Words for people and what describes them: "an elderly woman" -> "a person"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf.scrub.ages import UNITS
from rlhf.scrub.grammar import is_verb_in_s, tags
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
_RARELY_NOUNS = word_list("rarely_nouns")
_POSTPOSED = word_list("postposed")
_VERBS_TOO = word_list("verbs_too")
_RANKED = word_list("ranked")
_LOOKS = word_list("looks")
_KIN = word_list("kin")
PERSONAL = word_list("personal")
POSSESSIVE = word_list("possessive")
_VOWELS = frozenset("aeiou")
_AGE = re.compile(rf"(?:(?:{'|'.join(UNITS)})-?(?P<many>olds?)|\d-?y/?o|-something)\Z")
_MASS = ("-pound", "-kg", "-kgs", "-kilo", "-lb", "-lbs", "-kilogram")
_AFTER_VERBS = DETERMINERS | {
    "at",
    "to",
    "into",
    "up",
    "down",
    "toward",
    "towards",
    "through",
    "him",
    "them",
    "it",
    "us",
}
_BEFORE_VERBS = frozenset(("they", "to", "who", "we", "you", "i"))
_REACH = 30  # words between an animal and its kin
_LONGEST_SENTENCE = 300  # words; what is longer is a list or noise, and not worth tagging
_NAMED = word_list("titles_of_people")


def people_edits(text: Text) -> Iterator[Edit]:
    """Neutral words for people, and the removal of what describes their biometric attributes."""
    for index, word in enumerate(text.words):
        known = text.taxonomy.person(word.bare)
        if not (known or text.taxonomy.is_person(word.bare)):
            if word.text[0].isalnum() and (many := _age_noun(text, index)):
                yield from _replace(text, index, "people" if many == "olds" else "person", "age")
            elif index and (word.lower in _LOOKS or word.lower in ("one", "ones")) and _owned_by_a_person(text, index):
                yield from modifier_edits(text, index)
            continue
        if text.is_protected(word.start, word.end) or not is_head(text, index):
            continue
        yield from modifier_edits(text, index)
        if known:
            for attribute in known.tells:
                if attribute in text.taxonomy.attributes:
                    yield from _replace(text, index, known.neutral, attribute)


def of_a_person(text: Text, place: int, body: bool = False) -> bool:
    """Whether the nearest noun known before the place in its sentence is a person, or a personal pronoun.

    Where no noun is known, a part of a body is a person's unless the conversation is about animals.
    """
    last = text.count_before(place) - 1
    nearest = (text.known_to_have_eyes if body else text.known)[last] if last >= 0 else -1
    if nearest >= 0:
        word = text.words[nearest]
        return word.lower in PERSONAL or word.lower in POSSESSIVE or text.taxonomy.is_person(word.bare)
    if not body or not text.context.somebody:
        return False
    at = min(text.count_before(place), len(text.words) - 1)
    return at < 0 or text.words[at].sentence not in text.with_animals


def _owned_by_a_person(text: Text, index: int) -> bool:
    """Whether "features" and the like are those of a person: "their Asian features", "a man with a youthful face"."""
    return of_a_person(text, text.words[index - 1].end)


def modifier_edits(text: Text, head: int) -> Iterator[Edit]:
    """Removal of what stands before the head and tells an attribute."""
    words, child = text.words, _tells(text, head, "age")
    place, gap = head - 1, head  # between the gap and the head nothing stays
    while place >= 0 and text.adjacent(place, head) and head - place <= 7:
        word = words[place]
        if word.lower in (",", "and", "or", "-") and place and _attribute(text, place - 1, head, child):
            place -= 1
            continue
        if word.lower in FUNCTION or not (word.is_word or word.text[0].isdigit()):
            break
        attribute = _attribute(text, place, head, child)
        if attribute and not text.is_protected(word.start, words[place + 1].end):
            start, end = place, place + 1
            while start and words[start - 1].lower in _DEGREES and words[start - 1].lower not in ("bit", "little"):
                start -= 1
            while words[end].lower in ("and", "or", ","):
                end += 1
            comma = end >= gap and start > 1 and words[start - 1].lower == ","
            if comma and not _attribute(text, start - 2, head, child):
                start -= 1  # "a tall, thin person": the comma goes with the last adjective
                yield Edit(words[start].start, words[end].start, " ", attribute, "modifier")
            else:
                yield Edit(words[start].start, words[end].start, "", attribute, "modifier")
                yield from article_edit(text, start, end, attribute)
            place, gap = start, start if end >= gap else gap
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
        if text.taxonomy.person(text.words[index].bare) and not _modifies(text, index):
            break
        index += 1
    known = text.taxonomy.person(text.words[index].bare)
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
    if noun.bare in _GROUPS and word.lower in _SIZES or noun.bare in _RANKED and word.lower == "senior":
        return None
    unsure = noun.bare in EITHER and noun.bare != "couple" or noun.bare in _LOOKS or noun.bare in ("one", "ones")
    if unsure and (word.lower in _SIZES or word.lower in _COLOURS):
        return None
    if word.lower in _COLOURS and _describes_a_thing(text, head) or _is_surname(text, place, head):
        return None
    return attribute


def _is_surname(text: Text, place: int, head: int) -> bool:
    """ "the Brown family", which may well be black."""
    word = text.words[place]
    if not word.capitalised or word.lower not in (*_COLOURS, "young") or text.starts_sentence(place) or text.title_case:
        return False
    return text.words[head].bare in _GROUPS


def _describes_a_thing(text: Text, head: int) -> bool:
    following = text.words[head + 1].lower if head + 1 < len(text.words) else ""
    return text.words[head].possessive and following in text.taxonomy.things


def _measure(word: Word) -> Attribute | None:
    """ "25-year-old" and "200-pound", also in words ("five-year-old")."""
    if not word.lower.endswith(("old", "olds", "yo", "something", *_MASS)):
        return None
    if word.lower.endswith(_MASS):
        return "weight"
    return "age" if _AGE.search(word.lower) else None


def _age_noun(text: Text, index: int) -> str | None:
    """ "a five-year-old" without a noun after it: "old", or "olds" for several; None if it is something else."""
    word = text.words[index]
    if not word.lower.endswith(("old", "olds", "yo")) or "age" not in text.taxonomy.attributes:
        return None
    found = _AGE.search(word.bare)
    if found is None:
        return None
    many = found["many"] or "old"
    following = text.words[index + 1] if text.adjacent(index, index + 1) else None
    if many == "olds":
        return many
    if following is not None and following.is_word and not _ends_a_noun(text, index + 1):
        return None
    if word.possessive or text.starts_sentence(index):
        return many
    before = index - 1
    while before > index - 4 and text.adjacent(before, index) and text.words[before].lower not in FUNCTION:
        before -= 1
    return many if text.adjacent(before, index) and text.words[before].lower in DETERMINERS else None


def _ends_a_noun(text: Text, index: int) -> bool:
    """Whether the word at `index` cannot be the noun that the word before it describes."""
    lower = text.words[index].lower
    return lower in FUNCTION or lower in _POSTPOSED or _verb_like(lower)


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
    known = lists.people.get(word.bare)
    if known is None and word.capitalised and lists.person(word.bare):
        return False  # a name in -man, which no list has
    follows = following.lower if following is not None else ""
    if known and follows in DETERMINERS and index and words[index - 1].lower in _BEFORE_VERBS:
        return False  # "they man the desk"
    if known and known.neutral.endswith("'s") and (following is None or following.lower in FUNCTION):
        return False  # "she mans the desk"
    return not _needs_a_determiner(text, index) and not _is_kin_of_an_animal(text, index) and not _is_name(text, index)


def _needs_a_determiner(text: Text, index: int) -> bool:
    """Whether the word is an adjective or a language unless somebody is meant: "in Korean", "both elderly"."""
    word, known = text.words[index], text.taxonomy.people.get(text.words[index].bare)
    if word.bare in _RARELY_NOUNS:
        near = index > 0 and text.words[index - 1].lower in DETERMINERS
        following = text.words[index + 1] if text.adjacent(index, index + 1) else word
        describes = following is not word and following.is_word and following.lower not in FUNCTION
        return not near or describes and not is_verb_in_s(following.lower)
    if known is None or word.bare not in text.taxonomy.modifiers or known.tells not in (("race",), ("age",)):
        return False
    if known.tells == ("age",) and word.bare != "elderly":
        return False
    if text.starts_sentence(index):
        after = text.words[index + 1].lower if text.adjacent(index, index + 1) else ""
        return after not in ("in", "on", "with", "at", "from") and not after.endswith("ing")
    return not _owned(text, index) or word.bare == "elderly" and text.words[index - 1].lower in ("both", "all", "no")


def _is_kin_of_an_animal(text: Text, index: int) -> bool:
    """ "its mother", and "her baby" where the sentence has named an animal and nobody."""
    word, words = text.words[index], text.words
    if word.bare not in _KIN or not index or words[index - 1].lower not in ("its", "his", "her", "their"):
        return False
    animal = False
    for place in range(index - 2, max(-1, index - _REACH), -1):
        if not text.adjacent(place, index):
            break
        animal = animal or words[place].bare in text.taxonomy.not_people
        if animal and words[index - 1].lower == "its":
            return True
        describes = words[place + 1].bare in text.taxonomy.not_people  # "the mother elephant"
        if words[place].lower in PERSONAL or (text.taxonomy.is_person(words[place].bare) and not describes):
            return False
    return animal


def _goes_on(text: Text, index: int, following: Word) -> bool:
    """Whether the noun only describes the next one: "baby elephant", "men room", "female voice"."""
    lists, word = text.taxonomy, text.words[index]
    if following.lower in lists.not_people:
        return True
    if following.lower in lists.things:
        many = lists.person(word.bare)
        return not (following.lower in _VERBS_TOO and many and many.neutral.endswith(("people", "s")))
    describes = word.bare in lists.modifiers
    if not (describes or word.bare in _ALSO_ADJECTIVES) or not following.is_word:
        return False
    if lists.is_person(following.bare):
        return True  # the next word is the head and this one describes it
    if following.lower in FUNCTION or following.lower in _POSTPOSED or following.lower.endswith(("ing", "ed")):
        return False
    if not is_verb_in_s(following.lower):
        tag = tag_of(text, index + 1)
        return not tag.startswith(("VV", "VB", "VH")) if describes else tag.startswith("NN")
    return describes and lists.modifiers[word.bare] in ("race", "gender") and not _is_verb(text, index + 1)


def _is_verb(text: Text, index: int) -> bool:
    """Whether a word in -s that may be a noun ("features", "smiles") is a verb here."""
    following = text.words[index + 1].lower if text.adjacent(index, index + 1) else ""
    return following in _AFTER_VERBS or following.endswith("ly") or tag_of(text, index).startswith("VV")


def tag_of(text: Text, index: int) -> str:
    """The part of speech of a word in its sentence (CLAWS-5), "" in one that is too long."""
    sentence = text.sentence_of(index)
    if len(sentence) > _LONGEST_SENTENCE:
        return ""
    return tags(tuple(text.words[one].text for one in sentence))[index - sentence.start]


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
    first = left is not None and text.starts_sentence(index - 1)
    if first and left is not None and (word.bare not in _NAMED or left.lower in FUNCTION or left.lower in _SMALL):
        return after
    return after or (left is not None and left.capitalised and left.lower not in text.taxonomy.modifiers)


def _tells(text: Text, index: int, attribute: Attribute) -> bool:
    known = text.taxonomy.person(text.words[index].bare)
    return known is not None and attribute in known.tells


def _replace(text: Text, index: int, neutral: str, attribute: Attribute) -> Iterator[Edit]:
    word = text.words[index]
    ending = ("'" if neutral.endswith("s") else "'s") if word.possessive and not neutral.endswith("'s") else ""
    always = attribute == "race" and not text.starts_sentence(index)  # "Asian" is a capital wherever it stands
    shown = neutral.capitalize() if word.capitalised and not always else neutral
    yield Edit(word.start, word.end, shown + ending, attribute, "word")
    yield from article_edit(text, index, index, attribute, following=neutral)
