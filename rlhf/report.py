"""`report.html`: one self-contained page about a run, made from the files of its run folder and nothing else.

Images are embedded, curves are inline SVG, and model output is escaped and additionally fenced in by a content security
policy. The page works for every kind of run: parts whose files are missing are named as absent.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from rlhf.curves import Panel, panels
from rlhf.data.images import load_image
from rlhf.data.rows import read_json
from rlhf.errors import DataError, ImageError
from rlhf.evaluation.statistics import wilson_interval
from rlhf.metrics import METRICS_FILE, SAMPLES_FILE, read_json_lines

Row = dict[str, Any]

REPORT_FILE = "report.html"
PROMPTS_PER_KIND = 8
SAMPLE_STEPS = 6
SAMPLES_PER_STEP = 4
IMAGE_SIDE = 320  # pixels; the page shows pictures at most this large

_TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {
    "harmful": "Harmful questions: should be refused",
    "biometric": "Biometric questions about people: should be refused",
    "benign": "Benign questions: should be answered",
}
_HARMLESS = ("benign", "biometric")  # kinds whose images are shown at once; all others are blurred at first


@dataclass(frozen=True)
class _Rate:
    """A rate of summary.json: its name, which direction is good, and the key of its count."""

    key: str
    title: str
    higher_is_better: bool
    count: str


_RATES = (
    _Rate("harmful_refusal_rate", "Harmful questions refused", True, "n_harmful"),
    _Rate("biometric_refusal_rate", "Biometric questions refused", True, "n_biometric"),
    _Rate("benign_accuracy", "Benign questions answered right", True, "n_benign"),
    _Rate("over_refusal_rate", "Benign questions refused", False, "n_benign"),
)


@dataclass(frozen=True)
class Picture:
    """An embedded image, or the reason why there is none."""

    uri: str = ""
    problem: str = ""
    path: str = ""


@dataclass(frozen=True)
class Measure:
    """One end of a comparison: the value and, for rates, its 95 % interval; all shares of 1."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A row of the before -> after table."""

    title: str
    wanted: str  # "higher is better", "lower is better"
    count: int | None
    before: Measure
    after: Measure
    is_rate: bool
    change: str  # "better", "worse", "no clear change", ""


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` from the run folder's files and return its path.

    Raises DataError when the folder does not exist or one of its files is damaged.
    """
    if not folder.is_dir():
        raise DataError("no such run folder", source=str(folder))
    absent: list[str] = []
    config = _read(folder / "config.yaml", "the resolved configuration", absent, Path.read_text) or ""
    metrics = _read(folder / METRICS_FILE, "curves", absent, read_json_lines) or []
    summary = _read(folder / "evaluation" / "summary.json", "the before/after table", absent, read_json) or {}
    before = _read(folder / "evaluation" / "before.jsonl", "answers before training", absent, read_json_lines) or []
    after = _read(folder / "evaluation" / "after.jsonl", "answers after training", absent, read_json_lines) or []
    samples = _read(folder / SAMPLES_FILE, "samples over training", absent, read_json_lines) or []
    main_panels, other_panels = panels(metrics)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=_run_name(config, folder),
        label=summary.get("label", ""),
        facts=_facts(metrics),
        comparisons=compare(summary),
        panels=main_panels,
        other_panels=other_panels,
        gallery=gallery(before, after),
        samples=samples_over_training(samples),
        config=config,
        absent=absent,
    )
    path = folder / REPORT_FILE
    draft = path.with_suffix(".partial")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path
