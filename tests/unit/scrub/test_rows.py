"""Whole conversations: which turns change, what must stay, and what refuses a row."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.errors import RowError
from rlhf.scrub.rows import REFUSAL, LeakError, scrub_row
from rlhf.scrub.taxonomy import taxonomy

TAXONOMY = taxonomy()


def row(*turns: str, **more: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    return {
        "id": 7,
        "image": "coco/1.jpg",
        "conversations": [{"from": speakers[place % 2], "value": turn} for place, turn in enumerate(turns)],
        **more,
    }


def texts(found: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in found["conversations"]]


def test_safe02_an_asked_attribute_keeps_its_question_and_gets_the_one_refusal() -> None:
    done = scrub_row(row("<image>\nHow old is the woman?", "She is about 40.", "And her race?", "Asian."), TAXONOMY)
    assert texts(done.row) == ["<image>\nHow old is the woman?", REFUSAL, "And her race?", REFUSAL]
    assert [(one.turn, one.attribute, one.rule) for one in done.changes] == [(1, "age", "asked"), (3, "race", "asked")]


def test_safe03_what_is_told_in_passing_is_rewritten_on_both_sides() -> None:
    done = scrub_row(row("What is the man holding?\n<image>", "He is holding his hat."), TAXONOMY)
    assert texts(done.row) == ["What is the person holding?\n<image>", "They are holding their hat."]
    assert {one.speaker for one in done.changes} == {"human", "gpt"}


def test_safe01_safe07_ids_image_turns_tags_and_keys_without_text_stay() -> None:
    before = row("<image>\nWho is it?", "A man.", "Where?", "At 5 Old Street.", model="gpt", markdown=None, width=336)
    after = scrub_row(before, TAXONOMY).row
    assert {key: value for key, value in after.items() if key != "conversations"} == {
        key: value for key, value in before.items() if key != "conversations"
    }
    assert [turn["from"] for turn in after["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert texts(after) == ["<image>\nWho is it?", "A person.", "Where?", "At 5 Old Street."]


def test_safe01_text_under_other_keys_is_left_out_and_named() -> None:
    before = row("<image>\nWho is it?", "A man.", caption="A man smiles at his wife.", boxes=[["a girl", 0.5]])
    before["conversations"][1] |= {"markdown": "A **man**.", "text": "A man."}
    done = scrub_row(before, TAXONOMY)
    assert set(done.row) == {"id", "image", "conversations"}
    assert [set(turn) for turn in done.row["conversations"]] == [{"from", "value"}] * 2
    assert done.left_out == ["caption", "boxes", "conversations.markdown", "conversations.text"]


def test_safe05_a_question_that_asks_keeps_its_words_and_the_audit_is_told() -> None:
    done = scrub_row(row("How old is the black man?", "He is 40.", "And where is the girl?", "At sea."), TAXONOMY)
    assert texts(done.row)[0] == "How old is the black man?"
    assert done.kept == {0: ["age", "gender", "race"]}
    assert "girl" not in texts(done.row)[2]


def test_safe06_a_row_without_an_image_is_scrubbed_too() -> None:
    plain = row("Tell a story.", "A girl finds a key.")
    del plain["image"]
    assert texts(scrub_row(plain, TAXONOMY).row)[1] == "A person finds a key."


def test_an_answer_of_which_nothing_is_left_is_the_refusal() -> None:
    assert texts(scrub_row(row("Describe the person.", "She is young."), TAXONOMY).row)[1] == REFUSAL


def test_a_row_of_which_nothing_tells_is_the_same_and_has_no_lineage() -> None:
    before = row("<image>\nWhat is on the plate?", "Two eggs [0.1, 0.2, 0.3, 0.4] and a slice of bread.")
    done = scrub_row(before, TAXONOMY)
    assert done.row == before
    assert done.changes == []


def test_coreference_over_turns() -> None:
    animal = scrub_row(row("<image>\nWhat does the dog do?", "It runs.", "Is he wet?", "Yes, he is wet."), TAXONOMY)
    assert texts(animal.row)[3] == "Yes, he is wet."
    person = scrub_row(row("<image>\nWhat does the man do?", "He runs.", "Is he wet?", "Yes, he is wet."), TAXONOMY)
    assert texts(person.row)[2:] == ["Are they wet?", "Yes, they are wet."]


def test_lineage_has_offsets_in_the_original_and_hashes_of_both_texts() -> None:
    before = row("<image>\nWho?", "Here is a tall woman.")
    (change,) = scrub_row(before, TAXONOMY).changes
    assert before["conversations"][1]["value"][change.start : change.end] == "woman"
    assert change.before != change.after
    assert scrub_row(before, TAXONOMY).changes == [change]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"id": 1}, "'conversations' must be a list"),
        ({"id": 1, "conversations": []}, "not empty"),
        (row("<image>\nA", "", "B", "C"), "turn 1 has no text"),
        (row("A", "look <image>"), "turn 1 is an answer"),
        ({"id": 1, "conversations": [{"from": "system", "value": "x"}]}, "from 'human' or 'gpt'"),
        (
            {"id": 1, "conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "y"}]},
            "both from 'human'",
        ),
    ],
)
def test_malformed_rows_are_refused_with_the_turn(bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        scrub_row(bad, TAXONOMY)


def test_a_question_of_which_nothing_is_left_refuses_its_row() -> None:
    with pytest.raises(LeakError, match="nothing is left of the question"):
        scrub_row(row("<image>\nShe is young.", "Yes."), TAXONOMY)
