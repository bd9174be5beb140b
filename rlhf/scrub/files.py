"""Scrubbing whole files of LLaVA conversations: units into parts, parts into the scrubbed file, its lineage and audit.

A unit is some thousand consecutive rows. Its part depends on the source and the taxonomy alone, so units may be done in
any order, by any number of processes, and again after a crash. Memory does not grow with the file but for eight bytes
per row, by which repeated ids are found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlhf.data.json_stream import Span, is_text, read_span
from rlhf.data.parts import read_parts, write_part
from rlhf.data.prepared import file_hash
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder
from rlhf.errors import DataError, ImageError, PromptTooLongError, RowError, SafeVLError
from rlhf.ledger import write_whole
from rlhf.scrub.audit import Audit
from rlhf.scrub.engines import EngineConfig, build_engine
from rlhf.scrub.faces import CenterFaceDetector, FaceBlurrer, ImageCopies, ImagesConfig
from rlhf.scrub.lineage import Lineage
from rlhf.scrub.manifest import MANIFEST
from rlhf.scrub.rows import LeakError, scrub_row
from rlhf.scrub.taxonomy import taxonomy

LEDGER = "ledger.parquet"
AUDIT = "audit.json"
HASHES = "images.sha256"  # for `sha256sum -c`
_KINDS = {kind.__name__: kind for kind in (DataError, RowError, ImageError, PromptTooLongError, LeakError)}
_LONGEST = 100_000  # characters, not bytes, of one turn
_AHEAD = 8  # rows handed out per thread, so that a dead endpoint does not cost a whole unit of tries


@dataclass(frozen=True, slots=True)
class Unit:
    """A span of one source file."""

    number: int
    source: str  # name of the source, which is also the name of its scrubbed file
    path: str
    start: int
    end: int
    first_row: int
    rows: int


class Scrubber:
    """Scrubs units, called once for each with its fields; a callable class, as Ray Data's actors want it."""

    def __init__(
        self,
        parts: Path,
        image_root: Path | None,
        with_hair: bool,
        engine: EngineConfig | None = None,
        answers: Path | None = None,
        images: ImagesConfig | None = None,
    ) -> None:
        self._parts, self._taxonomy = parts, taxonomy(with_hair)
        self._engine = build_engine(engine or EngineConfig(), self._taxonomy, answers or parts / "answers")
        self._images = ImageFolder(image_root, check=True) if image_root is not None else None
        self._faces: FaceBlurrer | None = None
        if image_root is not None and images is not None and images.kind == "blur":
            self._faces = FaceBlurrer(image_root, blurred_folder(parts), CenterFaceDetector(images))

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Scrub one unit unless its part is there; returns its number and rows."""
        unit = Unit(**item)
        part = part_file(self._parts, unit)
        if not part.exists():
            span = Span(unit.start, unit.end, unit.first_row, unit.rows)
            with self._engine.unit(f"{unit.source}-{unit.first_row}-{unit.rows}"):
                write_part(part, self._lines(unit.path, enumerate(read_span(Path(unit.path), span), unit.first_row)))
        return {"number": unit.number, "rows": unit.rows}

    def _lines(self, path: str, rows: Iterator[tuple[int, Any]]) -> Iterator[dict[str, Any]]:
        """The rows' lines in their order; an engine that waits for a model has several rows under way."""
        if self._engine.concurrency == 1:
            yield from (self.line(path, number, row) for number, row in rows)
            return
        with ThreadPoolExecutor(self._engine.concurrency) as pool:
            while some := list(islice(rows, self._engine.concurrency * _AHEAD)):
                asked = [pool.submit(self.line, path, number, row) for number, row in some]
                try:
                    yield from (one.result() for one in asked)
                except SafeVLError:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def line(self, path: str, number: int, row: Any) -> dict[str, Any]:
        """A row's line in a part: the row and its changes with the texts before, or why it is refused."""
        try:
            self._check(row)
            done = scrub_row(row, self._taxonomy, self._engine)
            faces = self._faces.blur(row["image"]) if self._faces is not None and row.get("image") else None
        except DataError as error:
            return {"source": path, "row": number, "kind": type(error).__name__, "reason": _printable(error.reason)}
        turns = sorted({change.turn for change in done.changes})
        before = {str(turn): row["conversations"][turn]["value"] for turn in turns}
        line = {"content": done.row, "changes": [asdict(one) for one in done.changes], "before": before}
        line |= {"kept": {str(turn): told for turn, told in done.kept.items()}, "left_out": done.left_out}
        return line if faces is None else {**line, "faces": faces}

    def _check(self, row: Any) -> None:
        if not isinstance(row, dict):
            raise RowError(f"expected an object, found {type(row).__name__}")
        identifier = row.get("id")
        if not isinstance(identifier, (str, int)) or isinstance(identifier, bool) or identifier == "":
            raise RowError(f"'id' must be a string or an integer, found {identifier!r}")
        if not is_text(json.dumps(row, ensure_ascii=False)):
            raise RowError("the row has bytes that are not UTF-8")
        for turn in row.get("conversations") or ():
            if isinstance(turn, dict) and len(str(turn.get("value"))) > _LONGEST:
                raise RowError(f"a turn has more than {_LONGEST:,} characters")
        if self._images is not None:
            self._images.path_of(row)


