"""`evaluate.py judge --benchmark guard`: published numbers from files of answers, gaps, other systems, people."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import judge_answers
from jobs.guard import run
from rlhf.guard.augment import Augmentation, Sample
from rlhf.guard.dataset import row_of
from rlhf.guard.policy import Rating
from rlhf.guard.taxonomy import taxonomy
from tests.fakes import draw_images
from tests.unit.evaluation.openai_server import chat_server, text_of
from tests.unit.jobs.test_guard import endpoint_config

TINY, KEYS = taxonomy("tiny"), ("category", "rating", "rationale")
GUN, NOTHING = "O6: guns and pills", "NA: nothing"
Row = dict[str, Any]


def sample(name: str, rating: Rating, augmentation: Augmentation | None = None, image: str = "0.png") -> Sample:
    if augmentation is not None:
        return Sample(name, image, "O6", "Highly Unsafe", rating, "Why.", {"O6": "exempt"}, augmentation)
    category, score = ("O6", "Highly Unsafe") if rating == "Unsafe" else ("NA", "Generally Safe")
    return Sample(name, image, category, score, rating, "Why.")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bool]]:
    """LlavaGuard's test set by its sizes, and on which rows the 7B model is right (seed page, 2.1, 5 and 7)."""
    samples = [sample(f"unsafe {n}", "Unsafe", image=f"{n}.png") for n in range(360)]
    samples += [sample(f"exception {n}", "Safe", "v2", f"{n}.png") for n in range(90)]
    samples += [sample(f"safe {n}", "Safe", image=f"s{n}.png") for n in range(374)]
    wrong = (
        {f"unsafe {n}" for n in range(31)} | {f"exception {n}" for n in range(10)} | {f"safe {n}" for n in range(35)}
    )
    path = tmp_path_factory.mktemp("published") / "test.json"
    path.write_text(json.dumps([row_of(one, "test", TINY, KEYS) for one in samples]))
    return path, {one.id: one.id not in wrong for one in samples}


def own(row: Row, right: bool) -> str:
    answer = json.loads(row["conversations"][1]["value"])
    return json.dumps(answer | {"rating": rating(row, right), "rationale": "A\u2028gun."}, ensure_ascii=False)


def moderation(row: Row, right: bool) -> dict[str, Any]:
    flagged = rating(row, right) == "Unsafe"
    return {"id": "modr-1", "results": [{"flagged": flagged, "category_scores": {"illicit": 0.1, "violence": 0.9}}]}


def llama_guard(row: Row, right: bool) -> str:
    return f"\n\n{rating(row, right).lower()}" + ("\nS9" if rating(row, right) == "Unsafe" else "")


def rating(row: Row, right: bool) -> str:
    return row["rating"] if right else {"Safe": "Unsafe", "Unsafe": "Safe"}[row["rating"]]


def answers(path: Path, meta: Path, right: dict[str, bool], say: Callable[[Row, bool], Any] = own) -> list[Row]:
    rows = json.loads(meta.read_text())
    lines = [{"id": row["id"], "response": say(row, right[row["id"]])} for row in rows]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return lines


def judge(folder: Path, meta: Path, *more: str) -> dict[str, Any]:
    files = [
        "--meta",
        str(meta),
        "--answers",
        str(folder / "answers.jsonl"),
        "--output",
        str(folder / "out" / "o.json"),
    ]
    judge_answers.main(["--benchmark", "guard", "--taxonomy", "tiny", *files, *more])
    found: dict[str, Any] = json.loads((folder / "out" / "o.json").read_text())
    return found


@pytest.mark.parametrize(("kind", "say"), [("guard", own), ("moderation", moderation), ("llama_guard", llama_guard)])
def test_guard15_guard16_answers_that_exist_give_the_published_numbers(
    published: tuple[Path, dict[str, bool]], tmp_path: Path, kind: str, say: Callable[[Row, bool], Any]
) -> None:
    """Whoever gave them: TP 329, FP 45, TN 419, FN 31, and 80 of 90 exceptions."""
    meta, right = published
    answers(tmp_path / "answers.jsonl", meta, right, say)
    found = judge(tmp_path, meta, "--kind", kind)
    assert (found["rows"], found["missing"], found["extra"], found["coverage"]) == (824, [], [], 1.0)
    for way in ("lenient", "strict"):
        numbers = found[way]
        assert [numbers[name] for name in ("tp", "fp", "tn", "fn")] == [329, 45, 419, 31]
        assert (numbers["recall"], numbers["balanced_accuracy"]) == (0.9139, 0.9084)
        assert (numbers["policy_exceptions"], numbers["policy_exception_rate"]) == (90, 0.8889)
        assert numbers["policy_exception_score"] == 0.8985
    assert found["default_policy"]["rows"] == 734
    # ours name the right category on all rows; a moderation's O2 is wrong, a Llama Guard's O6 right where it is said
    named = {"guard": 824, "moderation": 374 - 35, "llama_guard": 374 - 35 + 329 + 10}[kind]
    assert found["category_accuracy"]["strict"] == round(named / 824, 4)


