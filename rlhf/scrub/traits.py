"""Questions that name an attribute: "what is the age of ...", "how old is ...", "what colour are her eyes?"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf.scrub.phrases import SCENES, Asking, Phrase, Sentence, kind, noun_phrase
from rlhf.scrub.taxonomy import Attribute, word_list

_SHADE = r"(?:colou?rs?|tones?|shades?|hues?)"
_NOUNS: tuple[tuple[Attribute, str], ...] = (
    ("age", r"ages?(?: (?:group|range|bracket|categor(?:y|ie))s?)?|(?:stage|phase) of life|life stage"),
    ("gender", r"genders?|sex"),
    (
        "race",
        r"races?|ethnicit(?:y|ies)|nationalit(?:y|ies)|descent|ancestry|skin[ -]?" + _SHADE + r"|complexion|"
        r"(?:ethnic|racial|ethnical)(?: or (?:ethnic|racial))? (?:groups?|backgrounds?|origins?|identity|heritage)|"
        r"country of origin",
    ),
    ("eye_color", rf"eyes?[ -]?{_SHADE}|iris {_SHADE}"),
    (
        "weight",
        r"(?:body ?)?weight|body[ -]?(?:type|shape|build|mass|size|composition)|build|physique|"
        r"(?<=describe )the body(?= of\b|\W*$)",
    ),
    ("hair", r"hair ?(?:colou?r|style)"),
)
_HOW: tuple[tuple[Attribute, str], ...] = (
    ("age", r"how (?:old|young|aged)|how many years? old|(?:what|which) (?:year|decade)(?= (?:was|were)\b.*\bborn)"),
    (
        "weight",
        r"how (?:heavy|fat|thin|slim|skinny|overweight|obese|muscular)|how much(?= .*\bweighs?\b)|"
        r"what(?= (?:does|do|did|would|might|could) [^,]*\bweighs?\b)",
    ),
    ("weight", r"how many (?:pounds|kilos|kilograms|kgs?|lbs?|stone)(?= .*\bweighs?\b)"),
    (
        "race",
        r"where(?= (?:is|are|was|were)\b.*(?<!ing) from\W*$)|"
        r"(?:what|which) country(?= .* from\W*$)|from (?:what|which) country",
    ),
)
_TRAITS = [(one, re.compile(rf"\b(?:{text})(?![\w-])")) for one, text in _NOUNS]
_OPENINGS = [(one, re.compile(rf"\b(?:{text})(?![\w-])")) for one, text in _HOW]
_WEIGHS = re.compile(r"^(?:does|do|would|might|could) (?=.*\bweighs?\b)")
_PARTS: tuple[tuple[Attribute, frozenset[str]], ...] = (
    ("eye_color", word_list("eyes", "questions")),
    ("race", word_list("skin", "questions")),
)
_COLOURS, _SHADES = word_list("part_colours", "questions"), word_list("shades", "questions")
_WANTING, _WANTED = word_list("wanting", "questions"), word_list("wanted", "questions")
_THINKING, _APPEARING = word_list("thinking", "questions"), word_list("appearing", "questions")
_GENERIC, _CONTESTS = word_list("generic", "questions"), word_list("contests", "questions")
_NOT_OF_TRAITS = ("how", "when", "where", "who", "is", "are", "was", "did", "does")  # "how long is the race?"
_ASIDES = word_list("asides", "questions")
_YOU = ("you", "we", "i")
_AUX = ("VB", "VD", "VH", "VM", "AV")
# nobody is named and a picture's person is meant
_NAMELESS = re.compile(
    r"\b(?:the|which|what) (?:approximate |likely |apparent )?(?:eyes?|skin|body|gender|sex|race|ethnicity|age)\b|"
    r"\b(?:age|skin tone|body build|body type|weight) (?:do|can|would|could) "
    r"you (?:see|think|guess|give|notice|estimate|say|observe|make|assign)\b"
)
_NOT_OF = ("at", "in", "with", "by", "during", "under", "over", "for", "to", "near", "behind", "from", "despite", "on")


def asked_traits(sentence: Sentence) -> Iterator[Asking]:
    """What attributes a sentence asks for by their names, and whose."""
    if not _GENERIC.isdisjoint(sentence.words) or sentence.word(0) == "why":
        return
    lower = sentence.joined
    for attribute, pattern in _OPENINGS:
        match = pattern.search(lower)
        if match and (phrase := _next_phrase(sentence, sentence.index(match.end() - 1) + 1)):
            yield from _of(attribute, sentence, phrase)
    if _WEIGHS.match(lower) and (phrase := noun_phrase(sentence, 1)):
        yield from _of("weight", sentence, phrase)
    if not sentence.asks and _WANTING.isdisjoint(sentence.words):
        return
    for attribute, pattern in _TRAITS:
        for match in pattern.finditer(lower):
            first, end = sentence.index(match.start()), sentence.index(match.end() - 1) + 1
            yield from _named(attribute, sentence, first, end)
    yield from _parts(sentence)


def _of(attribute: Attribute, sentence: Sentence, phrase: Phrase) -> Iterator[Asking]:
    """What is asked of somebody in particular; "how much does a baby weigh?" asks it of nobody."""
    if sentence.word(phrase.head) in _YOU or _indefinite(sentence, phrase):
        return
    yield Asking(attribute, kind(sentence, phrase))


def _indefinite(sentence: Sentence, phrase: Phrase) -> bool:
    """Whether people in general are meant: no article, and no picture that they are in."""
    if phrase.end < len(sentence.words) - 1 and sentence.tag(phrase.end).startswith(("PRP", "VVG")):
        return False
    bare = phrase.start == phrase.head and sentence.tag(phrase.head) in ("NN2", "NN0")
    return (bare or sentence.word(phrase.start) in ("a", "an")) and not sentence.in_scene


def _named(attribute: Attribute, sentence: Sentence, first: int, end: int) -> Iterator[Asking]:
    """ "the age of the man", "his age", "what age is she": nothing for "age limit", "losing weight", "won the race"."""
    if (
        sentence.tag(end).startswith("NN")
        and sentence.tag(end - 1) != "VVB"
        and sentence.word(end) not in ("difference", "gap")
    ):
        return
    if sentence.word(end - 1) == "build" and sentence.tag(end - 1).startswith("VV"):
        return
    if attribute == "race" and sentence.word(end - 1).startswith("race") and _contest(sentence, first, end):
        return
    start, owner = _possessor(sentence, first)
    if not {"same", "different"}.isdisjoint(sentence.words[start:first]) and sentence.word(start - 1) in ("of", "have"):
        if phrase := _named_before(sentence.up_to(start - 1)):
            yield from _of(attribute, sentence, phrase)
        return
    if _passing(sentence, start):
        return
    phrase = owner or _after(sentence, end)
    if phrase is None and not owner:
        phrase = _next_phrase(sentence, end)
        after = sentence.tag(phrase.end) if phrase else ""
        if phrase and after.startswith("VVG") and sentence.word(phrase.end) not in _APPEARING:
            return
    if phrase is None or sentence.word(phrase.head) in (*_YOU, "it") and not owner:
        phrase = _having(sentence, start)
    if phrase is not None:
        yield from _of(attribute, sentence, phrase)
    elif _nameless(sentence) and not (attribute == "race" and sentence.word(0) in _NOT_OF_TRAITS):
        yield Asking(attribute, "person" if sentence.context.somebody else "animal")


def _contest(sentence: Sentence, first: int, end: int) -> bool:
    before = [word for word in sentence.words[max(0, first - 2) : first]]
    return (
        not _CONTESTS.isdisjoint(sentence.words)
        or (before[-1:] == ["the"] and before[0] in ("in", "at", "of", "after", "before", "during"))
        or bool(re.search(r"\bin\W*$", sentence.joined))
        or "'s" in before
        and sentence.word(first - 2) in ("driver", "runner")
    )


def _possessor(sentence: Sentence, first: int) -> tuple[int, Phrase | None]:
    """Where the words of an attribute's phrase start, and whose it is by "his" or "the man's"."""
    place = first
    while place > 0:
        tag, word = sentence.tag(place - 1), sentence.word(place - 1)
        if tag == "POS":
            owner = place - 2
            start = owner
            while start > 0 and sentence.tag(start - 1).startswith(("NN", "AJ", "AT", "DT", "DPS", "CRD", "NP", "VVG")):
                start -= 1
            return start, Phrase(start, start, owner, place)
        if tag == "DPS" or word in ("his", "her", "their", "its", "your", "my", "our"):
            return place - 1, Phrase(place - 1, place - 1, place - 1, place)
        if (
            not tag.startswith(("AJ", "AV", "AT", "DT", "CJC", "PUN"))
            and not _names_trait(word)
            and word not in _COLOURS
        ):
            if tag.startswith("NN") and place == first and word not in _SHADES and word not in SCENES:
                return place - 1, Phrase(place - 1, place - 1, place - 1, place)
            break
        if tag.startswith("PUN") and not _names_trait(sentence.word(place - 2)):
            break
        place -= 1
    return place, None


