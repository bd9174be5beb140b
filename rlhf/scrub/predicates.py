"""Questions that say a value: "is this a man?", "is she young or old?", "how many women?", "who is older?"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf.scrub.phrases import (
    Asking,
    Kind,
    Phrase,
    Sentence,
    adjectives_tell,
    is_animal,
    is_somebody,
    kind,
    noun_phrase,
    phrase_before,
    phrase_tells,
)
from rlhf.scrub.taxonomy import Attribute, word_list

_APPEARING, _POSTURES = word_list("appearing", "questions"), word_list("postures", "questions")
_DEMONSTRATIVES = word_list("demonstratives", "questions")
_THINGS_TOO = word_list("sizes") | word_list("colours")
_ADJECTIVES_TOO = word_list("also_adjectives")
_SAID: tuple[tuple[Attribute, frozenset[str]], ...] = (
    ("age", word_list("said_of_age", "questions")),
    ("weight", word_list("said_of_weight", "questions")),
    ("race", word_list("said_of_race", "questions")),
)
_LEAD = re.compile(
    r"^.*\b(?:if|whether) |^(?:(?:do|would|could|can|did) (?:you|we|i) "
    r"(?:think|say|guess|believe|assume|describe|tell|see)(?: that)?|"
    r"(?:is|was) it (?:true|possible|likely|correct) that|so|and|then|please|now|, )+ "
)
_TAIL = re.compile(
    r"(?: ,)?(?: (?:right|correct|or not|please|here|there|at all|to you|you think|is (?:he|she|it|n't)|"
    r"than .*|enough .*|[?.!,]))+$"
)
_NAMED_AFTER = re.compile(r"(?<=(?:er|st)) , .* or .*$")  # "who is older, the guitarist or the drummer"
_AGE = (
    r"(?:(?:over|under|above|below|past|at least|at most|about|around|nearly|almost|more than|less than|older than|"
    r"younger than|approximately|close to) )"
)
_NUMBER = r"(?:\d+|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-\w+)?|eighteen|ten|twelve)"
_AGE_SAID = re.compile(
    rf" (?:{_AGE}{_NUMBER}(?: years?(?: old| of age)?)?|(?:{_AGE})?{_NUMBER} years? old|the age of {_NUMBER}|"
    r"(?:still )?in (?:his|her|their) (?:(?:early|mid|late)[ -])?"
    r"(?:teens|twenties|thirties|forties|fifties|sixties|\d0 ?'?s)"
    r"(?: (?:or|to) (?:(?:early|mid|late)[ -])?(?:\w+ties|\d0 ?'?s))?)$"
)
_THERE = re.compile(
    r"^(?:how many|(?:is|are|was|were) there(?: (?:both|either|only|also|just|really))?|"
    r"(?:do|can|could) (?:you|we) (?:see|spot|notice|find|identify)(?: both)?|"
    r"(?:does|do|did) (?:the|this|that|your) \w+ (?:show|contain|have|include|feature|depict|display)(?: both)?|"
    r"(?:is|are)(?= (?:an?|any|some|both|no|two) ))(?![\w-])"
)
_SHOWN = ("", "?", ".", "present", "visible", "shown", "seen", "pictured", "there", "here", "and", "or", "depicted")


def asked_predicates(sentence: Sentence) -> Iterator[Asking]:
    """What a sentence asks by a value that it says."""
    if not sentence.asks:
        return
    clause = _clause(sentence)
    said = list(_said(clause)) if clause.words else []
    yield from said
    if not any(one.of == "animal" for one in said):
        yield from _counts(sentence)
        yield from _pointed_at(clause)
        yield from _nouns_or(sentence)


def _clause(sentence: Sentence) -> Sentence:
    """The sentence without "do you think that", "please" and the like."""
    tail = _TAIL.search(sentence.joined)
    if tail:
        sentence = sentence.up_to(sentence.index(tail.start() + 1) if tail.start() else 0)
    if sentence.word(0) == "who" and (named := _NAMED_AFTER.search(sentence.joined)):
        sentence = sentence.up_to(sentence.index(named.start() + 1))
    lead = _LEAD.match(sentence.joined)
    return sentence.from_word(sentence.index(lead.end())) if lead else sentence


def _pointed_at(clause: Sentence) -> Iterator[Asking]:
    """ "Is that a lady at the window?"."""
    if clause.tag(0).startswith("VB") and clause.word(1) in _DEMONSTRATIVES and clause.word(2) in ("a", "an"):
        phrase = noun_phrase(clause, 2)
        if phrase and clause.tag(phrase.end).startswith("PRP") and clause.context.somebody:
            yield from (Asking(attribute, "person") for attribute in sorted(phrase_tells(clause, phrase)))


def _said(clause: Sentence) -> Iterator[Asking]:
    """ "Is SUBJECT VALUE?", "SUBJECT is VALUE", "what is SUBJECT, VALUE or VALUE?"."""
    subject = _subject(clause)
    if aged := _AGE_SAID.search(clause.joined):
        if subject and (is_somebody(clause, subject) or is_animal(clause, subject)) and clause.word(0) != "how":
            yield Asking(
                "age", kind(clause, subject), clause.original(clause.index(aged.start() + 1), len(clause.words))
            )
        return
    start = value_start(clause, subject.end if subject else 0)
    if start == len(clause.words):
        return
    told = value_tells(clause, start)
    if not told:
        return
    whose = _whose(clause, subject, start)
    if whose == "person" or whose == "animal":
        said = clause.original(start, len(clause.words)) if whose == "animal" else ""
        for attribute in sorted(told):
            yield Asking(attribute, whose, said)


def _subject(clause: Sentence) -> Phrase | None:
    """Whom a clause speaks of: the first phrase after "is" or "does", or the first of all."""
    first = clause.tag(0)
    at = 0
    if clause.words[:2] == ("how", "many"):
        at = 2
    elif first.startswith(("VB", "VD", "VH", "VM")):
        at = 1
    elif clause.word(0) in ("how", "what", "who", "which", "where"):
        if clause.word(0) == "which" and not clause.tag(1).startswith(("VB", "VV")):
            at = 1
        elif clause.word(0) == "who" and clause.word(1) not in ("is", "are") or clause.word(0) == "which":
            return Phrase(0, 0, 0, 1)
        elif clause.word(0) == "who":
            phrase = noun_phrase(clause, 2)
            return phrase if phrase and "," in clause.words else Phrase(0, 0, 0, 1)
        else:
            at = next((place for place, tag in enumerate(clause.tags) if tag.startswith(("VB", "VD"))), 0) + 1
    if clause.word(at) == "of":
        at += 1
    while (
        clause.tag(at).startswith("AV")
        or clause.word(at) in ("all", "both", "either", "any")
        and clause.word(at + 1) == "of"
    ):
        at += 1
        if clause.word(at) == "of":
            at += 1
    found = noun_phrase(clause, at)
    if found and found.end == len(clause.words) and found.head > at and clause.word(at) in _DEMONSTRATIVES:
        return Phrase(at, at, at, at + 1)  # "are these teenagers?"
    return found


def value_start(clause: Sentence, low: int) -> int:
    """Where the predicate starts that ends a clause: nouns and adjectives that are joined by "or" and "and"."""
    place = end = len(clause.words)
    while place > low:
        start = _item_start(clause, low, place)
        if start == place:
            break
        end = start
        place = start
        joined = place
        while joined > low and clause.word(joined - 1) in ("or", "and", ",", "/"):
            joined -= 1
        if joined == place:
            break
        place = joined
    return end


def _item_start(clause: Sentence, low: int, end: int) -> int:
    """Where one part of a predicate starts: "a young man", "very old"; its end if the words are no such part."""
    start, last = end - 1, clause.word(end - 1)
    noun = clause.taxonomy.is_person(last) and not (
        last in clause.taxonomy.modifiers and not _has_article(clause, low, end)
    )
    if not noun and not _adjective(clause, start):
        return end
    while start > low and (
        _adjective(clause, start - 1)
        or clause.tag(start - 1).startswith("AV")
        or clause.word(start - 1) in ("very", "too")
    ):
        start -= 1
    if start > low and (clause.tag(start - 1).startswith(("AT", "DPS")) or clause.word(start - 1) in ("more", "most")):
        start -= 1
    return start


def _has_article(clause: Sentence, low: int, end: int) -> bool:
    place = end - 1
    while place > low and _adjective(clause, place - 1):
        place -= 1
    return place > low and clause.word(place - 1) in ("a", "an") or clause.tag(end - 1) == "NN2"


def _adjective(clause: Sentence, place: int) -> bool:
    word = clause.word(place)
    return bool(_adjective_tells(clause, word)) or clause.tag(place).startswith("AJ")


def _adjective_tells(clause: Sentence, word: str) -> set[Attribute]:
    found = {clause.taxonomy.modifiers[word]} if word in clause.taxonomy.modifiers else set[Attribute]()
    return found | {attribute for attribute, words in _SAID if word in words}


def value_tells(clause: Sentence, start: int) -> set[Attribute]:
    """What the words of a predicate tell."""
    values = clause.words[start:]
    nouns = [word for word in values if clause.taxonomy.is_person(word) and word not in clause.taxonomy.modifiers]
    found: set[Attribute] = set()
    for word in values:
        if nouns.count(word) < 2:  # "an old man or a young man" does not ask whether it is a man
            found |= clause.told(word) | _adjective_tells(clause, word)
    return found


def _whose(clause: Sentence, subject: Phrase | None, start: int) -> Kind | None:
    """Of whom a predicate is said: "person", "animal", "thing", None where the words are no predicate."""
    values = clause.words[start:]
    nouns = [word for word in values if clause.taxonomy.is_person(word) and word not in _ADJECTIVES_TOO]
    plain = not nouns and all(word in _THINGS_TOO for word in values if _adjective_tells(clause, word))
    before, tag = clause.word(start - 1), clause.tag(start - 1)
    if start == 0:
        sure = clause.context.people or clause.context.somebody and not plain
        return ("person" if sure else "thing") if "or" in values else None
    if subject is None or subject.end > start:
        return None
    head = clause.word(subject.head)
    if tag.startswith(("PR", "VV")) and before not in _APPEARING | _POSTURES | {"like"}:
        return None
    many = clause.words[:2] == ("how", "many")
    if not many and (head == "who" or clause.word(0) in ("which", "what", "how", "where")):
        if nouns and ("or" not in values or head == "who"):
            most = any(word.endswith("est") and _adjective_tells(clause, word) for word in values)
            return "person" if most and before in _APPEARING else None
        if before not in _APPEARING | {",", "be"}:
            return None
    if head == "there" or clause.word(0) == "there":
        return None
    if head in _DEMONSTRATIVES:
        if nouns or any(word in _ADJECTIVES_TOO for word in values[1:]) and values[0] in ("a", "an"):
            return "person" if clause.context.somebody else "animal"
        return "animal" if not clause.context.somebody else "thing"
    if head in ("they", "them") and plain and not clause.context.people:
        return "thing"
    if head in ("body", "build", "physique") and subject.own == subject.start and before != "of":
        return "person" if clause.context.somebody else "animal"
    found = kind(clause, subject)
    gendered = any("gender" in clause.told(word) for word in nouns)
    return "person" if found == "thing" and gendered and clause.tag(subject.head).startswith("NN1") else found


def _counts(sentence: Sentence) -> Iterator[Asking]:
    """ "How many women are there?", "Is there an old person?", "Is a woman in the image?"."""
    opening = _THERE.match(sentence.joined)
    if opening is None:
        return
    there = opening.group() not in ("is", "are")
    at = sentence.index(opening.end() - 1) + 1
    while phrase := noun_phrase(sentence, at):
        if there or sentence.word(phrase.end) in _SHOWN:
            told = phrase_tells(sentence, phrase)
            yield from (Asking(attribute, "person") for attribute in sorted(told))
            if told:
                return
        if sentence.word(phrase.end) not in ("and", "or", ","):
            return
        at = phrase.end + 1


def _nouns_or(sentence: Sentence) -> Iterator[Asking]:
    """ "Who is taller, the man or the woman?": two nouns for people that tell the same, differently."""
    for place, word in enumerate(sentence.words):
        if word != "or":
            continue
        left, right = phrase_before(sentence, place - (sentence.word(place - 1) == ",")), _right(sentence, place + 1)
        if left is None or right is None or sentence.word(left.start - 1) == "for":
            continue
        if sentence.word(left.head) in _ADJECTIVES_TOO and left.start == left.head:
            continue
        yield from (Asking(attribute, "person") for attribute in sorted(_differently(sentence, left, sentence, right)))


def _right(sentence: Sentence, at: int) -> Phrase | None:
    while sentence.word(at) in ("is", "it", "this", "that", "are", "these", "they", "he", "she"):
        at += 1
    return noun_phrase(sentence, at)


def _differently(here: Sentence, one: Phrase, there: Sentence, other: Phrase) -> set[Attribute]:
    """What two phrases tell that do not say the same; of one noun only the adjectives count."""
    left, right = here.words[one.own : one.head + 1], there.words[other.own : other.head + 1]
    if left == right:
        return set()
    if left[-1] == right[-1]:
        return adjectives_tell(here, left[:-1], left[-1]) & adjectives_tell(there, right[:-1], right[-1])
    return phrase_tells(here, one) & phrase_tells(there, other)


def same_told(options: list[Sentence]) -> set[Attribute]:
    """What two of several options tell, each in its own way: "A. man B. woman"."""
    told = [
        (one, phrase) for one in options if (phrase := noun_phrase(one, 0)) is not None and is_somebody(one, phrase)
    ]
    found: set[Attribute] = set()
    for place, (one, phrase) in enumerate(told):
        for other, more in told[place + 1 :]:
            found |= _differently(one, phrase, other, more)
    return found
