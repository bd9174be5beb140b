"""The clean filter without a cluster: every sample once, reasons, resuming, and the same files when run again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.clean_training_data import CleanConfig, run, unit_folder
from rlhf.batch import Prompt
from rlhf.config import load
from rlhf.data.json_stream import plan_spans
from rlhf.errors import CheckpointError, ConfigError, DataError, JudgeError
from rlhf.evaluation.asking import PATIENCE
from rlhf.evaluation.clean_filter import CleanerConfig, PhraseJudge, UnitScorer, score_unit, write_clean
from rlhf.evaluation.judges import Judgement
from rlhf.ledger import Ledger
from tests.unit.evaluation.openai_server import ChatServer, chat_server, text_of
from tests.vlguard_files import put


def talk(identifier: Any, *texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)]
    return {"id": identifier, **more, "conversations": turns}


ROWS = [
    talk("fine", "<image>\nWhat is it?", "A cat on a mat.", image="a.jpg"),
    talk(7, "Hello", "Hi.", "How do I make a bomb?", "Take a bottle."),
    talk("no", "How do I make a bomb?", "I'm sorry, I can't help with that."),
    talk("torn", "What is it?"),
    talk("late", "And?", "Nobody should commit suicide over it."),
    {"id": "odd"},
    talk("near", "Is bombast a word?", "Yes, it is."),
]


class Counting:
    """A judge that finds rows with "bad" unsafe and those with "?!" unclear, and counts what it is asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def judge(self, prompt: Prompt, response: str) -> Judgement:
        self.asked.append(prompt.id)
        verdict = "unsafe" if "bad" in response else "invalid" if "?!" in response else "safe"
        return Judgement(verdict, f"because of {response}")  # type: ignore[arg-type]

    def compare(self, prompt: Prompt, response: str, other: str) -> Judgement:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("How do I make a bomb?", "Mix it.", "unsafe"),
        ("HOW DO I MAKE A BOMB?", "Mix it.", "unsafe"),
        ("How do I make a bomb?", "I'm sorry, I can't help with that.", "safe"),
        ("What is a pornographer?", "A maker of films.", "safe"),  # whole words only
        ("What is it?", "A bomb shelter.", "safe"),
    ],
)
def test_vlguard08_the_rule_model_reads_question_and_answer(question: str, answer: str, verdict: str) -> None:
    assert PhraseJudge().judge(Prompt("a", question), answer).verdict == verdict


def test_vlguard08_unsafe_samples_are_removed_with_their_reasons(tmp_path: Path) -> None:
    source = put(tmp_path / "train.json", ROWS)
    (span,) = plan_spans(source, 100)
    with Ledger(tmp_path / "u", {"judge": "words"}) as ledger:
        done = score_unit(source, span, PhraseJudge(), ledger)
    assert [(one.row, one.id, one.reason) for one in done.removed] == [
        (1, "7", 'weapons: "make a bomb"'), (4, "late", 'self-harm: "commit suicide"')
    ]  # fmt: skip
    assert [(one.row, one.id) for one in done.unclear] == [(3, "torn"), (5, "odd")]
    assert write_clean(source, [span], done.removed, tmp_path / "out" / "clean.json") == 5
    assert json.loads((tmp_path / "out" / "clean.json").read_text()) == [
        row for place, row in enumerate(ROWS) if place not in (1, 4)
    ]
    lines = [json.loads(line) for line in (tmp_path / "out" / "clean.removed.jsonl").read_text().splitlines()]
    assert lines == [asdict(one) for one in done.removed]


def test_vlguard08_every_turn_is_scored_once_and_a_finished_unit_not_again(tmp_path: Path) -> None:
    rows = [talk(n, "q", f"answer {n}", "more", "bad" if n == 3 else "?!" if n == 4 else "ok") for n in range(6)]
    source, judge = put(tmp_path / "train.json", rows), Counting()
    spans = plan_spans(source, 4)
    assert [span.rows for span in spans] == [4, 2]
    found = []
    for _ in range(2):
        for number, span in enumerate(spans):
            with Ledger(tmp_path / str(number), {"judge": judge.name}) as ledger:
                found.append(score_unit(source, span, judge, ledger))
    assert sorted(judge.asked) == sorted(f"{row}:{turn}" for row in range(6) for turn in range(2))
    assert found[:2] == found[2:]
    assert [(one.row, one.reason) for one in found[0].removed] == [(3, "because of bad")]
    assert [(one.row, one.reason) for one in found[1].unclear] == [(4, "the judge is unclear: because of ?!")]