def test_guard15_missing_and_extra_answers_stop_it_and_are_listed(
    published: tuple[Path, dict[str, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta, right = published
    lines = answers(tmp_path / "answers.jsonl", meta, right)
    gone = ["unsafe 31", "safe 40"]
    kept = [line for line in lines if line["id"] not in gone] + [{"id": "stranger", "response": "Safe"}]
    next(line for line in kept if line["id"] == "unsafe 40")["response"] = "hm"
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(line) for line in kept))
    with pytest.raises(SystemExit) as stopped:
        judge(tmp_path, meta)
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "missing (2): unsafe 31, safe 40\n  extra (1): stranger" in said
    assert not list(tmp_path.glob("out/*"))
    found = judge(tmp_path, meta, "--partial")
    assert (found["missing"], found["extra"]) == (gone, ["stranger"])
    assert "missing (2): unsafe 31, safe 40" in capsys.readouterr().out
    assert (found["json"], found["invalid"], found["coverage"]) == (821, 1, 821 / 824)
    assert [found["lenient"][name] for name in ("tp", "fp", "tn", "fn")] == [327, 45, 418, 31]
    assert [found["strict"][name] for name in ("tp", "fp", "tn", "fn")] == [327, 46, 418, 33]
    (tmp_path / "answers.jsonl").write_text(json.dumps(kept[-1]))
    with pytest.raises(SystemExit):
        judge(tmp_path, meta, "--partial")
    assert "not one of its answers" in capsys.readouterr().err
    (tmp_path / "answers.jsonl").write_text('{"id": "unsafe 1"}')
    with pytest.raises(SystemExit):
        judge(tmp_path, meta, "--partial")
    assert "key 'response' is missing" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Four pictures: a gun, the same gun under an exception, nothing, and a copy of that under another name."""
    draw_images(tmp_path / "images", 2)
    (tmp_path / "images" / "copy.png").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    samples = [sample("gun", "Unsafe"), sample("allowed", "Safe", "v2"), sample("ball", "Safe", image="1.png")]
    samples.append(sample("ball again", "Unsafe", image="copy.png"))
    (tmp_path / "test.json").write_text(json.dumps([row_of(one, "test", TINY, KEYS) for one in samples]))
    answers(tmp_path / "answers.jsonl", tmp_path / "test.json", dict.fromkeys((one.id for one in samples), True))
    return tmp_path


def test_guard15_a_copied_image_with_another_truth_is_told(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = judge(small, small / "test.json", "--image-root", str(small / "images"))
    assert (found["repeated"], found["contradictions"]) == (["ball again"], [["ball", "ball again"]])
    said = capsys.readouterr().out
    assert "same image and policy, another truth: ball, ball again" in said
    (small / "images" / "0.png").write_bytes(b"no picture")
    judge(small, small / "test.json")  # images are not looked at
    with pytest.raises(SystemExit):
        judge(small, small / "test.json", "--image-root", str(small / "images"))
    assert "2 of 4 rows were rejected (ImageError: 2)" in capsys.readouterr().err


def test_guard16_what_an_endpoint_said_is_read_again_from_its_predictions(small: Path) -> None:
    said: list[Any] = [moderation({"rating": one}, True) for one in ("Unsafe", "Safe", "Unsafe", "Safe")]
    with chat_server(lambda _: (200, said.pop(0)), "/v1/moderations") as server:
        live = run(endpoint_config(small, small, server, "moderation"))
    (small / "answers.jsonl").write_bytes((small / "runs" / "moderation" / "predictions.jsonl").read_bytes())
    found = judge(small, small / "test.json", "--kind", "moderation")
    assert [found["strict"][name] for name in ("tp", "fp", "tn", "fn")] == [1, 1, 1, 1]
    assert {name: live["all"][name] for name in ("strict", "lenient", "coverage")} == {
        name: found[name] for name in ("strict", "lenient", "coverage")
    }


def vote(path: Path, says: Sequence[str]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, said in zip(rows, says, strict=True):
        row["agree_rating"] = said
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_guard20_ballots_go_out_and_votes_stand_beside_the_numbers(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, bob = small / "ann.csv", small / "bob.csv"
    for ballot, says in ((ann, ("yes", "no", "yes", "")), (bob, ("yes", "yes", "yes", "no"))):
        judge(small, small / "test.json", "--ballot", str(ballot))
        vote(ballot, says)
    found = judge(small, small / "test.json", "--votes", str(ann), str(bob))["agreement"]
    assert (found["raters"], found["verdicts"], found["rating"]["votes"]) == (2, 4, 7)
    assert found["rating"]["agreement"] == 5 / 7
    assert found["rating"]["majority"] == 2 / 4
    ann.write_text(ann.read_text().replace("ball again", "nobody's"))
    with pytest.raises(SystemExit):
        judge(small, small / "test.json", "--votes", str(ann))
    assert "votes on what has no verdict: nobody's" in capsys.readouterr().err


def test_guard11_rationales_are_graded_by_an_endpoint_and_compared(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first answers get 9; of the second ones one is as good, one better, one worse, and one has no grade."""
    lines = [json.loads(line) for line in (small / "answers.jsonl").read_text().split("\n") if line]
    for line, word in zip(lines, ("equal", "better", "worse", "odd"), strict=True):
        line["response"] = json.dumps(json.loads(line["response"]) | {"rationale": f"{word} reason"})
    (small / "others.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    grades = {"equal reason": "GRADE: 9", "better reason": "GRADE: 10", "worse reason": "GRADE: 2", "odd reason": "?"}

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        return 200, next((grades[one] for one in grades if one in text_of(request)), "GRADE: 9")

    with chat_server(answer) as server:
        where = ("--image-root", str(small / "images"), "--base-url", server.url, "--model", "grader")
        found = judge(small, small / "test.json", *where, "--against", str(small / "others.jsonl"))["rationales"]
    assert (found["judge"], found["rows"], found["mean"], found["median"]) == ("grader", 4, 9.0, 9.0)
    assert found["against"] == {"rows": 4, "invalid": 1, "mean": 7.0, "median": 9}
    assert found["win_rate"] == pytest.approx(1 / 3)
    for wrong in (("--base-url", "http://x"), ("--against", "x"), ("--base-url", "http://x", "--model", "m")):
        with pytest.raises(SystemExit) as stopped:
            judge(small, small / "test.json", *wrong)
        assert stopped.value.code == 2
    assert "--image-root" in capsys.readouterr().err
