"""A guard's data set: annotations, split by image, under augmented policies, as rows that the SFT job reads.

Source: LlavaGuard seed page, section 2. The folder is written aside and renamed, so it is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rlhf.data.prepared import file_hash
from rlhf.errors import ConfigError
from rlhf.guard.augment import Augmentation, Sample, augmented, is_default
from rlhf.guard.labels import Annotation, is_unambiguous
from rlhf.guard.policy import build_policy
from rlhf.guard.prompt import GuardRequest, guard_row
from rlhf.guard.splits import SPLITS, QuotaConfig, Split, balanced, copied, counts_of, split_images
from rlhf.guard.taxonomy import Taxonomy
from rlhf.ledger import write_whole

MANIFEST = "manifest.json"
_VERSIONS = Path(__file__).parent / "versions.yaml"


@dataclass(frozen=True, slots=True)
class Version:
    """One line of `versions.yaml`: the keys of an answer, and what is drawn for an unsafe and for a safe image."""

    name: str
    keys: tuple[str, ...]
    unsafe: Mapping[Augmentation, float]
    safe: Mapping[Augmentation, float]


def version(name: str) -> Version:
    """A version by name. Raises ConfigError with those that exist."""
    known = _versions()
    if name not in known:
        raise ConfigError([f"version: {name!r} is not known; choose one of {', '.join(known)}"])
    found = known[name]
    return Version(name, tuple(found["keys"]), found["unsafe"], found["safe"])


@dataclass(frozen=True, slots=True)
class Built:
    """Samples of all splits in order, and the split of every image."""

    samples: list[Sample]
    splits: dict[str, Split]


def build_samples(
    annotations: Sequence[Annotation],
    taxonomy: Taxonomy,
    made: Version,
    quotas: QuotaConfig,
    seed: int,
    image_root: Path | None = None,
) -> Built:
    """Every annotation under the policies of the version; with `image_root`, equal files are one image.

    Rationales are those of the annotations; `rationales.py` finishes them.
    """
    same = _content_of(image_root) if image_root is not None else str
    splits = split_images(annotations, quotas, seed, same)
    samples = []
    for one in annotations:
        sample = Sample(one.id, one.image, one.category, one.score, one.rating, one.rationale, one.overrides)
        plan = made.unsafe if one.rating == "Unsafe" else made.safe
        samples += augmented(sample, plan, taxonomy.ids, seed)
    return Built(samples, splits)


def row_of(sample: Sample, split: str, taxonomy: Taxonomy, keys: Sequence[str]) -> dict[str, Any]:
    """A sample as a row of LLaVA's JSON; beside the conversation stand the truth and how the policy was made."""
    policy = build_policy(taxonomy, sample.overrides, keys)
    category = taxonomy.category(sample.category).name
    fields = {
        "split": split,
        "rating": sample.rating,
        "category": category,
        "score": sample.score,
        "unambiguous": is_unambiguous(sample.score),
        "augmentation": sample.augmentation,
        "overrides": dict(sample.overrides),
        "base": sample.base,
    }
    request = GuardRequest(sample.id, sample.image, policy, sample.said, sample.asked)
    return guard_row(request, sample.rating, [category], sample.rationale, fields)


def write_dataset(
    folder: Path, built: Built, taxonomy: Taxonomy, keys: Sequence[str], seed: int, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all_data, a file per split, and what there is to train on; returns the manifest.

    train_balanced repeats the rarer rating, train_default_policy has no other policy. Both are there with answers of a
    rating alone, too, for the stages of section 3: train_rating_only_default_policy for 0, train_rating_only for 1.
    Raises ConfigError where training images lack.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parts = {name: [one for one in built.samples if built.splits[one.image] == name] for name in SPLITS}
    if not parts["train"]:
        raise ConfigError(["quotas: the test and validation sets take every image; lower them or annotate more"])
    even = [copied(sample, copy) for sample, copy in balanced(parts["train"], seed)]
    plain = [one for one in parts["train"] if is_default(one.augmentation, one.overrides)]
    files: dict[str, tuple[list[Sample], Sequence[str]]] = {
        "all_data": (built.samples, keys),
        **{name: (samples, keys) for name, samples in parts.items()},
        "train_balanced": (even, keys),
        "train_default_policy": (plain, keys),
        "train_rating_only": (even, ("rating",)),
        "train_rating_only_default_policy": (plain, ("rating",)),
    }
    for name, (samples, shown) in files.items():
        rows = [row_of(one, built.splits[one.image], taxonomy, shown) for one in samples]
        write_whole(partial / f"{name}.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    manifest = {
        **identity,
        "policy_sha256": build_policy(taxonomy, keys=keys).sha256,
        "splits": counts_of(built.samples, built.splits),
        "augmentations": dict(Counter(str(one.augmentation or "none") for one in built.samples)),
        "train_balanced": dict(Counter(one.rating for one in even)),
        "files": [file_hash(partial / f"{name}.json") for name in files],
    }
    write_whole(partial / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    partial.rename(folder)
    return manifest


def without_rationales(built: Built, keys: Sequence[str]) -> bool:
    """Whether a sample lacks the rationale that the version's answers have."""
    return "rationale" in keys and any(not one.rationale for one in built.samples)


def replaced(built: Built, samples: Sequence[Sample]) -> Built:
    """The same splits with other samples, of images that are known."""
    return replace(built, samples=list(samples))


def _content_of(root: Path) -> Any:
    def digest(image: str) -> str:
        with (root / image).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return digest


@lru_cache(maxsize=1)
def _versions() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_VERSIONS.read_text(encoding="utf-8"))
    return found
