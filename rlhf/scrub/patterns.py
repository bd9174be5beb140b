"""Regular expressions over the values of attributes, compiled once per taxonomy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlhf.scrub.ages import ABOUT, AGED, IN_DECADE, IN_THE_DECADE, NUMBER, OF_AGE, RANGE, YEARS
from rlhf.scrub.taxonomy import Attribute, Taxonomy, any_of, one_of, taxonomy, values, word_list
from rlhf.scrub.text import RUN, Text

_HUE = rf"(?:{one_of('eye_hues')})"
_SHADES = rf"(?:(?:{one_of('eye_shades')})(?:[- ]|, )){{0,3}}"
_COLOUR = rf"{_SHADES}{_HUE}(?:(?:[- ]| and | or ){_HUE}){{0,2}}(?:[- ]colou?red)?(?: human)?"
_SHADE_OF = (
    rf"(?:an? )?(?:[\w-]+ ){{0,2}}(?:shade|colou?r|mix|mixture) of {_COLOUR}|an? (?:[\w-]+ ){{0,2}}{_COLOUR}|{_COLOUR}"
)
_EYES = rf"(?:eyes|(?<!black )eye(?![- ](?:{one_of('eye_things')})\b))"
_TONE = rf"(?:{one_of('skin_tones')})"
_SKIN = rf"(?:(?:very|a|rather|quite|slightly) ){{0,2}}{_TONE}(?:[- ]{_TONE}){{0,2}}(?:[- ]colou?red)?"
_SKIN_NOUN = rf"{_SKIN}(?:(?: and|,) \w+)? (?:skin|complexion)(?: tones?| colou?rs?)?(?: than (?:the )?\w+)?"
_UNIT = rf"(?:{one_of('mass_units')})"
_MASS = rf"{ABOUT}(?:\d{{1,3}}(?:[.,]\d+)?|{NUMBER})(?:\s?(?:-|to|or)\s?\d{{1,3}})?[ -]?{_UNIT}\b"
_BUILDS = rf"(?:(?:{one_of('builds')})(?: and |, | )?)"
_BUILD = rf"(?:(?:very|quite|rather) )?{_BUILDS}{{1,4}}(?:{one_of('build_nouns')})"
_BELLY = rf"(?:{one_of('bellies')})[ -](?=bell(?:y|ies)\b)"
_HAIRS = rf"(?:(?:{one_of('hair_values')})(?: and |, |[ -])){{1,4}}"
_HAIR = rf"{_HAIRS}(?:hair(?! (?:dryer|salon|clip|brush|tie|net|band)\b)|hairstyle|haircut)"
_ORDINAL = r"(?:\d{1,3}(?:st|nd|rd|th)|first|second|third|(?:\w+-)?\w{2,9}th)"


def _ends(name: str) -> tuple[str, ...]:
    """The last words of these values: runs of letters that a text has to have."""
    return tuple(RUN.findall(value)[-1] for value in values(name))


_OLD = ("old", "olds", "age", "yo", "y")
_EYE, _SKINS, _BODY = ("eye", "eyes"), ("skin", "complexion"), _ends("build_nouns")
_HAS_HAIR = ("hair", "hairstyle", "haircut")
_MASSES = tuple(unit for unit in values("mass_units") if unit != "stone")
Row = tuple[Attribute, str, str, Sequence[str]]  # attribute, rule, pattern, runs of letters of which it has one
# what can be left out where it stands, with a comma before it
_PHRASES: tuple[Row, ...] = (
    ("age", "years", rf",?\s?{YEARS}", _OLD),
    ("age", "aged", rf",?\s?\b{AGED}", ("age", "aged", "ages")),
    ("age", "decade", rf",?\s?\b{IN_DECADE}", (*values("decades"), "s", *_ends("times_of_life"))),
    ("age", "aged", rf",?\s?\bas (?:young|old) as {NUMBER}(?: years?)?\b", ("young", "old")),
    ("age", "of age", rf",?\s?\b{OF_AGE}", ("age",)),
    (
        "race",
        "races",
        rf",?\s?\b(?:of|from) (?:{one_of('many_races')}) (?:{one_of('races')})\b",
        ("races", "ethnicities", "ethnic", "racial", "skin"),
    ),
    (
        "race",
        "skin",
        rf",?\s?\bwith (?:(?:some|others|both|most|all) (?:of them )?(?:having )?)?(?:an? )?{_SKIN_NOUN}\b(?!\s+and\b)",
        _SKINS,
    ),
    ("age", "aged", rf",?\s?\branging in age(?: from {RANGE})?", ("ranging",)),
    ("weight", "weighing", rf",?\s?\bwith a (?:body )?weight of {_MASS}", ("weight",)),
    ("weight", "weighing", rf",?\s?\bweighing (?:in at )?{_MASS}", ("weighing",)),
    ("eye_color", "eyes", rf",?\s?\bwith (?:an? |one )?{_COLOUR} {_EYES}\b(?!\s+and\b)", _EYE),
    ("eye_color", "eyes", rf",?\s?\bwith eyes (?:that|which) are {_COLOUR}\b", _EYE),
    (
        "weight",
        "build",
        rf",?\s?\b(?:with|of) (?:an? )?{_BUILDS}{{1,3}}(?:{one_of('build_nouns')}|weight)\b(?!\s+and\b)",
        (*_BODY, "weight"),
    ),
    ("weight", "belly", rf",?\s?\bwith (?:an? )?{_BELLY}bell(?:y|ies)\b(?!\s+and\b)", ("belly", "bellies")),
    ("weight", "build", rf"(?<=height) and (?:{_BUILDS})?(?:build|weight)\b", ("height",)),
    ("hair", "hair", rf",?\s?\bwith {_HAIR}\b(?!\s+and\b)", _HAS_HAIR),
)
# words that can be left out while the noun after or before them stays
_WORDS: tuple[Row, ...] = (
    ("eye_color", "eyes", rf"\b{_COLOUR}\s+(?={_EYES}\b)", _EYE),
    (
        "eye_color",
        "eyes",
        rf"(?<=\beyes),? (?:which|that) (?:are|were) (?:very |quite )?{_COLOUR}(?:,|(?![\w-]))",
        _EYE,
    ),
    ("eye_color", "eyes", rf"(?<=\beyes), (?:{_SHADE_OF}),", _EYE),
    ("race", "skin", rf"\b{_SKIN}\s+(?=(?:skin|complexion)\b)", _SKINS),
    ("weight", "belly", rf"\b{_BELLY}", ("belly", "bellies")),
    ("age", "birthday", rf"\b{_ORDINAL} (?=birthday\b)", ("birthday",)),
    ("hair", "hair", rf"\b{_HAIRS}(?=hair\b)", _HAS_HAIR),
)
# a verb and what it tells
_VERBS: tuple[Row, ...] = (
    (
        "race",
        "races",
        rf"\bcomes? from (?:{one_of('many_races')}) (?:{one_of('races')})\b",
        ("races", "ethnicities", "ethnic", "racial"),
    ),
    ("weight", "weighs", rf"\b(?:weigh(?:s|ed)?|tips the scales at) {_MASS}", ("weigh", "weighs", "weighed", "scales")),
    (
        "weight",
        "weight",
        r"\b(?:(?:has|have|had) )?(?:gained|lost|put on) (?:some |a lot of |a bit of |much )?weight\b",
        ("weight",),
    ),
    ("age", "aged", rf"\b(?:ranges?|var(?:y|ies)) in age(?: from {RANGE})?", ("age",)),
    (
        "age",
        "turns",
        rf"\b(?:(?:is|was|will be|about to|just) )?turn(?:s|ed|ing)? {ABOUT}{NUMBER}"
        r"(?! (?:\w+ )?(?:degrees|pages|times|corners|points)|-)",
        ("turn", "turns", "turned", "turning"),
    ),
)
# what somebody has
_THINGS: tuple[Row, ...] = (
    ("eye_color", "possession", rf"(?:(?:a pair of|an?|one|the other|two) )?{_COLOUR} {_EYES}", _EYE),
    ("eye_color", "possession", rf"eyes (?:that|which) are {_COLOUR}", _EYE),
    ("race", "possession", rf"(?:an? )?{_SKIN_NOUN}", _SKINS),
    ("weight", "possession", rf"(?:an? )?{_BUILD}", _BODY),
    ("weight", "possession", rf"(?:an? )?{_BELLY}bell(?:y|ies)", ("belly", "bellies")),
    ("hair", "possession", rf"(?:an? )?{_HAIR}", _HAS_HAIR),
)
# how somebody is spoken to or called
_ADDRESSES: tuple[Row, ...] = (
    (
        "gender",
        "title",
        r"(?<!\ba )(?<!\ban )(?<!\bthe )\b(?:mrs?|ms|miss)\b\.? (?=\w+\b(?!['\u2019]s))",
        ("mr", "mrs", "ms", "miss"),
    ),
    (
        "gender",
        "address",
        r"(?:\A|(?<=[.!?] ))(?:sir|madam|ma['\u2019]am|miss|gentlemen|ladies),\s+"
        r"|,\s+(?:sir|madam|ma['\u2019]am|miss)(?=\s*[.!?])",
        ("sir", "madam", "ma", "miss", "gentlemen", "ladies"),
    ),
)
# keys of a sheet about somebody ("Age: 30")
_KEYS: tuple[tuple[Attribute, str, Sequence[str]], ...] = (
    ("age", "(?:approximate |estimated )?age(?: range| group)?", ("age",)),
    ("gender", "gender|sex", ("gender", "sex")),
    (
        "race",
        "race|ethnicity|ethnic group|nationality|skin(?: colou?r| tone)?|complexion",
        ("race", "ethnicity", "ethnic", "nationality", *_SKINS),
    ),
    ("eye_color", "eyes|eye colou?r", _EYE),
    ("weight", "(?:body )?weight|(?:body )?build|body type|bmi", ("weight", "build", "body", "bmi")),
    ("hair", "hair(?: colou?r|style)?", _HAS_HAIR),
)
_SHEET = (
    r"(?:^[ \t]*|(?<=[\n.;,] )|(?<=[\n.;,]))(?:[-*\u2022] ?)?(?:\*\*)?(?P<key>{})(?:\*\*)?[ \t]*:(?:\*\*)?"
    r"[ \t]*(?:[^\n,.;:]|(?<=\d)\.(?=\d)){{1,40}}(?=[.,;\n]|$)[.,;]?[ \t]*\n?"
)
_VERB = (
    r"(?P<verb>(?:is|are|was|were|am)(?:n['\u2019]t)?"
    r"(?: (?:\w+ly )?(?:believed|estimated|thought|said|reported|likely) to be)?"
    r"|['\u2019](?:s|re)"
    r"|(?:may|might|must|could|can|would|will|should|wo)(?:n?['\u2019]t)?(?: (?:not|also|well|\w+ly)){0,2} be"
    r"|(?:has|have|had) (?:\w+ )?been|(?:looks?|looked|seems?|seemed|appears?|appeared)(?: to (?:\w+ly )?be)?"
    r"(?: like| as)?|(?:remains?|becomes?|became|turns out to be)"
    r"|(?P<participle>(?:appearing|seeming|believed|estimated|thought|looking)(?: to be)?))(?=\s)"
)
_HAVE = r"(?P<verb>['\u2019](?:s|ve) got|\b(?:has|have|had|having|with)(?: got)?)\s+(?P<value>{})\b"
_PRONOUNS = ("he", "she", "him", "his", "her", "hers", "himself", "herself")
_COMMON = frozenset(("looking", "like", "age", "size", "thin", "something", "old", "american", "school"))
_IN_NUMBERS = frozenset(("s", "y"))  # "20s" and "7 y/o": found by their number
_DIGIT, _IN_MAN = re.compile(r"\d"), re.compile(r"m[ae]n\b")
# where a number alone may be an age
_NUMBERS = r"(?:(?<=[a-z,] )|(?<=[(,]))\d{1,3}(?![\d.,:]*\d)|\d0['\u2019]?s\b|\d ?y/?o\b"
Compiled = re.Pattern[str]


@dataclass(frozen=True)
class Search:
    """A pattern that is looked for only in texts that have one of the runs of letters it needs."""

    attribute: Attribute
    rule: str
    pattern: Compiled
    needs: frozenset[str]

    def finditer(self, text: Text) -> Iterator[re.Match[str]]:
        """All matches in the text."""
        return iter(()) if self.needs.isdisjoint(text.runs) else self.pattern.finditer(text.lower)

    def match(self, text: Text, place: int) -> re.Match[str] | None:
        """The match that starts at this place of the text."""
        return None if self.needs.isdisjoint(text.runs) else self.pattern.match(text.lower, place)


@dataclass(frozen=True)
class Patterns:
    """What the rules look for."""

    telling: frozenset[str]  # runs of letters: a text that has one of them may tell something
    needs: frozenset[str]  # without one of these no search finds anything
    numbers: Compiled  # a text that has a number in such a place may tell something, too
    phrases: tuple[Search, ...]
    words: tuple[Search, ...]
    verbs: tuple[Search, ...]
    things: tuple[Search, ...]
    possessions: tuple[Search, ...]
    addresses: tuple[Search, ...]
    sheet: tuple[Search, ...]
    verb: Compiled  # from the place of one of `verb_starts`
    verb_starts: frozenset[str]
    said: dict[str, tuple[tuple[Attribute, Compiled], ...]]  # of a person, and of what a person has
    of_number: Compiled
    of_mass: Compiled
    at_number: Compiled
    one_of_them: Compiled
    number: Compiled

    def may_tell(self, text: str) -> bool:
        """Whether the rules have to look at all: False only where they would find nothing."""
        lower = text.lower()
        if not self.telling.isdisjoint(RUN.findall(lower)) or _IN_MAN.search(lower):
            return True
        return _DIGIT.search(lower) is not None and self.numbers.search(lower) is not None


@lru_cache(maxsize=2)
def patterns(attributes: tuple[Attribute, ...]) -> Patterns:
    """The patterns for some attributes."""
    lists = taxonomy("hair" in attributes)
    parts = [_searches(rows, attributes) for rows in (_PHRASES, _WORDS, _VERBS, _THINGS, _ADDRESSES)]
    origin = any_of(word for word, told in lists.modifiers.items() if told == "race")
    origins = rf"(?:{origin})(?:(?:, and |, or |, | and | or |/|-)(?:{origin})){{0,4}}"
    descent = rf"(?:of|with) (?:an? )?(?:(?:mixed |partly )?{origins}|mixed) (?:{one_of('descents')})"
    descents: Row = ("race", "descent", rf",?\s?\b{descent}\b", values("descents"))
    possessions = [(one, rule, _HAVE.format(f"(?:{thing})"), needs) for one, rule, thing, needs in _THINGS]
    sheet = [(one, "sheet", _SHEET.format(key), needs) for one, key, needs in _KEYS]
    searched = (*_PHRASES, *_WORDS, *_VERBS, *_THINGS, *_ADDRESSES, *sheet, descents)
    needs = {run for attribute, _, _, runs in searched if attribute in attributes for run in runs}
    return Patterns(
        telling=frozenset(_telling(lists)) | (needs - _IN_NUMBERS),
        needs=frozenset(needs),
        numbers=_compiled(_NUMBERS),
        phrases=(*parts[0], *_searches((descents,), attributes)),
        words=parts[1],
        verbs=parts[2],
        things=parts[3],
        addresses=parts[4],
        possessions=_searches(possessions, attributes),
        sheet=_searches(sheet, attributes, re.MULTILINE),
        verb=_compiled(_VERB),
        verb_starts=word_list("verb_starts"),
        said={
            kind: tuple((one, _compiled(rf"(?:{text})(?![\w'\u2019-])")) for one, text in said if one in attributes)
            for kind, said in _said(lists, origins, descent).items()
        },
        of_number=_compiled(rf"\bof {ABOUT}{NUMBER}(?: (?:{one_of('years')}))?\b"),
        of_mass=_compiled(rf"\bof {_MASS}"),
        at_number=_compiled(rf"\bat (?:{ABOUT}(?:2[5-9]|[3-9]\d|1[01]\d)(?: years)?|(?P<mass>{_MASS})),\s+"),
        number=_compiled(rf"(?P<about>{ABOUT}){RANGE}"),
        one_of_them=_compiled(
            rf"\b(?:the|an?) (?P<word>{any_of(word for word in lists.modifiers if word.endswith(('er', 'est')))})"
            r"(?: (?:one )?of (?=the|these|those|them|all|my|our|his|her|their)|(?<=est)(?P<alone>)\b(?! of))"
        ),
    )


def _said(lists: Taxonomy, origins: str, descent: str) -> dict[str, list[tuple[Attribute, str]]]:
    """What is said of a person, and of what a person has, by the name of that."""
    most = {
        name: any_of(word for word, told in lists.modifiers.items() if told == name and word.endswith("est")) or "(?!)"
        for name in ("age", "weight")
    }
    word = r"[\w-]+(?: or [\w-]+)?"
    return {
        "person": [
            ("age", rf"{YEARS}|{IN_THE_DECADE}|{AGED}|{OF_AGE}|(?:one of )?the (?:{most['age']})"),
            ("race", rf"{descent}|(?:of|from) (?:{one_of('many_races')}) (?:{one_of('races')})"),
            ("weight", rf"{_MASS}|(?:of|with) (?:an? )?{_BUILDS}{{1,3}}(?:{one_of('build_nouns')}|weight)"),
            ("weight", rf"on the (?:{one_of('sides')}) side|(?:one of )?the (?:{most['weight']})"),
        ],
        "age": [("age", rf"{ABOUT}{RANGE}(?: (?:{one_of('years')})(?: old)?)?|{IN_THE_DECADE}|{word}")],
        "gender": [("gender", word)],
        "race": [("race", rf"{origins}|{word}")],
        "skin": [("race", rf"{_SKIN}(?: in colou?r| toned)?|{origins}")],
        "weight": [("weight", rf"{_MASS}|{_BUILDS}{{1,4}}|{word}")],
        "eyes": [("eye_color", rf"(?:{_SHADE_OF})(?: in colou?r)?")],
        "hair": [("hair", rf"(?:(?:{one_of('hair_values')})(?:, | and |[ -])?){{1,4}}")],
    }


def _telling(lists: Taxonomy) -> Iterator[str]:
    """Of each word of the lists one run of letters, of "blue-eyed" the one that fewer texts have."""
    yield from (*_PRONOUNS, *values("tens"), *values("number_words"), *_MASSES)
    for word in (*(word for word, known in lists.people.items() if known.tells), *lists.modifiers):
        runs = RUN.findall(word)
        yield runs[0] if runs[-1] in _COMMON else runs[-1]


def _searches(rows: Sequence[Row], attributes: tuple[Attribute, ...], flags: int = 0) -> tuple[Search, ...]:
    return tuple(
        Search(attribute, rule, _compiled(text, flags), frozenset(needs))
        for attribute, rule, text, needs in rows
        if attribute in attributes
    )


def _compiled(text: str, flags: int = 0) -> Compiled:
    """A pattern of lower-case text."""
    return re.compile(text, flags)
