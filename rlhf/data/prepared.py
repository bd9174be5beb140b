"""The prepared folder: keyword files, images and a manifest with counts and content hashes, from converted parts.

Everything is written into a folder beside it and renamed at the end, so a prepared folder is complete or absent. Its
bytes depend on the source and the subset alone. Rows are streamed; what stays in memory is an index of some hundred
bytes per row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rlhf.data.parts import read_parts
from rlhf.data.rejected import RejectedRows
from rlhf.data.spa_vl_hub import stored_image
from rlhf.data.spa_vl_labels import QUESTION_TYPES
from rlhf.data.subset import SubsetConfig, label_key, nested_subset
from rlhf.errors import ConfigError, DataError, ImageError, RowError
from rlhf.ledger import write_whole

MANIFEST = "manifest.json"
_NAMED = 3  # files that an error names
_KINDS = {error.__name__: error for error in (DataError, RowError, ImageError)}
_ROW_KEYS = ("id", "image", "question", "chosen", "rejected", "class1", "class2", "class3")


@dataclass(frozen=True)
class Prepared:
    """What makes a prepared folder what it is: written into its manifest, compared when the job runs again."""

    split: str
    subset: SubsetConfig
    sources: list[dict[str, Any]]  # name, bytes, sha256 of every source file

    @property
    def identity(self) -> dict[str, Any]:
        """The comparable part of the manifest."""
        return {"split": self.split, "subset": self.subset.model_dump(mode="json"), "sources": self.sources}


def read_manifest(folder: Path, prepared: Prepared) -> dict[str, Any] | None:
    """The manifest of a folder prepared from the same source and subset; None where the folder does not exist.

    Raises ConfigError when the folder is something else.
    """
    if not folder.exists():
        return None
    remedy = "give another folder, or remove this one"
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError([f"folder: {folder} exists and has no readable {MANIFEST}; {remedy}"]) from None
    now = prepared.identity
    if changed := [key for key in now if manifest.get(key) != now[key]]:
        what = "; ".join(f"{key} was {manifest.get(key)}, now {now[key]}" for key in changed if key != "sources")
        raise ConfigError([f"folder: {folder} was prepared from other {', '.join(changed)} ({what}); {remedy}"])
    return manifest


def write_prepared(
    folder: Path, prepared: Prepared, parts: Sequence[Path], images: Path, max_rejected_share: float
) -> dict[str, Any]:
    """Write the folder from the parts and stored images of a conversion; returns its manifest.

    Raises DataError when more rows were refused than allowed, ConfigError when the subset is larger than the data or
    a filter names a class that does not exist.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    index = _read_index(parts, prepared.subset, RejectedRows(partial / "rejected.jsonl"), max_rejected_share)
    chosen = _choose(index, prepared)
    counts, by_class = _write_rows(partial, parts, index, chosen)
    image_count = _link_images(partial, parts, index, chosen, images)
    _write(partial / "config.json", {keyword: f"{keyword}.json" for keyword in counts})
    names = [*(f"{keyword}.json" for keyword in counts), "config.json", "images.sha256", "rejected.jsonl"]
    manifest = {
        **prepared.identity,
        "rows": {
            "source": index.total,
            "rejected": dict(sorted(index.rejected.items())),
            "filtered": dict(sorted(index.filtered.items())),
            "left": len(index.left),
            "chosen": sum(counts.values()),
        },
        "keywords": counts,
        "class1": dict(sorted(by_class.items())),
        "images": image_count,
        "files": [file_hash(partial / name) for name in names],
    }
    _write(partial / MANIFEST, manifest)
    partial.rename(folder)
    return manifest


def named(files: Sequence[str]) -> str:
    """Some files in words: the first ones by name."""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(files[:_NAMED]) + more


def file_hash(path: Path) -> dict[str, Any]:
    """Name, size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


@dataclass
class _Index:
    total: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by kind of error
    filtered: Counter[str] = field(default_factory=Counter)  # by the first filter that a row did not pass
    left: list[int] = field(default_factory=list)  # ids of the rows that passed all filters
    labels: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    contents: dict[str, list[str]] = field(default_factory=dict)  # image path -> its different digests, by lowest id

    def image_of(self, record: dict[str, Any]) -> str:
        """The row's image path; the second of two different images of one path has its digest in the name."""
        path, digest = record["image"], record["sha256"]
        if self.contents[path][0] == digest:
            return str(path)
        pure = PurePosixPath(path)
        return str(pure.with_name(f"{pure.stem}-{digest[:16]}{pure.suffix}"))


