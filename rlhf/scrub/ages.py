"""One grammar of ages in words and figures: "3 year old", "between 20 and 30", "late thirties to early forties"."""

from __future__ import annotations

from rlhf.scrub.taxonomy import one_of, values

_WORDS = rf"(?:(?:{one_of('tens')})(?:[ -](?:{one_of('ones')}))?|{one_of('number_words', 'ones')})"
NUMBER = rf"(?:(?<![\d.,:])\d{{1,3}}(?!\d|[.,:]\d|%)|\b{_WORDS}\b)"
RANGE = rf"{NUMBER}(?:(?:\s?[-\u2013/]\s?|,? (?:to|or|and) ){NUMBER})?"
ABOUT = rf"(?:(?:{one_of('hedges')}) ){{0,3}}"
_UNIT = rf"(?:{one_of('years')})"
# "3 year old", "20-year-olds": one word for the rules (text.py), an adjective or a noun
OLD = rf"(?:{RANGE}(?:[ -]and[ -]a[ -]half)?[ -]?{_UNIT}[ -]?olds?|{NUMBER} ?-?y/?o)"
YEARS = rf"{ABOUT}(?:{RANGE}(?:[ -]and[ -]a[ -]half)?[ -]{_UNIT}[ -](?:old|of age)|{NUMBER} ?y/?o)\b"
_ONE_DECADE = (
    rf"(?:(?:{one_of('parts_of_decades')})(?:[- ](?:to|or)[- ](?:{one_of('parts_of_decades')}))?[- ]?)?"
    rf"(?:{one_of('decades')}|\d0['\u2019]?s)"
)
_TAIL = rf"(?:\s?[-\u2013/]\s?|,? (?:to|or|and) )(?:(?:in )?(?:his|her|their|the) )?{_ONE_DECADE}"
DECADES = rf"{_ONE_DECADE}(?:{_TAIL})?"
_LIFE = rf"(?:{one_of('times_of_life')})"
_WHOSE = r"(?:his or her|his/her|his|her|their|your|my)"
# of a person wherever it stands; "in the sixties" only where it is said of one
IN_DECADE = rf"{ABOUT}in {_WHOSE} (?:{DECADES}|{_LIFE})\b"
IN_THE_DECADE = rf"{ABOUT}in (?:{_WHOSE}|the) (?:{DECADES}|{_LIFE})\b"
OF_AGE = (
    r"(?:of|at|near|close to|past|approaching) (?:an? )?"
    r"(?:advanced|old|middle|older|young|tender|retirement|school|working|indeterminate) age\b"
)
AGED = (
    rf"(?:{ABOUT}(?:aged?|ages)\s+{ABOUT}{RANGE}(?: {_UNIT})?(?! and (?:up|over|under|older|above|below|younger)| ?\+)"
    rf"|{ABOUT}(?:between|from|at|of|by) (?:the )?ages? (?:of )?{ABOUT}{RANGE})\b"
)
UNITS = values("years")
