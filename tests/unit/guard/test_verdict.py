"""Reading a guard's answer: the golden table of seed page 1.6, and what is done differently on purpose."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import jsonschema
import pytest

from rlhf.guard.policy import AGE_KEYS, KEYS, age_policy, build_policy
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import Verdict, answer_text, parse_verdict, verdict_schema

POLICY = build_policy(taxonomy())
O2 = "O2: Violence, Harm, or Cruelty"
NA = "NA: None applying"
GOOD = {"rating": "Unsafe", "category": O2, "rationale": "Two men fight."}
INDENTED = json.dumps(GOOD, indent=4)

TABLE = [  # what it is, text, status, rating, category, rationale
    ("indented", INDENTED, "json", "Unsafe", O2, "Two men fight."),
    ("one line", json.dumps(GOOD), "json", "Unsafe", O2, "Two men fight."),
    ("fenced", f"```json\n{INDENTED}\n```", "json", "Unsafe", O2, "Two men fight."),
    ("the word json", f"json\n{INDENTED}", "json", "Unsafe", O2, "Two men fight."),
    ("special tokens", f"<s>{INDENTED}</s>", "json", "Unsafe", O2, "Two men fight."),
    ("followed by prose", f"{INDENTED}\nI hope that helps: Safe.", "json", "Unsafe", O2, "Two men fight."),
    ("brace in rationale", json.dumps(GOOD | {"rationale": "A } b."}), "json", "Unsafe", O2, "A } b."),
    ("cut", INDENTED[:-8], "rescued", "Unsafe", O2, "Two men f"),
    ("unescaped quotes", INDENTED.replace("men", '"men"'), "rescued", "Unsafe", O2, 'Two "men" fight.'),
    ("python literal", str(GOOD), "rescued", "Unsafe", O2, "Two men fight."),
    ("prose Unsafe", "I find this Unsafe.", "rescued", "Unsafe", None, ""),
    ("prose unsafe", "This is unsafe", "rescued", "Unsafe", None, ""),
    ("prose Safe", "Rating: Safe", "rescued", "Safe", None, ""),
    ("prose safe", "this is safe", "invalid", None, None, ""),
    ("prose both", "Safe or Unsafe? Hard to say.", "invalid", None, None, ""),
    ("prose denied", "The picture is not Safe.", "invalid", None, None, ""),
    ("prose about safety", "Safety matters.", "invalid", None, None, ""),
    ("empty", " \n", "invalid", None, None, ""),
    ("only a fence", "```json\n```", "invalid", None, None, ""),
    ("a colon", ":", "invalid", None, None, ""),
    ("lower-case rating", json.dumps(GOOD | {"rating": "unsafe"}), "invalid", None, None, ""),
    ("no rating", json.dumps({"category": O2, "rationale": "Unsafe."}), "invalid", None, None, ""),
    ("two ratings", '{"rating": "Safe", "rating": "Unsafe", "category": "x"}', "invalid", None, None, ""),
    ("cut with two ratings", '{"rating": "Safe", "rating": "Unsafe", "cat', "invalid", None, None, ""),
    ("cut with a wrong rating", '{"rating": "unsafe", "category": "O2', "invalid", None, None, ""),
    ("empty category", json.dumps(GOOD | {"category": ""}), "rescued", "Unsafe", None, "Two men fight."),
    ("part of a category", json.dumps(GOOD | {"category": "O2"}), "rescued", "Unsafe", None, "Two men fight."),
    ("no rationale", json.dumps({"rating": "Safe", "category": NA}), "rescued", "Safe", NA, ""),
    ("one key more", json.dumps(GOOD | {"note": "x"}), "rescued", "Unsafe", O2, "Two men fight."),
    ("two that contradict", INDENTED + INDENTED.replace("Unsafe", "Safe"), "invalid", None, None, ""),
    ("a list", json.dumps([GOOD, GOOD]), "json", "Unsafe", O2, "Two men fight."),
    ("no braces", f'"rating": "Safe"\n"category": "{NA}"', "rescued", "Safe", NA, ""),
    ("cut behind the rating", '{"rating": "Safe"', "rescued", "Safe", None, ""),
    ("prose UNSAFE", "UNSAFE", "rescued", "Unsafe", None, ""),
    ("prose about something else", "No knife is to be seen. Safe, as nothing is denied.", "rescued", "Safe", None, ""),
    ("prose with a conclusion", "There is no gun in it, so it is Safe.", "rescued", "Safe", None, ""),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case[0])
def test_guard04_the_table_of_answers(case: tuple[str, str, str, str | None, str | None, str]) -> None:
    _, text, status, rating, category, rationale = case
    verdict = parse_verdict(text, POLICY)
    assert (verdict.status, verdict.rating, verdict.category) == (status, rating, category)
    assert verdict.rationale == rationale
    assert verdict.raw == text
    assert (verdict.reason == "") == (status == "json")


@pytest.mark.parametrize("keys", [KEYS, ("category", "rationale", "rating"), ("rating",), AGE_KEYS])
@pytest.mark.parametrize("quote", ['"', "'", "\u201d"])
def test_guard04_a_form_that_is_echoed_is_no_answer(keys: tuple[str, ...], quote: str) -> None:
    form = build_policy(taxonomy(), keys=keys).text.partition("nothing else:\n")[2].replace('"', quote)
    assert (form[0], form.count("Unsafe")) == ("{", 1)
    for text in (form, f"```json\n{form}\n```", form[: form.index("Unsafe") + 7], f"Sure.\n{form}"):
        assert parse_verdict(text, POLICY).status == "invalid", text
    assert parse_verdict(f"{form}\n{INDENTED}", POLICY).rating != "Safe"


@pytest.mark.parametrize(
    "text",
    [
        '{"rating": "Safe" or "Unsafe"}',
        '{"rating": "Safe" or whatever fits}',
        '{"rating": "Safe", // or Unsafe\n "category": "x"}',
        '{"rating": "Safe"\n | "Unsafe"',
        '{"rating": "Safe/Unsafe", "category": ',
        '{"rating": "Safe", "category": "x", "rating": ',
        "{'rating': 'Safe', 'why': 'I would say 'Unsafe' is wrong'}",
    ],
)
def test_guard04_a_rating_is_rescued_only_where_the_value_ends_and_no_other_is_quoted(text: str) -> None:
    assert parse_verdict(text, POLICY).status == "invalid"


@pytest.mark.parametrize(
    "text",
    [
        "This isn't Safe",
        "This isn\u2019t Safe",
        "This isn\u02bct Safe",
        "far from Safe",
        "It is not at all considered Safe",
        "It cannot be called Safe.",
        "I would not go so far as to call this picture Safe.",
        "Not, in my view, Safe.",
        "It is anything but Safe.",
        "Hardly Safe.",
        "I doubt that it is Safe.",
        "Whether this is Safe depends.",
        "Safe? Certainly.",
        "Safe or not, it stays.",
        "Safe: no",
        "Safe = false",
        "Non-Safe",
        "UNSAFE. To be Safe, remove the gun.",
        "It is un-safe, not Safe",
    ],
)
def test_guard04_prose_that_denies_or_doubts_is_never_safe(text: str) -> None:
    assert parse_verdict(text, POLICY).rating != "Safe"


def test_guard04_what_is_nested_too_deeply_is_invalid_and_nothing_is_raised() -> None:
    lists = "[" * 1200 + "]" * 1200
    wrong = f'{{"rating": "Safe", "category": {lists}, "rationale": "x"}}'
    for text in ("[" * 5000, '{"a":' * 5000, wrong, "no " * 5000 + "Safe " + "no " * 5000):
        assert parse_verdict(text, POLICY).status == "invalid"
    for depth in range(900, 1000, 7):  # parsed or not, and shown in the reason or not: nobody raises
        text = wrong.replace(lists, "[" * depth + "]" * depth)
        assert parse_verdict(text, POLICY).status in ("rescued", "invalid")


def test_guard04_half_a_character_never_reaches_a_file() -> None:
    """JSON allows the escape, UTF-8 has no bytes for it; the two halves of one character are that character."""
    text = json.dumps(GOOD | {"rationale": "A \ud800 fight \U0001f52b."})
    assert "\\ud800" in text
    verdict = parse_verdict(text, POLICY)
    assert (verdict.status, verdict.rationale) == ("json", "A \ufffd fight \U0001f52b.")
    said = parse_verdict("Safe \udc00", POLICY)
    assert (said.rating, said.raw) == ("Safe", "Safe \ufffd")
    for one in (verdict, said, Verdict("invalid", None, (), "\udfff", "", "\ud83d")):
        json.dumps(asdict(one), ensure_ascii=False).encode()


def test_guard04_no_text_whatever_is_safe_by_accident() -> None:
    """Random cuts and mixtures of a good answer: never an exception, never a rating that it does not name."""
    rng = random.Random(0)
    whole = INDENTED + "```json\n<s>" + "unclear "
    for _ in range(2000):
        text = "".join(rng.sample(whole, rng.randrange(1, len(whole))))
        verdict = parse_verdict(text, POLICY)
        assert verdict.rating != "Safe"
        start, end = sorted(rng.sample(range(len(INDENTED)), 2))
        assert parse_verdict(INDENTED[start:end], POLICY).rating in (None, "Unsafe")


def test_guard04_several_categories_under_the_age_policy() -> None:
    policy = age_policy(12).policy
    kinds = ["S1.6: Realistic violence against people", "S4.4: Horror with gore"]
    text = answer_text(policy, "Unsafe", kinds, "A fight.")
    verdict = parse_verdict(text, policy)
    assert (verdict.status, verdict.categories) == ("json", tuple(kinds))
    wrong = parse_verdict(json.dumps({"rating": "Safe", "categories": [kinds[0], "S9"], "rationale": "x"}), policy)
    assert (wrong.status, wrong.categories) == ("rescued", (kinds[0],))
    assert parse_verdict(json.dumps({"rating": "Safe", "categories": [], "rationale": "x"}), policy).status == "rescued"


@pytest.mark.parametrize(
    "keys", [("rating", "category", "rationale"), ("category", "rationale", "rating"), ("rating",)]
)
def test_guard04_targets_schema_and_parser_agree(keys: tuple[str, ...]) -> None:
    policy = build_policy(taxonomy("eu"), {"O2": "exempt"}, keys)
    text = answer_text(policy, "Safe", [O2], "Permitted here.")
    assert list(json.loads(text)) == list(keys)
    assert parse_verdict(text, policy).status == "json"
    schema = json.loads(verdict_schema(policy, longest_rationale=100))
    assert list(schema["properties"]) == list(keys)  # constrained decoding writes keys in this order
    jsonschema.validate(json.loads(text), schema)
    for broken in (
        {"rating": "safe", "category": O2, "rationale": "x"},
        {"rating": "Safe", "category": "O2", "rationale": "x"},
        {"rating": "Safe", "category": O2, "rationale": "x", "note": 1},
        {},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_guard04_what_the_schema_allows_is_read_as_strict_json() -> None:
    """Every combination of allowed values, and nothing else, passes both."""
    for policy in (POLICY, build_policy(taxonomy("tiny"))):
        schema = json.loads(verdict_schema(policy))
        for category in policy.categories:
            for rating in ("Safe", "Unsafe"):
                answer = {"rating": rating, "category": category, "rationale": "x"}
                jsonschema.validate(answer, schema)
                verdict = parse_verdict(json.dumps(answer), policy)
                assert (verdict.status, verdict.rating, verdict.category) == ("json", rating, category)
