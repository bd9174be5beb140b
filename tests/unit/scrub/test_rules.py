"""The rules on labelled sentences: what they find, what they leave alone, and how the result reads."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.world import random_scene
from rlhf.data.world_text import TYPES, ask
from rlhf.scrub.ages import AGED, DECADES, IN_DECADE, YEARS
from rlhf.scrub.clauses import clause_edits
from rlhf.scrub.lists import list_edits
from rlhf.scrub.patterns import patterns
from rlhf.scrub.people import people_edits
from rlhf.scrub.pronouns import pronoun_edits
from rlhf.scrub.questions import asked_attributes
from rlhf.scrub.rewrite import find_cues, rewrite
from rlhf.scrub.rows import scrub_row
from rlhf.scrub.taxonomy import plural, taxonomy
from rlhf.scrub.text import Context, Text

GOLDEN = Path(__file__).parents[2] / "golden" / "scrub"
SENTENCES: list[dict[str, Any]] = [json.loads(line) for line in (GOLDEN / "sentences.jsonl").read_text().splitlines()]
HELD_OUT: list[dict[str, Any]] = [json.loads(line) for line in (GOLDEN / "held_out.jsonl").read_text().splitlines()]
TOLD = [row for row in SENTENCES if row["kind"] != "question"]
SETS = pytest.mark.parametrize("rows", [TOLD, HELD_OUT], ids=["sentences", "held_out"])
TAXONOMY = taxonomy()


def test_safe04_the_labelled_set_covers_every_attribute_with_people_animals_things_and_idioms() -> None:
    assert len(SENTENCES) >= 400
    for attribute in TAXONOMY.attributes:
        kinds = Counter(row["kind"] for row in SENTENCES if attribute in row["about"])
        assert set(kinds) == {"person", "animal", "object", "idiom", "question"}, attribute
        assert min(kinds.values()) >= 5, attribute


@SETS
def test_safe04_precision_and_recall_on_the_labelled_set(rows: list[dict[str, Any]]) -> None:
    right = wrong = missed = 0
    for row in rows:
        found, told = {cue.attribute for cue in find_cues(row["text"], TAXONOMY)}, set(row["tells"])
        right, wrong, missed = right + len(found & told), wrong + len(found - told), missed + len(told - found)
    assert right / (right + wrong) >= 0.97
    assert right / (right + missed) >= 0.97


@SETS
def test_safe03_every_sentence_becomes_what_was_read_and_approved(rows: list[dict[str, Any]]) -> None:
    approved = {row["text"]: row["becomes"] for row in rows}
    made = {text: rewrite(text, TAXONOMY) for text in approved}
    assert {text: new for text, new in made.items() if new != approved[text]} == {}


def test_safe04_the_second_set_has_people_animals_things_and_idioms_and_repeats_nothing() -> None:
    assert len(HELD_OUT) >= 200
    assert Counter(row["kind"] for row in HELD_OUT).keys() == {"person", "animal", "object", "idiom"}
    assert not {row["text"] for row in HELD_OUT} & {row["text"] for row in SENTENCES}
    for attribute in TAXONOMY.attributes:
        kept = [row for row in HELD_OUT if attribute in row["about"] and not row["tells"]]
        assert len(kept) >= 5, attribute


@SETS
def test_safe03_no_row_of_the_sets_is_refused(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": row["text"]}]
        assert scrub_row({"id": 1, "conversations": turns}, TAXONOMY).row["id"] == 1


@SETS
def test_the_first_look_lets_through_what_any_rule_would_find(rows: list[dict[str, Any]]) -> None:
    """On the sets, and on words of the rules in no order at all."""
    draw, words = random.Random(0), sorted({word for row in rows for word in row["text"].split()})
    noise = (" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(3000))
    neutral = (row["text"].replace("man", "rider").replace("woman", "rider") for row in rows)
    for text in itertools.chain((row["text"] for row in rows), neutral, noise):
        if not patterns(TAXONOMY.attributes).may_tell(text):
            read = Text(text, TAXONOMY)
            assert not [*list_edits(read), *clause_edits(read), *people_edits(read), *pronoun_edits(read)], text


@SETS
def test_safe03_nothing_is_left_and_a_second_pass_changes_nothing(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        once = rewrite(row["text"], TAXONOMY)
        assert find_cues(once, TAXONOMY) == [], once
        assert rewrite(once, TAXONOMY) == once


def test_safe04_questions_that_ask_are_told_from_those_that_mention_or_mean_a_thing() -> None:
    questions = [row for row in SENTENCES if row["kind"] == "question"]
    wrong = [row["text"] for row in questions if bool(asked_attributes(row["text"], TAXONOMY)) != row["asks"]]
    assert wrong == []
    passing = [row["text"] for row in TOLD if row["text"].endswith("?")]
    assert len(passing) > 8
    assert [text for text in passing if asked_attributes(text, TAXONOMY)] == []


@pytest.mark.parametrize(
    ("question", "attributes"),
    [
        ("How old is the girl with the kite?", {"age"}),
        ("What is his race and how much does he weigh?", {"race", "weight"}),
        ("Is this a man or a woman?\nAnswer with a single word.", {"gender"}),
        ("How old is the oak?", set()),
        ("What colour are the eyes?", {"eye_color"}),
        ("Look at the skin and name the colour.", {"race"}),
        ("Which age do you see?", {"age"}),
    ],
)
def test_safe04_which_attribute_is_asked(question: str, attributes: set[str]) -> None:
    assert asked_attributes(question, TAXONOMY) == attributes


def test_cues_name_the_words_of_the_original() -> None:
    text = "An elderly woman with blue eyes sits on a bench."
    found = {(text[cue.start : cue.end].strip(), cue.attribute) for cue in find_cues(text, TAXONOMY)}
    assert {("elderly", "age"), ("woman", "gender"), ("with blue eyes", "eye_color")} <= found


def test_cues_have_one_order_in_every_process() -> None:
    code = (
        "from rlhf.scrub.rewrite import find_cues; from rlhf.scrub.taxonomy import taxonomy;"
        "print(find_cues('Boys, girls and an Asian schoolgirl, who is 9 years old.', taxonomy()))"
    )
    seeds = ("0", "1", "2", "3")
    made = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}) for s in seeds
    }
    assert len(made) == 1


def test_a_pronoun_means_what_the_conversation_spoke_of() -> None:
    text = "He is running."
    assert rewrite(text, TAXONOMY, Context(people=True, animals=True)) == "They are running."
    assert rewrite(text, TAXONOMY, Context(animals=True)) == text
    assert rewrite(text, TAXONOMY) == "They are running."


def test_eyes_and_skin_are_a_persons_unless_the_conversation_is_about_animals() -> None:
    animals = Context(animals=True)
    assert asked_attributes("What colour are the eyes?", TAXONOMY, animals) == set()
    assert rewrite("The eyes are green.", TAXONOMY) == ""
    assert rewrite("The eyes are green.", TAXONOMY, animals) == "The eyes are green."


@pytest.mark.parametrize("family", ["eyes", "skin", "age", "build", "hair", "shirt", "wall", "item", "count", "shape"])
def test_safe04_questions_of_the_tiny_world_that_the_rules_were_not_written_for(family: str) -> None:
    attribute = {"eyes": "eye_color", "skin": "race", "age": "age", "build": "weight"}.get(family)
    kind = {"item": "harm", "count": "group", "shape": "object"}.get(family, "person")
    draw = random.Random(0)
    missed = []
    for number in range(60):
        asked = ask(draw, random_scene(draw, kind), family, ("train", "test")[number % 2], TYPES[number % 3])
        if asked_attributes(asked.question, TAXONOMY) != ({attribute} if attribute else set()):
            missed.append(asked.question)
        if attribute is None:
            assert rewrite(asked.answer, TAXONOMY) == asked.answer
    assert missed == []


def test_hair_is_allowed_unless_it_is_asked_for() -> None:
    text = "A blonde person waves."
    assert rewrite(text, TAXONOMY) == text
    assert rewrite(text, taxonomy(with_hair=True)) == "A person waves."


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("A person with long blonde hair is reading.", "A person is reading."),
        ("The person has red hair and a hat.", "The person has a hat."),
        ("The rider's hair is brown. The rider waves.", "The rider waves."),
        ("A brunette and a redhead share a table.", "Two people share a table."),
        ("The dog has brown hair.", "The dog has brown hair."),
        ("A hair dryer lies on the long brown table.", "A hair dryer lies on the long brown table."),
    ],
)
def test_hair_that_is_asked_for(text: str, becomes: str) -> None:
    assert rewrite(text, taxonomy(with_hair=True)) == becomes
    assert "hair" not in {cue.attribute for cue in find_cues(text, TAXONOMY)}


@pytest.mark.parametrize(
    ("grammar", "ages", "others"),
    [
        (
            YEARS,
            (
                "25 years old",
                "about 8 or 9 years old",
                "between 20 and 30 years of age",
                "twenty-five year old",
                "7 y/o",
            ),
            ("25 years", "1.5 years old", "2,000 years old", "years old", "25 degrees old"),
        ),
        (
            DECADES,
            ("thirties", "late twenties", "early to mid 40s", "late thirties to early forties", "60s or 70s", "80's"),
            ("tens", "thirty", "1960s", "0s"),
        ),
        (
            IN_DECADE,
            ("in her mid-30s", "in their late 20s to early 30s", "in his golden years", "in his or her fifties"),
            ("in the sixties", "in her garden", "in 30s"),
        ),
        (
            AGED,
            ("aged 7", "age 54", "aged between 18 and 25", "between the ages of 13 and 17", "at the age of 12"),
            ("aged", "aged cheese", "at 9", "pages 7"),
        ),
    ],
)
def test_the_grammar_of_ages(grammar: str, ages: tuple[str, ...], others: tuple[str, ...]) -> None:
    whole = [text for text in (*ages, *others) if re.fullmatch(grammar, text)]
    assert whole == list(ages)


def test_ages_are_one_word_however_they_are_written() -> None:
    for age in (
        "3 year old",
        "3-year-old",
        "3-year old",
        "three year-old",
        "a two and a half year old",
        "20-30 year old",
    ):
        words = Text(f"This {age} child", TAXONOMY).words
        assert words[-2].lower.endswith("year-old"), age
    assert [word.lower for word in Text("Middle aged, blue eyed", TAXONOMY).words] == ["middle-aged", ",", "blue-eyed"]


def test_plurals_are_made_and_men_are_found_where_no_list_has_them() -> None:
    made = [
        "policeman",
        "baby",
        "wife",
        "monarch",
        "waitress",
        "parent-in-law",
        "member of the clergy",
        "german",
        "grandchild",
    ]
    assert [plural(word) for word in made] == [
        "policemen", "babies", "wives", "monarchs", "waitresses", "parents-in-law", "members of the clergy", "germans",
        "grandchildren",
    ]  # fmt: skip
    assert rewrite("Two oarsmen and a swordswoman wait.", TAXONOMY) == "Two oarspeople and a swordsperson wait."
    for kept in ("A human talisman from a German showroom.", "The two-man tent is up.", "Ask Lindman about ramen."):
        assert rewrite(kept, TAXONOMY) == kept


@pytest.mark.parametrize(
    "unit",
    [
        "the light brown eyes ",
        "the man is thin, ",
        "he is 20, ",
        "man about about 25 years ",
        "a five year old ",
        "of asian, ",
        "has blue eyes and ",
        "in his 20s or ",
        "dog and her baby ",
        "girl (7) ",
        "age: 3\n",
        "a-",
        "is older than ",
        "her eyes, a deep ",
        '"he said ',
    ],
)
def test_long_texts_take_no_square_of_their_length(unit: str) -> None:
    text, began = unit * (40_000 // len(unit)), time.process_time()
    find_cues(rewrite(text, TAXONOMY), TAXONOMY)
    assert time.process_time() - began < 10  # a square takes minutes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        "\U0001f600\U0001f468\u200d\U0001f469",
        "\u4e00\u4e2a\u5973\u4eba",
        "[0.1, 0.2, 0.35, 0.4]",
        "a" * 100_000,
        "he " * 20_000,
        "the man is thin and " * 5_000,
    ],
)
def test_odd_text_is_no_trouble(text: str) -> None:
    assert find_cues(rewrite(text, TAXONOMY), TAXONOMY) == []