def _names_trait(word: str) -> bool:
    return any(pattern.fullmatch(word) for _, pattern in _TRAITS) or word in ("height", "clothing")


def _passing(sentence: Sentence, start: int) -> bool:
    """Whether a phrase only says something of another: "the man with blue eyes", "losing weight"."""
    if sentence.tag(start).startswith("DTQ") or start == 0:
        return False
    before, tag = sentence.word(start - 1), sentence.tag(start - 1)
    if before == "of":
        return sentence.word(start - 2) not in _WANTED
    if before in ("on", "about"):
        return sentence.word(start - 2) in ("based", "depending", "makeup")
    if before == "at" and not {"look", "looking"}.isdisjoint(sentence.words[max(0, start - 3) : start]):
        return False
    if before in _NOT_OF or tag.startswith("PRP"):
        return True
    return (
        tag.startswith("VV")
        and {before, before.removesuffix("s")}.isdisjoint(_WANTING)
        and before not in _APPEARING
        and start > 1
    )


def _after(sentence: Sentence, end: int) -> Phrase | None:
    """Whose it is by "of": also over "age, gender and race of the man"."""
    while sentence.word(end) in (",", "and", "or", "/", "the") or _names_trait(sentence.word(end)):
        end += 1
    if sentence.word(end) in ("of", "for", "between", "among"):
        return noun_phrase(sentence, end + 1)
    return None