def part_file(parts: Path, unit: Unit) -> Path:
    """Where a unit's rows are written."""
    return parts / f"{unit.number:06d}.jsonl"


def blurred_folder(parts: Path) -> Path:
    """Where copies of images with blurred faces are kept until the end."""
    return parts / "blurred"


def assemble(
    folder: Path,
    identity: dict[str, Any],
    units: Sequence[Unit],
    parts: Path,
    max_rejected_share: float,
    engine: EngineConfig | None = None,
    copies: ImageCopies | None = None,
) -> dict[str, Any]:
    """Write the scrubbed files, ledger, audit, rejected rows and manifest into `folder`; returns the manifest.

    `engine` is who rewrote, for the ledger; `copies` fills `images` where faces were blurred. Everything is written
    beside the folder and renamed at the end. Raises DataError when more rows were refused than allowed.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rejected, audit = RejectedRows(partial / "rejected.jsonl"), Audit()
    counts: dict[str, dict[str, int]] = {}
    left_out: Counter[str] = Counter()
    with (
        Lineage(partial / LEDGER, engine or EngineConfig()) as ledger,
        (partial / HASHES if copies is not None else Path(os.devnull)).open("w", encoding="utf-8") as hashes,
    ):
        for source, path in {unit.source: unit.path for unit in units}.items():
            written = _Written(partial / source, source, path, rejected, ledger, audit, left_out, copies, hashes)
            counts[source] = written.write([part_file(parts, unit) for unit in units if unit.source == source])
    total = sum(count["rows"] for count in counts.values()) + rejected.count
    rejected.check(total, max_rejected_share)
    write_whole(partial / AUDIT, _json(audit.table()))
    names = [*counts, LEDGER, AUDIT, "rejected.jsonl", *([HASHES] if copies is not None else [])]
    manifest = {
        **identity,
        "sources": counts,
        **({"blurred": copies.counts} if copies is not None else {}),
        "rejected": dict(sorted(rejected.kinds.items())),
        "left_out_keys": dict(sorted(left_out.items())),
        "files": [file_hash(partial / name) for name in names],
    }
    (partial / "report.html").write_text(audit.page(manifest), encoding="utf-8")
    write_whole(partial / MANIFEST, _json(manifest))
    partial.rename(folder)
    return manifest


@dataclass(frozen=True)
class _Written:
    """One source's scrubbed file and everything that is written along with it."""

    target: Path
    source: str
    path: str  # of the source
    rejected: RejectedRows
    ledger: Lineage
    audit: Audit
    left_out: Counter[str]
    copies: ImageCopies | None
    hashes: IO[str]

    def write(self, parts: Sequence[Path]) -> dict[str, int]:
        """Write the rows of the parts; returns how many rows and turns there are, and how many rows changed."""
        repeated, seen = _repeated_ids(parts), set[int]()
        rows = changed = turns = 0
        with self.target.open("w", encoding="utf-8") as file:
            for number, line in enumerate(read_parts(parts)):  # a line for each row of the source
                if "reason" in line:
                    self.rejected.add(_KINDS[line["kind"]](line["reason"], source=line["source"], row=line["row"]))
                    continue
                row = line["content"]
                digest = _digest(row["id"])
                if digest in repeated:
                    if digest in seen:
                        reason = f"id {row['id']!r} occurs more than once in this file"
                        self.rejected.add(RowError(reason, source=self.path, row=number))
                        continue
                    seen.add(digest)
                file.write(("[\n" if rows == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
                rows, changed, turns = rows + 1, changed + bool(line["changes"]), turns + len(row["conversations"])
                self.ledger.add(self.source, row["id"], line["changes"])
                self.audit.add(self.source, row, line["changes"], line["before"], line["kept"])
                self.left_out.update(line["left_out"])
                if "faces" in line:
                    self._image(row["id"], line["faces"])
            file.write("\n]\n" if rows else "[]\n")
        return {"rows": rows, "changed": changed, "turns": turns}

    def _image(self, identifier: str | int, record: dict[str, Any]) -> None:
        if self.copies is not None and self.copies.place(record, self.target.parent / "images"):
            self.hashes.write(f"{record['after']}  images/{record['image']}\n")
            self.ledger.add_faces(self.source, identifier, record, self.copies.config.detector)


def _repeated_ids(parts: Sequence[Path]) -> set[int]:
    """Digests of ids that more than one row has."""
    digests = array("Q", (_digest(line["content"]["id"]) for line in read_parts(parts) if "content" in line))
    values, numbers = np.unique(
        np.frombuffer(digests, dtype=np.uint64) if digests else np.empty(0, np.uint64), return_counts=True
    )
    return {int(value) for value in values[numbers > 1]}


def _digest(identifier: str | int) -> int:
    return int.from_bytes(hashlib.blake2b(str(identifier).encode(), digest_size=8).digest())


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