def asking(url: str, kind: str = "openai", image_root: str | None = None, **more: Any) -> CleanerConfig:
    judge = {"kind": kind, "base_url": url, "model": "guard", "retries": 0, "concurrency": 1, **more}
    return CleanerConfig.model_validate({"kind": "openai", "judge": judge, "image_root": image_root})


def in_this_process(
    worker: type[UnitScorer], arguments: tuple[Any, ...], units: list[dict[str, Any]], workers: int
) -> None:
    """What a cluster does with units, without one."""
    scorer = worker(*arguments)
    for unit in units:
        scorer(unit)


def guard(request: dict[str, Any]) -> tuple[int, str]:
    return 200, "unsafe\nS2" if "Question 3?" in text_of(request) else "safe"


def test_vlguard08_a_dead_endpoint_keeps_what_was_judged(tmp_path: Path) -> None:
    source = put(tmp_path / "train.json", [talk(n, f"Question {n}?", f"Answer {n}.") for n in range(60)])
    spans, folder = plan_spans(source, 15), tmp_path / "units"
    answered = 0

    def dies(request: dict[str, Any]) -> tuple[int, str]:
        nonlocal answered
        answered += 1
        return guard(request) if answered <= 8 else (500, "down")

    with chat_server(dies) as server:
        scorer = UnitScorer(source, asking(server.url), folder)
        scorer(asdict(spans[0]))
        with pytest.raises(JudgeError, match=f"the last {PATIENCE} of .* questions have no answer"):
            scorer(asdict(spans[1]))  # as many in a row over both units
        assert len(server.requests) in (8 + PATIENCE, 8 + PATIENCE + 1)
    done = scorer.finished(spans)
    assert [one.row for one in done[spans[0]].silent] == list(range(8, 15))
    with chat_server(guard) as server:
        scorer = UnitScorer(source, asking(server.url), folder)
        assert [scorer(asdict(span)) for span in spans] == [{"rows": 15, "removed": n} for n in (1, 0, 0, 0)]
        assert len(server.requests) == 60 - 8
        assert scorer(asdict(spans[0])) == {"rows": 15, "removed": 1}
        assert len(server.requests) == 60 - 8
    done = scorer.finished(spans)
    assert [one.row for one in done[spans[0]].removed] == [3]
    assert not any(unit.silent for unit in done.values())
    with pytest.raises(CheckpointError, match="holds results of something else"):
        UnitScorer(source, CleanerConfig(), folder).ledger(spans[0])


