"""What stands around a guard's numbers: cases, the summary and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.guard import PREDICTIONS, GuardConfig, GuardFiles, read_cases, run, summary
from rlhf.config import ModelConfig, RunConfig
from rlhf.data.guard_world import PICTURE_KEYS, GuardSizes, write_guard_world
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError, EndpointError
from rlhf.guard.baselines import BaselineConfig, Kind
from rlhf.guard.guards import GuardDecoding
from rlhf.guard.metrics import Truth, align, balanced_interval, evaluate
from rlhf.guard.policy import build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.report import write_guard_report
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import Verdict
from tests.unit.evaluation.openai_server import ChatServer, chat_server


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "world"
    write_guard_world(folder, 0, GuardSizes(10, 10, 0, 0, 0, 0))
    return folder


def test_guard15_a_bad_row_is_named_once_and_a_broken_image_counts_as_missing(world: Path, tmp_path: Path) -> None:
    rows = json.loads((world / "test.json").read_text())
    rows[0]["rating"], rows[1]["overrides"] = "safe", None
    rows[2] |= {"rating": "?", "overrides": None}
    (tmp_path / "test.json").write_text(json.dumps(rows))
    rejected = RejectedRows()
    files = GuardFiles(
        test=str(tmp_path / "test.json"), image_root=str(world / "images"), taxonomy="tiny", keys=PICTURE_KEYS
    )
    requests, truths = read_cases(files, rejected)
    assert sorted(error.row for error in rejected.errors) == [0, 1, 2]  # type: ignore[type-var]
    assert [one.id for one in requests] == [row["id"] for row in rows[3:]]
    assert [one.id for one in truths] == [row["id"] for row in rows[1:2] + rows[3:]]
    assert align(truths, {}).missing[0] == rows[1]["id"]


def test_guard15_one_taxonomy_has_one_schema_whatever_is_exempt() -> None:
    tiny = taxonomy("tiny")
    policies = [build_policy(tiny), build_policy(tiny, {"O6": "exempt"}), build_policy(tiny, {"O1": "sensitive"})]
    schemas = {GuardDecoding().for_request(GuardRequest("", "", one)).json_schema for one in policies}
    assert len(schemas) == 1
    assert len({one.text for one in policies}) == 3


def test_guard15_the_interval_of_balanced_accuracy_is_around_it_and_narrows() -> None:
    for many in (1, 10):
        low, high = balanced_interval(32 * many, 4 * many, 42 * many, 4 * many) or (1.0, 0.0)
        middle = (32 / 36 + 42 / 46) / 2
        assert 0 <= low < middle < high <= 1
        assert (high - low < 0.05) == (many == 10)
    assert balanced_interval(5, 0, 0, 1) is None


def test_guard15_summary_and_page_show_lenient_and_strict(tmp_path: Path) -> None:
    gun, nothing = "O6: guns and pills", "NA: nothing"
    truths = [Truth("0", "Unsafe", gun), Truth("1", "Safe", gun, "v2"), Truth("2", "Safe", nothing)]
    truths += [Truth("3", "Unsafe", gun), Truth("4", "Safe", nothing)]
    said = {
        "0": Verdict("json", "Unsafe", (gun,), "A <i>gun</i>.", ""),
        "1": Verdict("json", "Safe", (gun,), "A gun.", ""),
        "2": Verdict("json", "Unsafe", (gun,), "A gun.", ""),
        "3": Verdict("invalid", None, (), "", "hm", "not JSON"),
    }
    base: dict[str, Any] = {"label": "tiny", "model": "m", "decoding": "greedy", "engine": "e", "taxonomy": "tiny"}
    base |= {"keys": ["rating"], "rejected": 1, "truncated": 0, "seconds_per_image": 0.5, "repeated": ["2", "4"]}
    base |= {"contradictions": [["0", "2"], ["3", "4"]]}
    said["st<r>anger"] = said["0"]
    results = {**base, **evaluate(align(truths, said))}
    found = summary(results)
    assert (found["rows"], found["invalid"], found["coverage"]) == (5, 1, 0.6)
    assert (found["lenient"]["balanced_accuracy"], found["strict"]["balanced_accuracy"]) == (0.75, 0.4166)
    assert found["lenient"]["policy_exception_rate"] == found["strict"]["policy_exception_rate"] == 1.0
    lines = [
        {
            "id": one.id,
            "image": None,
            "asked": "What <b>is</b> it?",
            "said": "A <i>thing</i>.",
            "overrides": {"O6": "exempt"} if one.augmentation else {},
            "wanted": {"rating": one.rating, "category": one.category},
            "status": said[one.id].status if one.id in said else "missing",
            "rating": said[one.id].rating if one.id in said else None,
            "categories": list(said[one.id].categories) if one.id in said else [],
            "rationale": said[one.id].rationale if one.id in said else "",
            "raw": "",
            "reason": "",
        }
        for one in truths
    ]
    text = write_guard_report(tmp_path, results, lines).read_text()
    for part in (
        "Default policy alone",
        "balanced accuracy",
        "lenient",
        "strict",
        "2 rows have image and policy of an earlier one",
        "<dt>missing predictions</dt><dd>1: 4</dd>",
        "<dt>extra predictions</dt><dd>1: st&lt;r&gt;anger</dd>",
        "at most one is right: 0, 2; 3, 4",
        "O6 exempt",
        "A &lt;i&gt;gun",
        "What &lt;b&gt;is&lt;/b&gt; it? - &#39;A &lt;i&gt;thing",
        "tiny",
    ):
        assert part in text
    assert "<script" not in text


def endpoint_config(folder: Path, world: Path, server: ChatServer, kind: Kind, test: Path | None = None) -> GuardConfig:
    files = {"test": str(test or world / "test.json"), "image_root": str(world / "images"), "taxonomy": "tiny"}
    return GuardConfig(
        run=RunConfig(name=kind, root=str(folder / "runs")),
        guard=GuardFiles(keys=PICTURE_KEYS, **files),
        endpoint=BaselineConfig(kind=kind, base_url=server.url, model="theirs", retries=0, concurrency=1),
    )


@pytest.mark.parametrize(
    ("kind", "path", "unsafe", "category"),
    [
        (
            "moderation",
            "moderations",
            {"results": [{"flagged": True, "category_scores": {"violence": 0.9}}]},
            "O2: knives",
        ),
        ("llama_guard", "chat/completions", "unsafe\nS9", "O6: guns and pills"),
        (
            "guard",
            "chat/completions",
            '{"category": "O5: money, cards, laptops", "rating": "Unsafe", "rationale": "x"}',
            "O5: money, cards, laptops",
        ),
    ],
)
def test_guard16_another_guard_behind_an_endpoint_is_asked_about_a_test_set(
    world: Path, tmp_path: Path, kind: Kind, path: str, unsafe: Any, category: str
) -> None:
    """It says Unsafe to everything but its second question, to which it stays silent: that one is invalid."""
    seen: list[int] = []

    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        seen.append(1)
        return (503, {}) if len(seen) == 2 else (200, unsafe)

    rows = json.loads((world / "test.json").read_text())
    with chat_server(answer, f"/v1/{path}") as server:
        config = endpoint_config(tmp_path, world, server, kind)
        found = run(config)
        assert len(seen) == len(rows)
        assert run(config) == found
        assert len(seen) == len(rows)
    numbers = found["all"]
    assert (numbers["rows"], numbers["json"], numbers["invalid"]) == (len(rows), len(rows) - 1, 1)
    read = [row for place, row in enumerate(rows) if place != 1]
    wanted = sum(row["rating"] == "Unsafe" for row in read)
    assert (numbers["lenient"]["tp"], numbers["lenient"]["fp"]) == (wanted, len(read) - wanted)
    assert found["category_accuracy"]["lenient"] == round(sum(r["category"] == category for r in read) / len(read), 4)
    assert found["model"] == f"{kind}: theirs at 127.0.0.1"
    folder = tmp_path / "runs" / kind
    assert (folder / PREDICTIONS).read_text().count("\n") == len(rows)
    assert "503" in (folder / "evaluation" / "guard.jsonl").read_text().split("\n")[1]
    assert "theirs at 127.0.0.1" in (folder / "report.html").read_text()


def test_guard16_an_endpoint_that_refuses_stops_the_run_and_is_not_asked_again_what_it_said(
    world: Path, tmp_path: Path
) -> None:
    replies: list[tuple[int, Any]] = [*[(200, "safe")] * 9, (401, "no"), *[(200, "safe")] * 99]
    with chat_server(lambda _: replies.pop(0)) as server:
        config = endpoint_config(tmp_path, world, server, "llama_guard")
        with pytest.raises(EndpointError, match="401"):
            run(config)
        found = run(config)
        assert len(server.requests) == found["rows"] + 1  # the refused one
    assert found["all"]["lenient"]["recall"] == 0.0


def test_guard15_a_row_without_id_is_a_named_row_and_no_traceback(
    world: Path, tmp_path: Path, tiny: ModelConfig
) -> None:
    """It is found before any engine starts; where the share allows it the others are asked."""
    pytest.importorskip("ray")
    rows = json.loads((world / "test.json").read_text())
    del rows[1]["id"]
    rows[2]["id"] = None
    (tmp_path / "test.json").write_text(json.dumps(rows))
    with chat_server(lambda _: (200, "safe")) as server:
        config = endpoint_config(tmp_path, world, server, "llama_guard", tmp_path / "test.json")
        with pytest.raises(DataError, match="2 of .* rows were rejected.*row 1: key 'id' is missing"):
            run(config)
        assert run(config.model_copy(update={"max_rejected_share": 0.5, "run": config.run.model_copy(
            update={"name": "lax"})}))["rows"] == len(rows) - 2  # fmt: skip
    rooms = {"max_length": 1024}
    local = config.model_copy(update={
        "endpoint": None,
        "model": tiny.model_copy(update=rooms),
        "rollout": config.rollout.model_copy(update=rooms),
        "sampling": config.sampling.model_copy(update={"max_new_tokens": 8}),
        "run": config.run.model_copy(update={"name": "local"}),
    })  # fmt: skip
    with pytest.raises(DataError, match="2 of .* rows were rejected.*row 1: key 'id' is missing"):
        run(local)


def test_guard15_a_benchmark_is_about_one_guard(world: Path, tmp_path: Path) -> None:
    files = GuardFiles(test="t", image_root="i")
    theirs = BaselineConfig(base_url="http://x/v1", model="m")
    for more in ({}, {"model": ModelConfig(path="m"), "endpoint": theirs}):
        with pytest.raises(ConfigError, match="either model or endpoint"):
            GuardConfig(run=RunConfig(name="x"), guard=files, **more)  # type: ignore[arg-type]
