"""Where images to annotate come from: a folder, parquet files, tar shards, or addresses in a column of parquet files.

Every source is cut into units, and each unit becomes a part file of what was found and what was refused. Images of
shards, parquet files and addresses are stored once, under the hash of their content.
"""

from __future__ import annotations

import glob
import hashlib
import json
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import model_validator

from rlhf.config import Config, resolve
from rlhf.data.images import verify_image
from rlhf.data.parts import read_parts, write_part
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, UniqueIds
from rlhf.data.spa_vl_hub import store_image, stored_image
from rlhf.errors import ConfigError, DataError, ImageError, RowError
from rlhf.guard.fetch import FetchConfig, Fetcher

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_BATCH_ROWS = 256  # rows of a parquet file that are in memory together
_LARGEST = 256 * 2**20  # bytes of one image of a shard
_DAMAGED_SHARD = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


class ImageSource(Config):
    """One set of images: a folder, or parquet files, or tar shards."""

    folder: str | None = None
    """All images below it; an image's id is its path there."""
    tar: tuple[str, ...] = ()
    """Shards (.tar, .tar.gz), patterns allowed; files in them that are no images are passed over."""
    parquet: tuple[str, ...] = ()
    """Parquet files, patterns allowed."""
    column: str = "image"
    """parquet: the column with an image's bytes (also {bytes, path}), its path, or with `urls` its address."""
    id_column: str | None = None
    """parquet: the column with ids; unset: file and row."""
    image_root: str | None = None
    """parquet: the folder that paths are relative to."""
    urls: bool = False
    """parquet: the column holds http addresses; also needs `allow_urls` of the job."""

    @model_validator(mode="after")
    def _one_of_them(self) -> ImageSource:
        problems = []
        if sum((self.folder is not None, bool(self.tar), bool(self.parquet))) != 1:
            problems.append("sources: give each one of folder, tar and parquet")
        if not self.parquet and (self.urls or self.id_column or self.image_root):
            problems.append("sources: urls, id_column and image_root belong to parquet; remove them")
        if problems:
            raise ConfigError(problems)
        return self


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a source: images of a folder (`names`), a row group of a parquet file (`rows`), or a whole shard."""

    number: int
    source: str
    path: str
    group: int = -1
    first_row: int = 0
    rows: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """One image: `number` is its place in its source, refused ones counted; `image` is an absolute path."""

    source: str
    number: int
    id: str
    image: str


def plan_units(sources: Mapping[str, ImageSource], images_per_unit: int) -> list[Unit]:
    """Cut all sources into units, in a fixed order. Raises ConfigError or DataError for what is not there."""
    pieces: list[dict[str, Any]] = []
    for name, source in sources.items():
        if source.folder is not None:
            pieces += [{"source": name, **piece} for piece in _folder_pieces(name, source.folder, images_per_unit)]
        elif source.tar:
            pieces += [{"source": name, "path": str(path)} for path in _files(name, "tar", source.tar)]
        else:
            for path in _files(name, "parquet", source.parquet):
                pieces += [{"source": name, **piece} for piece in _parquet_pieces(path, source)]
    return [Unit(number, **piece) for number, piece in enumerate(pieces)]


def key_of(sources: Mapping[str, ImageSource], units: Sequence[Unit]) -> str:
    """Changes with the sources and with name, size or time of any of their files: parts are shared by nothing else."""
    state = hashlib.sha256(json.dumps({name: one.model_dump() for name, one in sources.items()}).encode())
    for unit in units:
        state.update(json.dumps(asdict(unit)).encode())
        for path in [Path(unit.path) / name for name in unit.names] or [Path(unit.path)]:
            seen = path.stat()
            state.update(f"{seen.st_size} {seen.st_mtime_ns}".encode())
    return state.hexdigest()[:16]


class Unpacker:
    """Finds the images of units, called once for each; a callable class, as Ray Data's actors want it.

    `parts` gets one file of JSON lines per unit, `images` the images that were not files of their own.
    """

    def __init__(self, sources: Mapping[str, ImageSource], parts: Path, images: Path, fetch: FetchConfig) -> None:
        self._sources, self._parts, self._images = sources, parts, images
        self._fetch, self._fetcher = fetch, Fetcher(fetch)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Unpack one unit (as `item_of` gives it) unless its part is there; returns its number and rows."""
        fields = json.loads(item["unit"])
        unit = Unit(**{**fields, "names": tuple(fields["names"])})
        part, rows = part_file(self._parts, unit.number), 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal rows
            for line in self._lines(unit):
                rows += 1
                yield line

        if not part.exists():
            write_part(part, counted())
        return {"number": unit.number, "rows": rows}

    def _lines(self, unit: Unit) -> Iterator[dict[str, Any]]:
        source = self._sources[unit.source]
        if unit.names:
            for name in unit.names:
                yield _line(unit, name, partial(_verified, Path(unit.path) / name))
        elif source.tar:
            yield from self._shard(unit)
        else:
            yield from self._table(unit, source)

    def _shard(self, unit: Unit) -> Iterator[dict[str, Any]]:
        for name, content in _members(Path(unit.path)):
            yield _line(unit, name, partial(self._content, name, content))

    def _content(self, name: str, content: bytes | ImageError) -> str:
        if isinstance(content, ImageError):
            raise content
        return self._stored(content, name)

    def _table(self, unit: Unit, source: ImageSource) -> Iterator[dict[str, Any]]:
        row = unit.first_row
        try:
            for rows in _batches(unit, source):
                cells = list(enumerate(rows, start=row))
                row += len(cells)
                # only waiting for other machines is worth threads
                with ThreadPoolExecutor(self._fetch.concurrency if source.urls else 1) as pool:
                    yield from pool.map(lambda cell: self._cell(unit, source, *cell), cells)
        except ImageError as error:  # what is left of the row group is lost, and counted row by row
            for lost in range(row, unit.first_row + unit.rows):
                yield _refused(unit, f"{Path(unit.path).name}:{lost}", error)

    def _cell(self, unit: Unit, source: ImageSource, row: int, cells: Mapping[str, Any]) -> dict[str, Any]:
        given = cells.get(source.id_column) if source.id_column is not None else f"{Path(unit.path).name}:{row}"
        name = "" if given is None else str(given)
        if not name:
            return _refused(unit, f"{Path(unit.path).name}:{row}", RowError(f"{source.id_column!r} is empty"))
        return _line(unit, name, lambda: self._image_of(source, name, cells[source.column]))

    def _image_of(self, source: ImageSource, name: str, cell: Any) -> str:
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(data, bytes) and data:
            return self._stored(data, name)
        path = cell.get("path") if isinstance(cell, dict) else cell
        if not isinstance(path, str) or not path:
            raise RowError(f"column {source.column!r} holds neither bytes nor text")
        if source.urls:
            return self._stored(self._fetcher.get(path), path)
        if source.image_root is None:
            raise RowError(f"column {source.column!r} holds a path: set image_root, or urls for addresses")
        return ImageFolder(Path(resolve(source.image_root)), check=True).locate(path)

    def _stored(self, data: bytes, name: str) -> str:
        return str(stored_image(self._images, store_image(data, self._images, name)).absolute())