@pytest.mark.parametrize("status", [400, 413, 500])
def test_vlguard08_one_row_that_no_judge_can_take_is_unclear_and_stops_nothing(
    tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is a unit of its own; the next run asks about it, and about nothing else."""
    monkeypatch.setattr("jobs.clean_training_data.run_units", in_this_process)
    source = put(tmp_path / "train.json", [talk(n, f"Question {n}?", f"Answer {n}.") for n in range(5)])
    files = [f"source={source}", f"output={tmp_path}/clean.json", f"scored={tmp_path}/scored", "unit_rows=4"]

    def too_long(request: dict[str, Any]) -> tuple[int, str]:
        return (status, "too long") if "Question 4?" in text_of(request) else guard(request)

    def cleaned(server: ChatServer) -> dict[str, Any]:
        return run(load(CleanConfig, None, [*files, f"cleaner={asking(server.url).model_dump_json()}"]))

    with chat_server(too_long) as server:
        first = cleaned(server)
        assert len(server.requests) == 5
    assert (first["kept"], first["removed"], first["silent"]) == (4, 1, 1)
    assert [(one["row"], one["reason"].partition(":")[0]) for one in first["unclear"]] == [(4, "the judge is silent")]
    with chat_server(guard) as server:
        second = cleaned(server)
        assert len(server.requests) == 1
    assert (second["kept"], second["silent"], second["unclear"]) == (4, 0, [])
    files[2] = f"scored={tmp_path}/anew"
    with chat_server(lambda request: (503, "down")) as server, pytest.raises(JudgeError, match="on none of 5 rows"):
        cleaned(server)


def test_vlguard08_a_llama_guard_is_asked_about_every_turn_in_its_own_form(tmp_path: Path) -> None:
    source = put(tmp_path / "train.json", [talk("a", "<image>\nHow?", "So.", "And?", "Thus.", image="a.png")])
    (span,) = plan_spans(source, 100)
    with chat_server(lambda request: (200, "safe")) as server:
        UnitScorer(source, asking(server.url, "llama_guard"), tmp_path / "units")(asdict(span))
    turns = [[(one["role"], one["content"]) for one in request["messages"]] for request in server.requests]
    assert turns == [[("user", "How?"), ("assistant", "So.")], [("user", "And?"), ("assistant", "Thus.")]]


def test_vlguard08_our_guard_filters_rows_with_images_and_is_unclear_on_the_others(
    tmp_path: Path, pictures: list[str]
) -> None:
    name, text = Path(pictures[0]).name, "What is it?"
    rows = [talk("a", text, "A bottle.", image=name), talk("b", text, "A cat.", image=name), talk("c", "Hi.", "Hello.")]
    rows.append(talk("d", text, "A cat.", image="missing.png"))
    source = put(tmp_path / "train.json", rows)
    (span,) = plan_spans(source, 100)

    def rated(request: dict[str, Any]) -> tuple[int, str]:
        bad = "A bottle." in request["messages"][0]["content"][1]["text"]
        return 200, json.dumps({"rating": "Unsafe" if bad else "Safe", "category": "x", "rationale": "x"})

    with chat_server(rated) as server:
        folder, policy = str(Path(pictures[0]).parent), {"taxonomy": "tiny_answers"}
        config = asking(server.url, "guard", folder, send_images=True, policy=policy)
        scorer = UnitScorer(source, config, tmp_path / "units")
        scorer(asdict(span))
    found = scorer.finished([span])[span]
    assert [one.row for one in found.removed] == [0]
    assert [(one.row, one.reason) for one in found.unclear] == [
        (2, "the judge is unclear: a guard judges images, and this prompt has none")
    ]
    assert [one.row for one in found.silent] == [3]


def test_vlguard08_the_job_writes_the_same_files_from_finished_units(tmp_path: Path) -> None:
    """All units are finished beforehand, so the job starts no cluster."""
    source = put(tmp_path / "train.json", ROWS)
    files = [f"source={source}", f"output={tmp_path}/clean.json", f"scored={tmp_path}/scored", "unit_rows=3"]
    config = load(CleanConfig, None, files)
    scorer = UnitScorer(source, config.cleaner, unit_folder(config))
    for span in plan_spans(source, 3):
        scorer(asdict(span))
    first = run(config)
    written = (tmp_path / "clean.json").read_bytes()
    assert (first["rows"], first["kept"], first["removed"]) == (7, 5, 2)
    assert [one["id"] for one in first["unclear"]] == ["torn", "odd"]
    assert run(config) == first
    assert (tmp_path / "clean.json").read_bytes() == written
    assert json.loads((tmp_path / "clean.manifest.json").read_text()) == first


@pytest.mark.parametrize("content", ["[a, b]", "weapons: bomb", "weapons: []", "{", "weapons: [1]"])
def test_vlguard08_a_bad_list_of_phrases_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(DataError, match=r"p\.yaml"):
        PhraseJudge(tmp_path / "p.yaml")


@pytest.mark.parametrize(("section", "reason"), [
    ("{}", "kind openai needs a judge of kind llama_guard, guard or openai"),
    ("{judge: {kind: keywords}}", "kind openai needs a judge of kind llama_guard, guard or openai"),
    ("{judge: {kind: openai, base_url: x, model: y, send_images: true}}", "image_root: the judge is sent images"),
])  # fmt: skip
def test_vlguard08_a_judge_behind_an_endpoint_must_be_given(section: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CleanerConfig.model_validate({"kind": "openai", **yaml.safe_load(section)})
