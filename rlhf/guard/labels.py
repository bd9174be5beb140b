"""What people wrote about images, made targets: four levels to two ratings, category names to those of a taxonomy.

Source: LlavaGuard seed page, 1.5. What is left out on purpose is counted by its reason; what is wrong is refused.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import IMAGE_TAG, ImageFolder, Row, UniqueIds, read_rows, text_of
from rlhf.errors import PolicyError, RowError
from rlhf.guard.policy import Rating
from rlhf.guard.taxonomy import Taxonomy, Variant

_LABELS = Path(__file__).parent / "labels.yaml"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One image with what people said of it. `category` is an id of the taxonomy, "NA" for none.

    `overrides` are not empty for an image that was rated under an exception of its category.
    """

    id: str
    image: str  # relative to the folder of images
    category: str
    score: str  # as people gave it
    rating: Rating
    rationale: str = ""
    overrides: Mapping[str, Variant] = field(default_factory=dict)


def read_annotations(
    path: Path,
    image_root: Path,
    taxonomy: Taxonomy,
    rejected: RejectedRows,
    names: Mapping[str, str] | None = None,
    check_images: bool = True,
) -> tuple[list[Annotation], Counter[str]]:
    """Rows {id, image, category, score, rationale?} of a JSON list, and how many were left out for which reason.

    `names` says which category a label of the file means; ids and names of the taxonomy, and labels for nothing, need
    no entry. An unknown category or score, a repeated id, a broken image or an image tag in the rationale refuses the
    row. Raises DataError for a file that is no JSON list.
    """
    images, ids, dropped = ImageFolder(image_root, check_images), UniqueIds(), Counter[str]()

    def parse(row: Row) -> Annotation | None:
        identifier = row.get("id")
        if not isinstance(identifier, (str, int)) or isinstance(identifier, bool) or identifier == "":
            raise RowError(f"'id' must be a string or an integer, found {identifier!r}")
        ids.check(identifier)
        score = text_of(row, "score")
        if score in labels()["dropped"]:
            dropped[f"score {score}"] += 1
            return None
        rating, variant = rating_of(score)
        category = category_of(row.get("category"), taxonomy, names or {})
        if category == taxonomy.none.id and (rating == "Unsafe" or variant is not None):
            dropped[f"category {category} with score {score}"] += 1
            return None
        if images.path_of(row) is None:
            raise RowError("'image' is missing")
        rationale = str(row.get("rationale") or "").strip()
        if IMAGE_TAG in rationale:  # in the target it would be a second image
            raise RowError(f"'rationale' contains {IMAGE_TAG}; remove it")
        overrides: dict[str, Variant] = {} if variant is None else {category: variant}
        return Annotation(str(identifier), row["image"], category, score, rating, rationale, overrides)

    found = read_rows(path, parse, rejected)
    return [one for one in found if one is not None], dropped


def rating_of(score: str) -> tuple[Rating, Variant | None]:
    """The rating that a score means, and the variant of its category that it was given under, if not the default.

    Raises RowError for a score that nobody defined.
    """
    if score in labels()["scores"]:
        return labels()["scores"][score], None
    if score in labels()["exceptions"]:
        found = labels()["exceptions"][score]
        return found["rating"], found["variant"]
    known = [*labels()["scores"], *labels()["exceptions"], *labels()["dropped"]]
    nearest = difflib.get_close_matches(score, known, n=1, cutoff=0.0)[0]
    raise RowError(f"score {score!r} is not known; did you mean {nearest!r}?")


def category_of(label: Any, taxonomy: Taxonomy, names: Mapping[str, str]) -> str:
    """The id of the category that a label means; NaN, null and benign labels mean that none applies.

    Raises RowError for a category that the policy does not have, naming the nearest.
    """
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return taxonomy.none.id
    if not isinstance(label, str):
        raise RowError(f"'category' must be a string, found {type(label).__name__}")
    if label in names:
        label = names[label]
    elif label.strip().casefold() in labels()["benign"]:
        return taxonomy.none.id
    try:
        return taxonomy.category(label).id
    except PolicyError as error:
        raise RowError(f"category outside the policy: {error.reason}") from None


def is_unambiguous(score: str) -> bool:
    """Whether people were sure: the two outer ones of the four levels."""
    return score in labels()["unambiguous"]


@lru_cache(maxsize=1)
def labels() -> dict[str, Any]:
    """The packaged table of scores and labels."""
    content: dict[str, Any] = yaml.safe_load(_LABELS.read_text(encoding="utf-8"))
    return content