def item_of(unit: Unit) -> dict[str, str]:
    """A unit as Ray Data carries it: as text, because columns of lists change their type on the way."""
    return {"unit": json.dumps(asdict(unit))}


def read_found(parts: Sequence[Path], rejected: RejectedRows) -> tuple[list[Found], Counter[str]]:
    """The images of all parts in order, and how many each source had; the refused ones go to `rejected`."""
    found: list[Found] = []
    totals, ids = Counter[str](), dict[str, UniqueIds]()
    for line in read_parts(parts):
        source, identifier = line["source"], line["id"]
        number = totals[source]
        totals[source] += 1
        try:
            if "reason" in line:
                raise (ImageError if line["kind"] == ImageError.__name__ else RowError)(line["reason"])
            ids.setdefault(source, UniqueIds()).check(identifier)
        except DataError as error:
            rejected.add(type(error)(error.reason, source=source, row=identifier))
        else:
            found.append(Found(source, number, identifier, line["image"]))
    return found, totals


def part_file(parts: Path, number: int) -> Path:
    """Where a unit's images are listed."""
    return parts / f"{number:06d}.jsonl"


def _line(unit: Unit, identifier: str, image: Callable[[], str]) -> dict[str, Any]:
    try:
        if identifier != _utf8(identifier):
            raise ImageError("the file's name is not UTF-8; rename it")
        return {"source": unit.source, "id": identifier, "image": image()}
    except DataError as error:
        return _refused(unit, identifier, error)


