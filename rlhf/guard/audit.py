"""An audit of annotated images: what was found and flagged in each set, and what removing it would cost its classes.

Source: LlavaGuard seed page, 6.1. Reads any parquet file with a column `rating`; `category`, `id`, `source`, `valid`,
`image` and `rationale` are used where they are there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.errors import DataError
from rlhf.evaluation.statistics import wilson_interval
from rlhf.guard.taxonomy import is_none
from rlhf.ledger import write_whole
from rlhf.privacy_report import Bar
from rlhf.report import Picture, embed, environment, evenly

WHOLE = "all"
_COLUMNS = ("id", "source", "rating", "category", "valid")
_SHOWN = (*_COLUMNS, "image", "rationale")
_CLASSES = 10  # the most filtered ones, as on the seed page


@dataclass
class _Set:
    """Counts of one set of images."""

    images: int = 0
    invalid: int = 0
    ratings: Counter[str] = field(default_factory=Counter)
    detected: Counter[str] = field(default_factory=Counter)  # by category, none left out
    unsafe: Counter[str] = field(default_factory=Counter)  # by category, of these

    def add(self, rating: str | None, category: str) -> None:
        """Count one image."""
        self.images += 1
        if rating is None:
            self.invalid += 1
            return
        self.ratings[rating] += 1
        if not is_none(category):
            self.detected[category] += 1
            self.unsafe[category] += rating == "Unsafe"

    def numbers(self, categories: Sequence[str]) -> dict[str, Any]:
        """The counts with shares and their 95 % intervals."""
        flagged = self.ratings["Unsafe"]
        return {
            "images": self.images,
            "invalid": self.invalid,
            "ratings": {name: self.ratings[name] for name in ("Safe", "Unsafe")},
            "categories": {
                name: {"detected": self.detected[name], **share(self.unsafe[name], self.detected[name], "unsafe")}
                for name in categories
            },
            "detected": self.detected.total(),
            "detected_unsafe": self.unsafe.total(),
            **share(flagged, self.images - self.invalid, "unsafe"),
        }


@dataclass(frozen=True)
class Shown:
    """One image of the gallery."""

    title: str
    text: str
    picture: Picture


def audit(path: Path) -> dict[str, Any]:
    """Counts for each source and all of them, and the share that each class (folder of an id) would lose.

    Raises DataError for a file that is no parquet file or has no column `rating`.
    """
    sets: dict[str, _Set] = defaultdict(_Set)
    whole = _Set()
    classes: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in read_table(path, _COLUMNS):
        rating, category, source = _rating(row), _category(row), str(row.get("source") or path.stem)
        sets[source].add(rating, category)
        whole.add(rating, category)
        folder = str(PurePosixPath(str(row.get("id") or "")).parent)
        if folder not in ("", "."):
            counts = classes[(source, folder)]
            counts[0] += rating == "Unsafe"
            counts[1] += 1
    categories = sorted(whole.detected)
    return {
        "categories": categories,
        "sets": {name: one.numbers(categories) for name, one in sets.items()},
        WHOLE: whole.numbers(categories),
        "classes": {"count": len(classes), "most_removed": _most_removed(classes)},
    }


def share(part: int, whole: int, name: str) -> dict[str, Any]:
    """Count, share and its 95 % Wilson interval; None where there is nothing to have a share of."""
    return {
        name: part,
        "share": part / whole if whole else None,
        "interval": wilson_interval(part, whole) if whole else None,
    }


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with those of `columns` that the file has. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"not a parquet file: {error}", source=str(path)) from None
    with file:
        names = [name for name in columns if name in file.schema_arrow.names]
        if "rating" not in names:
            raise DataError(
                f"no column 'rating' (found: {', '.join(file.schema_arrow.names)}); give a file of annotations",
                source=str(path),
            )
        for batch in file.iter_batches(columns=names):
            yield from batch.to_pylist()


def gallery(path: Path, per_category: int) -> list[tuple[str, int, list[Shown]]]:
    """Flagged images by category: how many there are and some of them, at even distances."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(read_table(path, _COLUMNS)):
        if _rating(row) == "Unsafe":
            places[_category(row)].append(place)
    some = [evenly(found, per_category) if per_category > 1 else found[:per_category] for found in places.values()]
    chosen = {place for found in some for place in found}
    cards: dict[str, list[Shown]] = defaultdict(list)
    for place, row in enumerate(read_table(path, _SHOWN)):
        if place in chosen:
            title = f"{row.get('source') or path.stem}: {row.get('id') or place}"
            cards[_category(row)].append(Shown(title, str(row.get("rationale") or ""), embed(row.get("image"))))
    return [(name, len(places[name]), cards[name]) for name in sorted(places)]


def write_audit_page(
    path: Path,
    annotations: Path,
    found: Mapping[str, Any],
    facts: Mapping[str, str],
    per_category: int,
    totals: Mapping[str, int] | None = None,
    label: str = "",
) -> Path:
    """Write the page: the table of seed page 6.1, shares with intervals, most filtered classes, flagged images.

    `totals` are the images that each source had, broken ones counted; `facts` stand above the table.
    """
    whole = found[WHOLE]
    flagged = [_bar(name, numbers) for name, numbers in {**found["sets"], "all sets": whole}.items()]
    within = [_bar(f"{name} ({one['detected']})", one) for name, one in whole["categories"].items()]
    classes = [_bar(f"{one['class']} ({one['source']})", one) for one in found["classes"]["most_removed"]]
    page = environment().get_template("audit.html.j2")
    bars = {
        name: [bar for bar in rows if bar]
        for name, rows in (("flagged", flagged), ("within", within), ("classes", classes))
    }
    shown = {"found": found, "facts": facts, "label": label, "totals": totals or {}, "bars": bars}
    write_whole(path, page.render(**shown, gallery=gallery(annotations, per_category)))
    return path


def _rating(row: Mapping[str, Any]) -> str | None:
    rating = row.get("rating")
    return rating if rating in ("Safe", "Unsafe") and row.get("valid") is not False else None


def _category(row: Mapping[str, Any]) -> str:
    return str(row.get("category") or "no category named")


def _most_removed(classes: Mapping[tuple[str, str], Sequence[int]]) -> list[dict[str, Any]]:
    ranked = sorted(classes.items(), key=lambda one: (-one[1][0] / one[1][1], -one[1][0], one[0]))
    return [
        {"source": source, "class": name, "images": images, **share(unsafe, images, "unsafe")}
        for (source, name), (unsafe, images) in ranked[:_CLASSES]
        if unsafe
    ]


def _bar(title: str, numbers: Mapping[str, Any]) -> Bar | None:
    if numbers["share"] is None:
        return None
    low, high = numbers["interval"]
    return Bar(title, 100 * numbers["share"], 100 * low, 100 * high)
