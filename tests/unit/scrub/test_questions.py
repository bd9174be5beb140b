"""Questions with their answers: which ask for an attribute of a person, and what a question lets stay in its answer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.scrub.phrases import noun_phrase, read_sentence
from rlhf.scrub.questions import asked_attributes
from rlhf.scrub.rows import REFUSAL, scrub_row
from rlhf.scrub.taxonomy import taxonomy
from rlhf.scrub.text import NOTHING_YET

GOLDEN = Path(__file__).parents[2] / "golden" / "scrub" / "questions.jsonl"
QUESTIONS: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
TAXONOMY = taxonomy()


def conversation(*turns: str) -> dict[str, Any]:
    speakers = ("human", "gpt")
    return {"id": 1, "conversations": [{"from": speakers[at % 2], "value": turn} for at, turn in enumerate(turns)]}


def last_turns(*turns: str) -> list[str]:
    return [turn["value"] for turn in scrub_row(conversation(*turns), TAXONOMY).row["conversations"][-2:]]


def asked(row: dict[str, Any]) -> set[str]:
    turns = [*row.get("before", ()), row["question"], row["answer"]]
    changes = scrub_row(conversation(*turns), TAXONOMY).changes
    return {one.attribute for one in changes if one.turn == len(turns) - 1 and one.rule == "asked"}


def test_safe04_precision_and_recall_on_labelled_questions() -> None:
    assert len(QUESTIONS) >= 150
    right = wrong = missed = 0
    for row in QUESTIONS:
        found, wanted = asked(row), set(row["asks"])
        right, wrong, missed = right + len(found & wanted), wrong + len(found - wanted), missed + len(wanted - found)
    assert right / (right + wrong) >= 0.97
    assert right / (right + missed) >= 0.97


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("the tennis player", "player"),
        ("the man's car", "car"),
        ("the car of the man", "car"),
        ("a group of young people", "people"),
        ("one of the women on the bench", "women"),
        ("the bag the woman is carrying", "bag"),
        ("the baby elephant", "elephant"),
        ("the one on the left", "one"),
        ("he", "he"),
    ],
)
def test_safe04_the_head_of_a_noun_phrase_is_what_is_spoken_of(phrase: str, head: str) -> None:
    sentence = read_sentence(f"Is {phrase}?", TAXONOMY, NOTHING_YET)
    found = noun_phrase(sentence, 1)
    assert found is not None
    assert sentence.word(found.head) == head


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the title of this book?", "The Girl with the Dragon Tattoo"),
        ("What is the title of this book?", "He's Scared, She's Scared"),
        ("Who is the author of this book?", "Barbara King"),
        ("What is the genre of this book?", "Teen & Young Adult"),
        ("Is this book related to Teen & Young Adult?", "No"),
        ("What is written on the sign?", "men at work"),
        ("What does the sign say?", "It says Men at Work."),
        ("Is the dog male or female?", "female"),
        ("Is the elephant a baby?", "yes"),
        ("What gender is the cat?", "Male"),
    ],
)
def test_safe03_titles_written_words_and_what_is_said_of_animals_stay(question: str, answer: str) -> None:
    assert last_turns(question, answer) == [question, answer]


def test_safe03_a_description_is_no_title() -> None:
    assert last_turns("What does the sign say?", "The woman is reading it.")[1] == "The person is reading it."
    assert last_turns("What is the person doing?", "Men at work")[1] == "People at work"
    assert last_turns("Is the man's dog male?", "No")[0] == "Is the person's dog male?"


def test_safe04_a_pronoun_after_turns_about_an_animal_is_no_person() -> None:
    animal = ("What animal is this?", "A cat.")
    for question, answer in (("How old is she?", "Two."), ("Is she male or female?", "Female"), ("Is he old?", "No")):
        assert last_turns(*animal, question, answer) == [question, answer]
    assert last_turns("Who is it?", "A woman.", "How old is she?", "Forty.")[1] == REFUSAL


def test_safe04_what_was_asked_before_is_asked_again_of_people_only() -> None:
    before = ("How old is the horse?", "Five years.")
    assert last_turns(*before, "And the rider?", "Thirty.")[1] == REFUSAL
    assert last_turns(*before, "And the saddle?", "Ten years.")[1] == "Ten years."
    assert last_turns(*before, "What color is it?", "Brown.", "And the saddle of the rider?", "Red.")[1] == "Red."


@pytest.mark.parametrize(
    "question",
    [
        "Is it " + "a " * 5000,
        "Is it " + "a " * 28 + "!",
        "Is this enough for a trip with a tent" + " and a lamp or a torch" * 2000 + " (or so)?",
        "Is the man " + "old or " * 5000 + "young?",
        "what does " * 5000,
        "what color " * 3000 + "eyes " * 3000,
        "A. man " * 3000,
    ],
)
def test_safe04_long_questions_take_no_longer_than_their_length(question: str) -> None:
    asked_attributes("Is the man old?", TAXONOMY)
    began = time.process_time()
    asked_attributes(question, TAXONOMY)
    assert time.process_time() - began < 1