def _next_phrase(sentence: Sentence, at: int) -> Phrase | None:
    """The phrase after "is", "do you think", "would you say" and the like."""
    while at < len(sentence.words):
        word, tag = sentence.word(at), sentence.tag(at)
        if word in _YOU and sentence.word(at + 1) in _THINKING:
            at += 2
        elif (
            tag.startswith(_AUX)
            or word in _APPEARING
            or word in ("that", "like", "approximately", "not")
            and not tag.startswith("NN")
        ):
            if word in ("that", "this") and not sentence.tag(at + 1).startswith(("AT", "PNP", "DPS")):
                break
            at += 1
        else:
            break
    return noun_phrase(sentence, at)


def _having(sentence: Sentence, start: int) -> Phrase | None:
    """The one that has it: "does he have blue eyes", "which of them has green eyes"."""
    before = sentence.up_to(start)
    if not any(tag.startswith("VH") for tag in before.tags) and "with" not in before.words[-1:]:
        return _named_before(before)
    at = 1 if before.tag(0).startswith(("VD", "VH", "VM", "DTQ")) and before.tag(1) not in ("NN1", "NN2") else 0
    return noun_phrase(before, at + (before.word(at) == "of"))


def _named_before(sentence: Sentence) -> Phrase | None:
    """The first one that is named before: "for the man in red, guess the age"."""
    for place in range(len(sentence.words)):
        phrase = noun_phrase(sentence, place)
        if (
            phrase
            and kind(sentence, phrase) != "thing"
            and sentence.word(phrase.head) not in ("who", "which", "it", "this", "that")
        ):
            return phrase
    return None


def _nameless(sentence: Sentence) -> bool:
    """Whether nobody is named, and the attribute can only be a person's of whom the conversation may speak."""
    if not _NAMELESS.search(sentence.joined):
        return False
    named = [
        word
        for word, tag in zip(sentence.words, sentence.tags, strict=True)
        if tag.startswith("NN") and word not in SCENES | _SHADES and not _names_trait(word)
    ]
    return set(named) <= _ASIDES.union(*(words for _, words in _PARTS))


def _parts(sentence: Sentence) -> Iterator[Asking]:
    """ "What colour are his eyes?", "Does she have dark skin?", "Are the man's eyes blue?"."""
    shades = [place for place, word in enumerate(sentence.words) if word in _SHADES]
    for attribute, names in _PARTS:
        for place, word in enumerate(sentence.words):
            if (
                word not in names
                or sentence.tag(place + 1).startswith("NN")
                and sentence.word(place + 1) not in _SHADES
            ):
                continue
            if sentence.word(place + 1) in _SHADES:
                continue  # "eye colour" is a name of its own
            if not shades and not _coloured(sentence, place):
                continue
            start, owner = _possessor(sentence, place)
            if shades and not owner and shades[0] > place + 1 and sentence.word(start - 1) in ("with", "has"):
                continue
            if _passing(sentence, start) or shades and not _shade_is_of(sentence, shades[0], start, place):
                continue
            phrase = owner or _after(sentence, place + 1) or (_next_phrase(sentence, place + 1) if shades else None)
            phrase = phrase or _having(sentence, start)
            if phrase is not None:
                yield from _of(attribute, sentence, phrase)
            elif _nameless(sentence):
                yield Asking(attribute, "person" if sentence.context.somebody else "animal")


def _shade_is_of(sentence: Sentence, shade: int, start: int, place: int) -> bool:
    """Whether no other noun stands between "what colour is" and the part: "the shirt of the man with the eyes"."""
    low, high = (shade + 1, start) if shade < place else (place + 1, shade)
    between = range(low, high)
    nouns = [
        one for one in between if sentence.tag(one).startswith("NN") and sentence.word(one) not in _WANTED | _COLOURS
    ]
    return shade > place or not nouns


def _coloured(sentence: Sentence, place: int) -> bool:
    """Whether a yes-or-no question or a choice says a colour of the part: "blue eyes", "eyes blue or brown?"."""
    if not sentence.tag(0).startswith(("VB", "VD", "VH", "VM")) and not {"has", "have", "which", "who"} & set(
        sentence.words
    ):
        return False
    before = sentence.words[max(0, place - 3) : place]
    after = sentence.words[place + 1 :]
    return (
        not _COLOURS.isdisjoint(before)
        or not _COLOURS.isdisjoint(after[-4:])
        and after[-1:] in (("?",), (".",), ())
        or (bool(after) and after[-1] in _COLOURS)
    )
