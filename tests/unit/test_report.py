"""The report of a run folder: complete, self-contained, safe to open, and honest about what is absent."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlhf.curves import panels
from rlhf.errors import DataError
from rlhf.report import compare, gallery, write_report

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'


class _Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _judged(identifier: str, kind: str, response: str, image: str, **judged: bool) -> dict[str, Any]:
    row = {"id": identifier, "kind": kind, "question": f"question {identifier}", "image": image, "answer": ""}
    return row | {"response": response, "score": 0.5, "truncated": False, "refused": False, "correct": False} | judged


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "images" / "scene.png"
    path.parent.mkdir()
    Image.new("RGB", (1200, 600), (200, 30, 30)).save(path)
    return str(path)


@pytest.fixture
def run(tmp_path: Path, image: str) -> Path:
    folder = tmp_path / "run"
    stages = {"seconds/generate": 2.0, "seconds/update": 1.0, "seconds/total": 3.0}
    _lines(
        folder / "metrics.jsonl",
        [
            {"step": k, "time": 1e9 + k, "score/mean": k / 9, "kl/sequence": None, "odd<b>/x": 1.0, **stages}
            for k in range(40)
        ],
    )
    sample = {"prompt_id": "p", "question": "q", "image": image, "response": HOSTILE, "score": 0.1, "parts": {}}
    _lines(folder / "samples.jsonl", [{"step": 1, **sample, "policy_version": 0, "truncated": True}])
    before = [_judged(f"h{i}", "harmful", "Sure, do this", image) for i in range(20)]
    before += [_judged("b0", "benign", HOSTILE, str(folder / "gone.png"))]
    after = [row | {"response": "I cannot", "refused": True} for row in before[:20]] + [before[20] | {"correct": True}]
    _lines(folder / "evaluation" / "before.jsonl", before)
    _lines(folder / "evaluation" / "after.jsonl", after)
    summary = {
        "label": "the tiny synthetic world",
        "before": {"harmful_refusal_rate": 0.0, "benign_accuracy": 0.9, "n_harmful": 20.0, "n_benign": 50.0},
        "after": {"harmful_refusal_rate": 1.0, "benign_accuracy": 0.88, "n_harmful": 20.0, "n_benign": 50.0},
        "intervals": {
            "before": {"harmful_refusal_rate": [0.0, 0.16], "benign_accuracy": [0.79, 0.96]},
            "after": {"harmful_refusal_rate": [0.84, 1.0], "benign_accuracy": [0.76, 0.94]},
        },
    }
    (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("run:\n  name: tiny/<i>ppo\n")
    return folder


def test_the_report_is_one_file_that_asks_nobody_for_anything(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = _Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert not any(value.startswith("http") for name, value in page.attributes if not name.startswith("xmlns"))
    assert all(target.startswith("#") for name in ("href", "xlink:href") for target in page.values(name))
    assert not re.search(r"@import|url\((?!#)", text)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_hostile_output_and_names_are_shown_as_text(run: Path) -> None:
    text = write_report(run).read_text()
    assert "<script" not in text
    assert "<i>ppo" not in text
    assert "odd<b>" not in text
    assert HOSTILE in _Page(text).words
    assert "default-src 'none'" in text


def test_images_are_embedded_at_modest_size(run: Path) -> None:
    sources = _Page(write_report(run).read_text()).values("src")
    decoded = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    assert decoded.size == (320, 160)
    red, green, blue = decoded.convert("RGB").getpixel((100, 100))
    assert (red, green, blue) == pytest.approx((200, 30, 30), abs=6)


def test_a_missing_image_is_a_placeholder_with_its_path(run: Path) -> None:
    text = write_report(run).read_text()
    assert "no such image file" in text
    assert str(run / "gone.png") in text


def test_images_of_harmful_prompts_are_veiled_and_those_of_benign_ones_are_not(run: Path, image: str) -> None:
    shelves = {shelf.kind: shelf for shelf in gallery([_judged("a", k, "", image) for k in ("benign", "harmful")], [])}
    assert [card.veiled for card in shelves["harmful"].cards] == [True]
    assert [card.veiled for card in shelves["benign"].cards] == [False]
    assert write_report(run).read_text().count('<label class="picture veil"') == 8 + 1  # the sample's kind is unknown


def test_the_table_calls_a_change_only_where_the_intervals_do_not_overlap(run: Path) -> None:
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    rows = {row.title: row for row in compare(summary)}
    assert rows["Harmful questions refused"].change == "better"
    assert rows["Benign questions answered right"].change == "intervals overlap"
    assert rows["Harmful questions refused"].count == 20
    assert set(rows) == {"Harmful questions refused", "Benign questions answered right"}


def test_more_over_refusal_is_worse() -> None:
    side = {"before": {"over_refusal_rate": 0.0, "n_benign": 99}, "after": {"over_refusal_rate": 0.5, "n_benign": 99}}
    ranges = {"before": {"over_refusal_rate": [0.0, 0.04]}, "after": {"over_refusal_rate": [0.4, 0.6]}}
    assert [row.change for row in compare({**side, "intervals": ranges})] == ["worse"]


def test_the_gallery_counts_every_prompt_and_shows_both_ends_of_the_list(run: Path) -> None:
    before, after = (
        [json.loads(line) for line in (run / "evaluation" / f"{moment}.jsonl").read_text().splitlines()]
        for moment in ("before", "after")
    )
    harmful, benign = gallery(before, after)
    assert (harmful.count, harmful.changes) == (20, {"bad to good": 20})
    assert benign.changes == {"bad to good": 1}
    shown = [card.question for card in harmful.cards]
    assert len(shown) == len(set(shown)) == 8
    assert (shown[0], shown[-1]) == ("question h0", "question h19")
    assert harmful.cards[0].before is not None
    assert harmful.cards[0].before.verdict == "answered"


def test_a_refused_benign_prompt_is_bad_even_where_refusing_elsewhere_is_good() -> None:
    rows = [
        _judged("x", "benign", "I cannot", "", refused=True),
        _judged("y", "biometric", "I cannot", "", refused=True),
    ]
    tones = {shelf.kind: shelf.cards[0].after for shelf in gallery([], rows)}
    assert {kind: answer and answer.tone for kind, answer in tones.items()} == {"benign": "bad", "biometric": "good"}


def test_a_supervised_run_shows_its_numbers_and_names_what_is_absent(tmp_path: Path) -> None:
    rows = [
        {"step": k, "time": 0.0, "loss": 1 / k, "lr": 1e-3, "grad_norm": 1.0, "batch/fill": 0.5 + k % 2 / 2}
        for k in range(1, 29)
    ]
    _lines(tmp_path / "metrics.jsonl", [*rows, {"step": 29, "time": 0.0, "validation/by_type/easy": 0.93}])
    text = write_report(tmp_path).read_text()
    assert "75.0%" in text  # of the places of a batch
    assert "Batch fill" in text
    assert "validation/by_type" in text
    for name in ("evaluation/summary.json", "evaluation/before.jsonl", "samples.jsonl", "config.yaml"):
        assert f"<code>{name}</code> is absent" in text
    assert "metrics.jsonl</code> is absent" not in text
    assert "Before and after" not in text


def test_an_empty_folder_still_gives_a_report_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert "no curves" in write_report(tmp_path).read_text()
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "elsewhere")


def test_a_report_can_be_written_between_before_and_after(run: Path) -> None:
    (run / "evaluation" / "after.jsonl").unlink()
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    del summary["after"], summary["intervals"]["after"]
    summary["before"]["over_refusal_rate"] = float("nan")
    (run / "evaluation" / "summary.json").write_text(json.dumps(summary))
    text = write_report(run).read_text()
    assert "not measured" in text
    assert "no answer recorded" in text


def test_every_metric_is_drawn_exactly_once(run: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "step": k,
            "time": 1.0,
            "score/mean": 1.0,
            "score/std": 0.1,
            "value/mean": 0.0,
            "sync/megabytes": 8.0,
            "flat": 3,
        }
        for k in range(3)
    ]
    main, others = panels(rows)
    assert [panel.title for panel in main] == ["Reward"]
    assert {group: [panel.title for panel in members] for group, members in others.items()} == {
        "value": ["mean"],
        "sync": ["megabytes"],
        "general": ["flat"],
    }
    assert main[0].curves[0].last == "1"


def test_the_same_folder_gives_the_same_bytes(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_monitors_of_a_reward_have_panels_with_words_of_their_own(run: Path) -> None:
    keys = (
        "score/part/preference/reward_model",
        "score/part/guard/guard_answer",
        "score/part_std/guard/guard_answer",
        "score/agreement/guard/guard_answer and preference/reward_model",
        "score/invalid/guard/guard_answer",
        "score/invalid/second/guard_answer",
        "score/cost/over_refusal",
        "constraint/over_refusal_lambda",
        "response/commonest_share",
        "response/commonest_refusal_share",
    )
    rows = [{"step": step, **{key: 0.1 * place for place, key in enumerate(keys)}} for step in range(3)]
    main, others = panels(rows)
    assert {panel.title: [curve.name for curve in panel.curves] for panel in main} == {
        "Parts of the score": ["preference/reward model", "guard/guard answer"],
        "Agreement of parts": ["guard/guard answer and preference/reward model"],
        "Invalid verdicts": ["guard/guard answer", "second/guard answer"],
        "Costs": ["over refusal"],
        "Multipliers": ["over refusal"],
        "Alike answers": ["commonest share", "commonest refusal share"],
    }
    assert all(panel.hint for panel in main)
    assert list(others) == ["score/part_std/guard"]
    _lines(run / "metrics.jsonl", rows)
    assert "40.0% of guard/guard_answer&#39;s verdicts are invalid" in write_report(run).read_text()
