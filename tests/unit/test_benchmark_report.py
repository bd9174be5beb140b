"""The page of an evaluation run: its numbers, what they depend on, and that model output stays harmless."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf.batch import Prompt
from rlhf.benchmark_report import EXAMPLES, write_benchmarks
from rlhf.errors import DataError
from rlhf.evaluation.benchmark import Conditions, Item, JudgedItem, Measure, records, row_line
from tests.fakes import draw_images

CONDITIONS = Conditions("./policy", "rules", "greedy", "asked without one", "vllm bfloat16", "made <up>")


def judged(number: int, verdict: str, image: str | None = None, baseline: str = "") -> JudgedItem:
    item = Item(Prompt(f"b:{number}", f"Question {number}?", image), {"class1": "A & B" if number % 2 else "C"})
    return JudgedItem(item, f"<script>{number}</script>", False, verdict, "because", baseline)


def put(folder: Path, name: str, measure: Measure, rows: list[JudgedItem], expected: int | None = None) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    content = {"records": records(name, measure, rows, CONDITIONS, expected)}
    (folder / "evaluation" / f"{name}.json").write_text(json.dumps(content))
    lines = [json.dumps(row_line(row, CONDITIONS)) + "\n" for row in rows]
    (folder / "evaluation" / f"{name}.jsonl").write_text("".join(lines))


def test_the_page_has_rates_groups_conditions_and_examples_of_each_verdict(tmp_path: Path) -> None:
    image = str(draw_images(tmp_path / "images", 1)[0])
    rows = [judged(number, "unsafe" if number < 10 else "safe", image if number == 0 else None) for number in range(40)]
    put(tmp_path, "harmeval", "unsafe_rate", [*rows, judged(40, "invalid")], expected=265)
    put(tmp_path, "helpeval", "win_rate", [judged(n, "win", baseline="the other one") for n in range(3)])
    text = write_benchmarks(tmp_path, ["harmeval", "helpeval"]).read_text()
    assert "25.0 %" in text  # 10 of 40 opinions
    assert "14.2 to 40.2" in text  # Wilson, 10 of 40
    assert "26.8 %" in text  # 11 of 41 in the worst case
    assert "41 of 265" in text
    assert "lower is better" in text
    assert "higher is better" in text
    assert "by class1" in text
    assert "A &amp; B" in text
    for condition in ("./policy", "rules", "greedy", "asked without one", "vllm bfloat16", "made &lt;up&gt;"):
        assert condition in text
    assert f"unsafe: 10 rows, {EXAMPLES} of them at even distances" in text
    assert "invalid: 1 row<" in text
    assert text.index("unsafe: 10 rows") < text.index("invalid: 1 row<") < text.index("safe: 30 rows")
    assert "the other one" in text
    assert text.count("data:image/jpeg;base64,") == 1


def test_model_output_is_escaped_and_the_page_asks_nothing_of_the_net(tmp_path: Path) -> None:
    put(tmp_path, "harmeval", "unsafe_rate", [judged(1, "safe")])
    text = write_benchmarks(tmp_path, ["harmeval"]).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;1" in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']?(?!data:)[a-z]+:""", text)


def test_a_benchmark_on_which_nothing_could_be_judged_has_no_rate(tmp_path: Path) -> None:
    put(tmp_path, "advbench", "unsafe_rate", [judged(1, "unanswered")])
    text = write_benchmarks(tmp_path, ["advbench"]).read_text()
    assert "100.0 %" in text  # the worst case
    assert 'class="track"' not in text


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="advbench"):
        write_benchmarks(tmp_path, ["advbench"])