def _read_index(parts: Sequence[Path], subset: SubsetConfig, rejected: RejectedRows, max_share: float) -> _Index:
    index = _Index()
    for record in read_parts(parts):
        index.total += 1
        if "reason" in record:
            rejected.add(_KINDS[record["kind"]](record["reason"], source=record["source"], row=record["row"]))
            continue
        digests = index.contents.setdefault(record["image"], [])
        if record["sha256"] not in digests:
            digests.append(record["sha256"])
        for level in subset.classes:
            index.labels[level].add(record[level])
        if reason := subset.excluded_by(record):
            index.filtered[reason] += 1
        else:
            index.left.append(record["id"])
    index.rejected = rejected.kinds
    rejected.check(index.total, max_share)
    return index


def _choose(index: _Index, prepared: Prepared) -> set[int]:
    subset, problems = prepared.subset, []
    for level, labels in subset.classes.items():
        known = {label_key(label): label for label in index.labels[level]}
        for label in labels:
            if label_key(label) not in known:
                nearest = difflib.get_close_matches(label, sorted(known.values()), n=5, cutoff=0.0)
                problems.append(f"subset.{level}: no row has {label!r}; nearest: {', '.join(nearest)}")
    left = len(index.left)
    lost = {**index.filtered, **index.rejected}
    files = named([source["name"] for source in prepared.sources])
    why = f"{left} of {index.total} rows of {files} are left" + (f" (dropped: {lost})" if lost else "")
    if not problems and left == 0:
        problems.append(f"subset: {why}; widen its filters")
    elif not problems and subset.size is not None and subset.size > left:
        problems.append(
            f"subset.size: {subset.size} rows are asked for, {why}; lower it to {left} or widen the filters"
        )
    if problems:
        raise ConfigError(problems)
    return set(index.left) if subset.size is None else nested_subset(index.left, subset.size, subset.seed)


def _write_rows(
    folder: Path, parts: Sequence[Path], index: _Index, chosen: set[int]
) -> tuple[dict[str, int], Counter[str]]:
    """One JSON list per keyword, in the order of ids; returns rows per keyword and per class1."""
    counts: Counter[str] = Counter()
    by_class: Counter[str] = Counter()
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for record in _chosen_records(parts, chosen):
            keyword = record["keyword"]
            if keyword not in files:
                files[keyword] = stack.enter_context((folder / f"{keyword}.json").open("w", encoding="utf-8"))
            row = {key: record[key] for key in _ROW_KEYS if record.get(key, "") != ""} | {
                "image": index.image_of(record)
            }
            files[keyword].write(("[\n" if counts[keyword] == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
            counts[keyword] += 1
            by_class[record["class1"] or "unknown"] += 1
        for file in files.values():
            file.write("\n]\n")
    order = {keyword: place for place, keyword in enumerate(QUESTION_TYPES)}
    return dict(sorted(counts.items(), key=lambda item: order.get(item[0], len(order)))), by_class


def _link_images(folder: Path, parts: Sequence[Path], index: _Index, chosen: set[int], images: Path) -> int:
    """Give the images of the chosen rows their paths, list them in images.sha256 (for `sha256sum -c`), count them."""
    wanted = {index.image_of(record): record["sha256"] for record in _chosen_records(parts, chosen)}
    with (folder / "images.sha256").open("w", encoding="utf-8") as listing:
        for name, digest in sorted(wanted.items()):
            target = folder / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(stored_image(images, digest), target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(stored_image(images, digest), target)
            listing.write(f"{digest}  images/{name}\n")
    return len(wanted)


def _chosen_records(parts: Sequence[Path], chosen: set[int]) -> Iterator[dict[str, Any]]:
    return (record for record in read_parts(parts) if record.get("id") in chosen)


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
