"""A guard's data set from annotated images: `python jobs/build_guard_data.py --config ...`.

Splits by image, changes policies (v0 to v5), lets a model write the rationales that annotations lack and writes LLaVA
JSON that `jobs/sft_safe_llava.py` reads. A killed job goes on: finished rationales stay in `work`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs.command_line import main
from rlhf.batch import Prompt
from rlhf.config import Config, resolve
from rlhf.data.prepared import file_hash
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError
from rlhf.guard.dataset import MANIFEST, Built, build_samples, replaced, version, without_rationales, write_dataset
from rlhf.guard.labels import read_annotations
from rlhf.guard.policy import build_policy
from rlhf.guard.rationales import Answering, RationaleConfig, RationaleEngineConfig, finish, pending, with_rationales
from rlhf.guard.splits import QuotaConfig
from rlhf.guard.taxonomy import Taxonomy, taxonomy, taxonomy_file
from rlhf.inference import Decoding
from rlhf.ledger import Ledger
from rlhf.metrics import Progress


class GuardDataConfig(Config):
    """From annotated images to rows under many policies."""

    annotations: str
    """JSON list of rows {id, image, category, score} and optionally rationale."""
    image_root: str
    """Folder that image paths are relative to."""
    folder: str
    """Where the result goes: train, eval and test files, rejected.jsonl, manifest.json."""
    work: str
    """Where rationales are kept as they come; may be removed afterwards."""
    taxonomy: str = "default"
    """A packaged taxonomy (default, eu, tiny) or a YAML file of the same form ("./mine.yaml")."""
    category_names: dict[str, str] = Field(default_factory=dict)
    """What labels of the annotations mean, by id of the taxonomy; its own ids and names need no entry."""
    version: str = "v24"
    """Which augmentations are drawn and which keys an answer has: see rlhf/guard/versions.yaml."""
    quotas: QuotaConfig = QuotaConfig()
    """Images that leave training."""
    seed: int = 42
    """Splits, augmentations and order; same seed, same bytes."""
    rationales: RationaleConfig | None = None
    """Who writes missing rationales; unset: a missing one is refused."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of annotations is unusable, or of samples has no rationale."""


def run(config: GuardDataConfig) -> dict[str, Any]:
    """Build the folder, or say that it is done; returns its manifest."""
    folder, source = Path(resolve(config.folder)), Path(resolve(config.annotations))
    if not source.is_file():
        raise ConfigError([f"annotations: no such file {source}; mend the path"])
    chosen = taxonomy(resolve(config.taxonomy))
    identity = _identity(config, source)
    manifest = _finished(folder, identity)
    if manifest is None:
        manifest = _build(config, folder, source, chosen, identity)
    for split, counts in manifest["splits"].items():
        print(f"{split}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"left out: {manifest['dropped'] or 'nothing'}; the data set is in {folder}", flush=True)
    return manifest


def _build(
    config: GuardDataConfig, folder: Path, source: Path, chosen: Taxonomy, identity: dict[str, Any]
) -> dict[str, Any]:
    made, root = version(config.version), Path(resolve(config.image_root))
    rejected = RejectedRows(Path(resolve(config.work)) / "rejected.jsonl")
    annotations, dropped = read_annotations(source, root, chosen, rejected, config.category_names)
    rejected.check(len(annotations) + rejected.count + dropped.total(), config.max_rejected_share)
    if not annotations:
        raise DataError("no usable annotation", source=str(source))
    built = build_samples(annotations, chosen, made, config.quotas, config.seed, root)
    failed: Counter[str] = Counter()
    if "rationale" in made.keys:
        built, failed = _explained(config, built, chosen, root, rejected)
    identity = identity | {"rejected": dict(rejected.kinds), "dropped": dict(dropped), "no_rationale": dict(failed)}
    return write_dataset(folder, built, chosen, made.keys, config.seed, identity)


def _explained(
    config: GuardDataConfig, built: Built, chosen: Taxonomy, root: Path, rejected: RejectedRows
) -> tuple[Built, Counter[str]]:
    if config.rationales is None or not without_rationales(built, ("rationale",)):
        return replaced(built, [finish(one, one.rationale, chosen) for one in built.samples]), Counter()
    ledger_folder = Path(resolve(config.work)) / "rationales"
    made_by = config.rationales.made_by | {"policy": build_policy(chosen).sha256}
    with Ledger(ledger_folder, made_by) as ledger:
        write = partial(with_rationales, built.samples, chosen, root, config.rationales, ledger)
        if config.rationales.engine is not None:  # which shows how far it is
            samples, failed = write(answer=_answering(config.rationales.engine, ledger_folder, rejected))
        else:
            kept = len(ledger.entries)
            with Progress("rationales", kept + pending(built.samples, ledger), kept) as progress:
                samples, failed = write(lambda done: progress.advance(done, {}))
    lost = len(built.samples) - len(samples)
    if lost > config.max_rejected_share * len(built.samples):
        raise DataError(
            f"{lost} of {len(built.samples)} samples have no rationale ({dict(failed)}), at most a share of "
            f"{config.max_rejected_share:g} may lack one; run again to ask for them again",
            source=config.annotations,
        )
    return replaced(built, samples), failed


def _answering(engine: RationaleEngineConfig, folder: Path, rejected: RejectedRows) -> Answering:
    """Asks the engine, on Ray; what it said is kept in `folder` by the try."""

    def answer(prompts: Sequence[Prompt], decoding: Decoding) -> dict[str, str]:
        from jobs.generation import answer_prompts

        name = f"try_{decoding.seed}"
        models = {name: (engine.model, prompts)}
        found = answer_prompts(engine.generation(decoding), models, folder, rejected)[name]
        return {one.prompt_id: one.response for one in found.values()}

    return answer


def _identity(config: GuardDataConfig, source: Path) -> dict[str, Any]:
    return {
        "annotations": file_hash(source),
        "taxonomy": file_hash(taxonomy_file(resolve(config.taxonomy))),
        "category_names": config.category_names,
        "version": config.version,
        "quotas": config.quotas.model_dump(),
        "seed": config.seed,
        "rationales": config.rationales.made_by["rationales"] if config.rationales else None,
    }


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not folder.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError([f"folder: {folder} exists and has no readable {MANIFEST}; give another folder"]) from None
    if changed := [key for key in identity if manifest.get(key) != identity[key]]:
        raise ConfigError([f"folder: {folder} was built from other {', '.join(changed)}; give another folder"])
    return manifest


if __name__ == "__main__":
    main(GuardDataConfig, run, __doc__ or "")
