"""Scrubbing: turns per second of the rules, beside Presidio's analyzer, with more workers, through Ray, and its memory.

Captions are drawn from the labelled set of `tests/golden/scrub`: our own texts, not BLIP's. As in the captions of the
seed page, one in sixteen tells something (27.3k + 7.6k of 558k), the others are neutral; the other line has the
labelled set as it is, where more than half tell something and the rest mislead.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.data.json_stream import plan_spans
from rlhf.scrub.files import Scrubber, Unit, assemble
from rlhf.scrub.rewrite import find_cues
from rlhf.scrub.rows import scrub_row
from rlhf.scrub.taxonomy import Taxonomy, taxonomy
from tests.bench import measure

GOLDEN = Path(__file__).parents[1] / "golden" / "scrub" / "sentences.jsonl"
ASKED = "<image>\nRender a clear and concise summary of the photo."
SHARE = 1 / 16
PER_UNIT = 10_000
_BAR = 5000  # turns per second and core


def run(folder: Path, repeats: int, small: bool) -> list[measure.Row]:
    """All lines; `small` has few rows."""
    count = 400 if small else 8000
    kinds = {"captions": _captions(count, SHARE), "labelled set": _captions(count, None)}
    rows = [_speed(name, texts, repeats) for name, texts in kinds.items()]
    if importlib.util.find_spec("presidio_analyzer"):
        for name, texts in kinds.items():
            rows += _beside_presidio(name, texts[: 200 if small else 2000], repeats)
    rows += _through_ray(folder, 8000 if small else 120_000, 1 if small else 3)
    rows.append(_memory(folder, *((500, 1000) if small else (10_000, 200_000))))
    return rows


def _captions(count: int, share: float | None) -> list[str]:
    """Captions of which this share tells an attribute; None: as the labelled set has them."""
    drawn = random.Random(0)
    rows = [row for row in map(json.loads, GOLDEN.read_text().splitlines()) if row["kind"] != "question"]
    if share is None:
        return [drawn.choice(rows)["text"] for _ in range(count)]
    told = [row for row in rows if row["tells"] and row["becomes"]]
    return [drawn.choice(told)["text" if drawn.random() < share else "becomes"] for _ in range(count)]


def _row(number: int, text: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": text}]
    return {"id": str(number), "image": f"{number}.jpg", "conversations": turns}


def _cpu(action: Callable[[], object]) -> float:
    """Seconds of this core, without those that other programs had it."""
    began = time.process_time()
    action()
    return time.process_time() - began


def _speed(name: str, texts: Sequence[str], repeats: int) -> measure.Row:
    """Conversations of two turns, an instruction and a caption; both are counted, as both are scrubbed."""
    rows, lists = [_row(number, text) for number, text in enumerate(texts)], taxonomy()

    def scrub() -> None:
        for row in rows:
            scrub_row(row, lists)

    scrub()
    speeds = sorted(2 * len(rows) / _cpu(scrub) for _ in range(repeats))
    ours = speeds[len(speeds) // 2]
    words = sum(len(text.split()) for text in texts) / len(texts)
    note = f"the other side is the bar; CPU time of one core; {words:.0f} words a caption and 9 an instruction"
    return measure.Row("scrub, rules", name, "turns/s", ours, _BAR, ours / _BAR, ">= 1.0", note)


def _beside_presidio(name: str, texts: Sequence[str], repeats: int) -> list[measure.Row]:
    """Finding beside finding, with the same words as deny lists; then all of ours, which rewrites and audits too."""
    lists, rows = taxonomy(), [_row(number, text) for number, text in enumerate(texts)]
    analyzer = _presidio(lists)

    def theirs() -> float:
        return _cpu(lambda: [analyzer.analyze(text=text, language="en") for text in texts])

    def finding() -> float:
        return _cpu(lambda: [find_cues(text, lists) for text in texts])

    def all_of_it() -> float:
        return _cpu(lambda: [scrub_row(row, lists) for row in rows])

    note = "Presidio without an NLP engine: deny lists of the same words and 4 patterns"
    bar = ">= 5.0" if name == "captions" else ""  # the other set was made to mislead, and is no load of any job
    found, all_done = (measure.in_turn(ours, theirs, repeats) for ours in (finding, all_of_it))
    return [
        measure.faster("scrub, finding beside Presidio", name, "texts/s", len(texts), found, bar, note),
        measure.faster("scrub, all beside its finding", name, "texts/s", len(texts), all_done, "", note),
    ]


def _presidio(lists: Taxonomy) -> Any:
    from presidio_analyzer import AnalyzerEngine, Pattern, PatternRecognizer, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NoOpNlpEngine

    registry = RecognizerRegistry(recognizers=[], supported_languages=["en"])
    for attribute in lists.attributes:
        words = [word for word, known in lists.people.items() if attribute in known.tells]
        words += [word for word, told in lists.modifiers.items() if told == attribute]
        words += ["he", "she", "him", "her", "his", "hers", "himself", "herself"] if attribute == "gender" else []
        if words:
            registry.add_recognizer(PatternRecognizer(supported_entity=attribute, deny_list=words))
    phrases = {
        "age": r"\b\d{1,3}[ -](?:years?|yrs?)[ -](?:old|of age)\b",
        "eye_color": r"\b(?:blue|green|brown|hazel|gr[ae]y) eyes\b",
        "race": r"\b(?:dark|light|fair|pale|brown|olive) (?:skin|complexion)\b",
        "weight": r"\b\d+(?:\.\d+)?\s*(?:kgs?|kilos?|pounds?|lbs?)\b",
    }
    for attribute, phrase in phrases.items():
        pattern = Pattern(name=attribute, regex=phrase, score=0.9)
        registry.add_recognizer(PatternRecognizer(supported_entity=f"{attribute}_phrase", patterns=[pattern]))
    engine = NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "none"}])
    engine.load()
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])


def _file(folder: Path, rows: int) -> Path:
    path = folder / f"{rows}.json"
    if not path.exists():
        texts = _captions(4000, SHARE)
        with path.open("w") as file:
            for number in range(rows):
                file.write(("[" if number == 0 else ",") + json.dumps(_row(number, texts[number % 4000])))
            file.write("]")
    return path


def _units(path: Path) -> list[dict[str, Any]]:
    spans = plan_spans(path, PER_UNIT)
    return [asdict(Unit(number, path.name, str(path), **asdict(span))) for number, span in enumerate(spans)]


def _through_ray(folder: Path, rows: int, repeats: int) -> list[measure.Row]:
    """A plain loop, one worker and two, in turn; from the first finished unit to the last, so without Ray's start."""
    from jobs.units import run_units

    units, times = _units(_file(folder, rows)), [list[float](), list[float](), list[float]()]
    for turn in range(repeats):
        for workers, found in enumerate(times):
            parts = folder / f"parts-{turn}-{workers}"
            if workers == 0:  # in a fresh process, as a worker is: what texts said before is remembered
                loop_process = multiprocessing.get_context("spawn").Process(target=_plain_loop, args=(parts, units))
                loop_process.start()
                loop_process.join()
            else:
                run_units(Scrubber, (parts, None, False), units, workers)
            written = sorted(part.stat().st_mtime for part in parts.glob("*.jsonl"))
            found.append((written[-1] - written[0]) / (len(written) - 1))
    loop, one, two = (sorted(found)[len(found) // 2] for found in times)
    note = (
        f"wall time per unit of {PER_UNIT} rows, from the first of {len(units)} units to the last: without Ray's start"
    )
    return [
        measure.Row("scrub, one Ray worker beside a loop", "captions", "s", one, loop, one / loop, "<= 1.1", note),
        measure.faster("scrub, two workers beside one", "captions", "rows/s", PER_UNIT, (two, one), ">= 1.7", note),
    ]


def _plain_loop(parts: Path, units: Sequence[dict[str, Any]]) -> None:
    plain = Scrubber(parts, None, False)
    for unit in units:
        plain(unit)


def _memory(folder: Path, few: int, many: int) -> measure.Row:
    """Peak resident memory of processes that scrub and assemble files of two lengths."""
    peaks = []
    for rows in (few, many):
        command = [sys.executable, "-m", "tests.bench.scrubbing", str(_file(folder, rows)), str(folder / f"out-{rows}")]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    note = f"peak of {many} rows beside that of {few}, units and assembly in one process"
    return measure.Row("scrub, memory", "captions", "MiB", peaks[1], peaks[0], peaks[1] / peaks[0], "<= 1.2", note)


def main() -> None:
    """Scrub one file in this process and print the peak of its resident memory in MiB."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    units = _units(source)
    worker = Scrubber(folder.with_name(f"{folder.name}-parts"), None, False)
    for unit in units:
        worker(unit)
    assemble(folder, {}, [Unit(**unit) for unit in units], folder.with_name(f"{folder.name}-parts"), 0.0)
    # not ru_maxrss, which a process inherits from the one that started it
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)


if __name__ == "__main__":
    main()
