"""What a rewriting may not lose or invent, on pairs of texts; the rules' own results raise no alarm."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rlhf.scrub.meaning import lost_meaning
from rlhf.scrub.rewrite import find_cues, rewrite
from rlhf.scrub.taxonomy import taxonomy

GOLDEN = Path(__file__).parents[2] / "golden" / "scrub" / "sentences.jsonl"
TAXONOMY = taxonomy()


def problem(before: str, after: str) -> str | None:
    return lost_meaning(before, after, find_cues(before, TAXONOMY), TAXONOMY)


@pytest.mark.parametrize(("before", "after", "what"), [
    ("<image>\na man", "a person", "image tag"),
    ("a man", "<image> a person", "image tag"),
    ("a man at [0.1, 0.2, 0.3, 0.4]", "a person at [0.1, 0.3, 0.2, 0.4]", "box coordinates"),
    ("a man at (12, 40)", "a person at (12, 41)", "box coordinates"),
    ("a man with 12 dogs", "a person with dogs", "numbers were lost: 12"),
    ("a man with dogs", "a person with 12 dogs", "numbers were invented: 12"),
    ("two cups and a man", "three cups and a person", "counts were changed: three, two"),
    ("two men run", "people run", "counted as 0, not 2"),
    ("three women run", "four people run", "counted as 4, not 3"),
    ("a man with a red hat", "a person with a hat", "colours were lost: red"),
    ("a man with a red hat", "a person with a blue hat", "colours were lost: red"),
    ("a man holds a cup", "a person holds a red cup", "colours were invented: red"),
    ("a man and a dog near the lake", "a person near the lake", "objects were lost: dog"),
    ("She drinks from a mug.", "They drink from a vessel.", "objects were lost: mug"),
    ("a man holds a cup", "a person holds a cup and a knife", "objects were invented: knife"),
    ("A bottle on a table.", "A person on a table.", "objects were lost: bottle"),
    ("A codger near a lamppost.", "A person.", "objects were lost"),
    ("The man is older than she is.", "Than they are.", "a sentence was broken: than"),
    ("The man is old and sits.", "The person is sits.", "a sentence was broken: is sits"),
    ("The men have dark skin and wear hats.", "The people have wear hats.", "a sentence was broken: have wear"),
    ("The girl is 6 years old.", "The person is.", "a sentence was broken"),
    ("It is a man between 20 and 30.", "It is a person between.", "a sentence was broken: between"),
    ("The colour of her eyes is blue.", "The colour of", "a sentence was broken: of"),
    ("He is 80 kg heavy and is tall.", "Is tall.", "a sentence was broken"),
    ("A woman (in her forties) sits.", "A person () sits.", "a sentence was broken: ()"),
    ("This 3 year old girl sits.", "This 3 year person sits.", "a sentence was broken: 3 year person"),
    ("The man is a 30 year old.", "The person is a.", "a sentence was broken: a"),
    ("He wears a hat.", "Here is the text: They wear a hat.", "objects were invented: text"),
])  # fmt: skip
def test_safe03_what_was_lost_or_invented_is_named(before: str, after: str, what: str) -> None:
    assert what in (problem(before, after) or "")


@pytest.mark.parametrize(("before", "after"), [
    ("She smiles and waves at 3 red cars.", "They smile and wave at 3 red cars."),
    ("two men and a woman sit", "three people sit"),
    ("a man and a woman sit", "two people sit"),
    ("The man is 40 years old and holds two cups.", "The person holds two cups."),
    ("A woman with blue eyes wears a blue dress.", "A person wears a blue dress."),
    ("A fireman's helmet [3, 4, 5, 6]", "A firefighter's helmet [3, 4, 5, 6]"),
    ("A codger sits by a lamppost.", "A person sits by a lamppost."),
    ("He doesn't sit and she wasn't here.", "They don't sit and they weren't here."),
    ("Has he seen what she is looking at?", "Have they seen what they are looking at?"),
    ("The boy (7) and the girl (9) play.", "Two people play."),
    ("Two 4-year-olds sit.", "Two people sit."),
    ("A heavy man lifts a heavy box.", "Someone lifts a heavy box."),
])  # fmt: skip
def test_safe03_a_neutral_text_raises_no_alarm(before: str, after: str) -> None:
    assert problem(before, after) is None


def test_safe03_the_rules_lose_nothing_on_the_labelled_set() -> None:
    rows = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    told = [row["text"] for row in rows if row["kind"] != "question" and row["tells"]]
    assert len(told) > 150
    assert {text: found for text in told if (found := problem(text, rewrite(text, TAXONOMY)))} == {}


def test_long_text_with_a_cue_at_every_word_takes_no_square_of_its_length() -> None:
    text = "he " * 30_000
    cues, began = find_cues(text, TAXONOMY), time.process_time()
    assert lost_meaning(text, "they " * 30_000, cues, TAXONOMY) is None
    assert time.process_time() - began < 20  # a square takes minutes
