"""A small SPA-VL as the hub lays it out: parquet with embedded JPEGs, meta_files, and the unpacked images."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

TYPES = ("easy", "hardq", "hards")
CLASSES = (
    ("Representation & ToxicityHarms", "Toxic", "bully"),
    ("Human Autonomy & IntegrityHarms", "Privacy", "personal privacy"),
    ("Malicious Use", "Fraud or deceptive action", "scamns"),
    ("Representation & ToxicityHarms", "Unfair", "disablity discrimination"),
)
CLEAN = (
    ("Representation & Toxicity Harms", "Toxic", "bully"),
    ("Human Autonomy & Integrity Harms", "Privacy", "personal privacy"),
    ("Malicious Use", "Fraud or deceptive action", "scams"),
    ("Representation & Toxicity Harms", "Unfair", "disability discrimination"),
)


@dataclass(frozen=True)
class Hub:
    """Where the files are, and the rows in the order of the parquet files."""

    folder: Path
    rows: list[dict[str, Any]]

    @property
    def parquet(self) -> str:
        return str(self.folder / "data" / "train-*.parquet")

    @property
    def meta(self) -> Path:
        return self.folder / "meta_files"

    @property
    def images(self) -> Path:
        return self.folder / "train"


def jpeg(number: int, side: int = 12) -> bytes:
    """A JPEG that differs from every other number's."""
    image = Image.new("RGB", (side, side + number % 5), (number % 256, number // 256 % 256, 90))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, comment=str(number).encode())
    return buffer.getvalue()


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_hub(folder: Path, images: int = 8, row_group: int = 4) -> Hub:
    """Three questions per image in two parquet files, and everything that meta_files says about them."""
    rows = []
    for number in range(images):
        for kind in TYPES:
            rows.append({
                "image": {"bytes": jpeg(number), "path": None},
                "question": f"{kind} question about picture {number}?",
                "chosen": f"good {kind} {number}",
                "rejected": f"bad {kind} {number}",
                "image_name": f"{number}.jpg",
            })  # fmt: skip
    half = len(rows) // 2
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:half], row_group)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[half:], row_group)
    meta = []
    for number in range(images):
        labels = CLASSES[number % len(CLASSES)]
        meta.append({"image": f"{number}.jpg", **dict(zip(("class1", "class2", "class3"), labels, strict=True))})
        path = folder / "train" / "/".join(labels) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    write_json(folder / "meta_files" / "image_info" / "meta.json", meta)
    for place, kind in enumerate(TYPES):
        own = [{**row, "image": row["image_name"], "reason1": "x", "reason2": "y"} for row in rows[place::3]]
        keys = ("image", "question", "chosen", "rejected", "reason1", "reason2")
        write_json(folder / "meta_files" / "prefer" / f"{kind}.json", [{key: row[key] for key in keys} for row in own])
        # Even pictures: Otter wrote the good answer and LAMM the bad one; odd ones: gemini and LAMM.
        answers = [
            {
                "image": row["image"],
                "question": row["question"],
                "Otter": row["chosen"] if number % 2 == 0 else "?",
                "gemini": row["chosen"] if number % 2 else "!",
                "LAMM": row["rejected"],
            }
            for number, row in enumerate(own)
        ]
        write_json(folder / "meta_files" / "model_answer" / f"{kind}.json", answers)
    return Hub(folder, rows)
