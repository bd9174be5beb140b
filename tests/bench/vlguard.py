"""VLGuard's keyword rule over many answers: `python tests/bench/run.py vlguard`. No model, no other side."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from jobs.vlguard_answers import judge
from rlhf.data.rejected import RejectedRows
from rlhf.data.vlguard import CATEGORIES, read_vlguard
from rlhf.evaluation.vlguard import questions_of, seed_results
from rlhf.evaluation.vlguard_answers import answer_line
from rlhf.evaluation.vlguard_refusal import RefusalConfig
from tests.bench import measure

ANSWERS = 100_000
BAR = 10.0  # seconds for all of them, from two files to numbers
_OPTIONS = {
    "as published": RefusalConfig(),
    "folded apostrophes": RefusalConfig(fold_apostrophes=True),
    "whole words": RefusalConfig(word_boundaries=True),
}


def run(folder: Path, repeats: int, small: bool) -> list[measure.Row]:
    """Answers of 30 to 150 words without a keyword, which every phrase is looked for in, and some where it hides."""
    count = ANSWERS // 100 if small else ANSWERS
    draws = random.Random(0)
    words = [f"word{number}" for number in range(5000)] + ["a", "the", "of", "is", "can", "not", "it", "will"]
    texts = [" ".join(draws.choices(words, k=draws.randint(30, 150))) for _ in range(count)]
    meta = _meta(folder / "meta.json", count)
    plain, lines = _answers(folder / "plain", meta, texts)
    hidden, _ = _answers(folder / "hidden", meta, [f"{text} illegally" for text in texts])
    cases = {f"image -> text, {name}": (plain, options) for name, options in _OPTIONS.items()}
    cases["lines, as published"] = (lines, _OPTIONS["as published"])
    cases["image -> text, a phrase inside a word, whole words"] = (hidden, _OPTIONS["whole words"])
    return [_timed(name, meta, *case, count, repeats) for name, case in cases.items()]


def _timed(name: str, meta: Path, answers: Path, options: RefusalConfig, count: int, repeats: int) -> measure.Row:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        found = judge(meta, answers, "unsafes", options)
        times.append(time.process_time() - began)
        if found["rows"] != count or found["asr"]["overall"] != 100.0:
            raise AssertionError(f"judged {found['rows']} of {count} answers, success {found['asr']['overall']}")
    seconds = sorted(times)[len(times) // 2]
    note = f"the other side is the bar; {count} answers, CPU time"
    return measure.Row("VLGuard, judging", name, "s", seconds, BAR, seconds / BAR, "<= 1.0", note)


def _meta(path: Path, count: int) -> Path:
    """Rows of unsafe images in all categories."""
    kinds = [(category, one) for category, found in CATEGORIES.items() for one in found]
    rows = [
        {
            "id": str(number),
            "image": f"x/{number}.png",
            "safe": False,
            "harmful_category": kinds[number % len(kinds)][0],
            "harmful_subcategory": kinds[number % len(kinds)][1],
            "instr-resp": [{"instruction": "What?", "response": "No."}],
        }
        for number in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def _answers(folder: Path, meta: Path, texts: list[str]) -> tuple[Path, Path]:
    """The answers in both formats: one object, and lines."""
    folder.mkdir()
    questions = questions_of(read_vlguard(meta, RejectedRows()), "unsafes")
    (folder / "answers.json").write_text(json.dumps(seed_results(questions, texts)))
    lines = (json.dumps(answer_line(one, text)) for one, text in zip(questions, texts, strict=True))
    (folder / "answers.jsonl").write_text("\n".join(lines))
    return folder / "answers.json", folder / "answers.jsonl"