def _refused(unit: Unit, identifier: str, error: DataError) -> dict[str, Any]:
    reason = _utf8(error.reason)
    return {"source": unit.source, "id": _utf8(identifier), "kind": type(error).__name__, "reason": reason}


def _utf8(text: str) -> str:
    """The text, with "?" for bytes of a file's name that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _members(shard: Path) -> Iterator[tuple[str, bytes | ImageError]]:
    """Every image of a shard by name, or why it cannot be used; where the shard is damaged, the shard's own name."""
    try:
        with tarfile.open(shard, "r:*") as file:
            for member in file:
                if member.isfile() and member.name.lower().endswith(SUFFIXES):
                    yield f"{shard.name}/{_utf8(member.name)}", _read_member(file, member)
            _require_end(file)
    except _DAMAGED_SHARD as error:
        yield shard.name, ImageError(f"the shard ends early or is damaged: {error}; download it again")


def _read_member(file: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | ImageError:
    if member.size > _LARGEST:
        return ImageError(f"image {member.name}: {member.size} bytes, at most {_LARGEST} are read")
    content = file.extractfile(member)
    return content.read() if content else b""


def _require_end(file: tarfile.TarFile) -> None:
    """Raise ReadError unless the archive ends as archives do: tarfile takes half a header for the end."""
    if file.fileobj is not None:
        file.fileobj.seek(file.offset)
        if file.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end mark behind byte {file.offset}")


def _verified(path: Path) -> str:
    verify_image(str(path))
    return str(path.absolute())


def _folder_pieces(name: str, folder: str, images_per_unit: int) -> Iterator[dict[str, Any]]:
    root = Path(resolve(folder))
    if not root.is_dir():
        raise ConfigError([f"sources.{name}.folder: no such folder {root}; mend the path"])
    names = sorted(str(one.relative_to(root)) for one in root.rglob("*") if one.suffix.lower() in SUFFIXES)
    if not names:
        raise ConfigError([f"sources.{name}.folder: no image below {root} ({', '.join(SUFFIXES)})"])
    for first in range(0, len(names), images_per_unit):
        yield {"path": str(root), "first_row": first, "names": tuple(names[first : first + images_per_unit])}


def _parquet_pieces(path: Path, source: ImageSource) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"not a parquet file: {error}; download it again", source=str(path)) from None
    if missing := [one for one in (source.column, source.id_column) if one is not None and one not in names]:
        raise DataError(
            f"column(s) missing: {', '.join(missing)} (found: {', '.join(names)}); set column or id_column",
            source=str(path),
        )
    first = 0
    for group, rows in enumerate(sizes):
        yield {"path": str(path), "group": group, "first_row": first, "rows": rows}
        first += rows


def _batches(unit: Unit, source: ImageSource) -> Iterator[list[dict[str, Any]]]:
    """The rows of a row group in pieces. Raises ImageError where it is damaged."""
    import pyarrow
    import pyarrow.parquet

    columns = [name for name in (source.column, source.id_column) if name is not None]
    try:
        with pyarrow.parquet.ParquetFile(unit.path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[unit.group], columns=columns):
                yield batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        name = Path(unit.path).name
        raise ImageError(f"row group {unit.group} of {name} is damaged: {error}; download it again") from None


def _files(name: str, key: str, patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        found = [Path(path) for path in sorted(glob.glob(resolve(pattern)))]
        if not found:
            raise ConfigError([f"sources.{name}.{key}: no file matches {pattern!r}; download it, or mend the path"])
        if twice := [path for path in found if path in files]:
            raise ConfigError([f"sources.{name}.{key}: {twice[0]} is given twice; name it once"])
        files += found
    return files
