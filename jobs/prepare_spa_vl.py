"""SPA-VL from the hub's files to training JSON, on Ray Data: `python jobs/prepare_spa_vl.py --config ...`.

Converted rows and images stay in `converted`: a killed job goes on from there, and other subsets of the same files are
prepared from there in seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from jobs.command_line import main
from jobs.units import run_units
from rlhf.config import Config, resolve
from rlhf.data.meta_files import check_model_columns
from rlhf.data.prepared import Prepared, file_hash, named, read_manifest, write_prepared
from rlhf.data.spa_vl_hub import Converter, SourceConfig, Unit, part_file, plan_units, read_meta, source_files
from rlhf.data.subset import SubsetConfig
from rlhf.errors import ConfigError


class PrepareConfig(Config):
    """From the hub's files to a folder that the other jobs read."""

    folder: str
    """Where the prepared data go: config.json (keyword -> file), one JSON per keyword, images/ and manifest.json."""
    converted: str
    """Where converted rows and images are kept, for going on after a crash and for other subsets; on a cluster, a
    file system that all nodes share. May be removed afterwards."""
    source: SourceConfig
    subset: SubsetConfig = SubsetConfig()
    workers: int = Field(default=4, ge=1)
    """CPUs that convert at the same time, at most."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of rows is unusable."""

    @model_validator(mode="after")
    def _filters_can_work(self) -> PrepareConfig:
        source, subset, problems = self.source, self.subset, []
        remedy = "set source.meta_files (and source.split train), or drop the filter"
        if subset.question_types and not source.knows_question_types:
            problems.append(f"subset.question_types: these files do not say the type of a question; {remedy}")
        if subset.classes and not source.knows_classes:
            problems.append(
                f"subset.{'/'.join(subset.classes)}: these files do not say the class of an image; {remedy}"
            )
        if subset.response_models and not source.knows_question_types:
            problems.append(f"subset.response_models: these files do not say who gave an answer; {remedy}")
        if problems:
            raise ConfigError(problems)
        return self


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare the folder, or say that it is done; returns its manifest."""
    began = time.monotonic()
    folder, source = Path(resolve(config.folder)), config.source
    with_models = bool(config.subset.response_models)
    units = plan_units(source)
    total = sum(unit.rows for unit in units)
    if config.subset.size is not None and config.subset.size > total:
        where = named(list(dict.fromkeys(unit.path for unit in units)))
        raise ConfigError([f"subset.size: {config.subset.size} rows are asked for, {where} have {total}; lower it"])
    sources = [file_hash(path) for path in source_files(source, with_models)]
    if with_models:
        check_model_columns(Path(resolve(source.meta_files or "")), config.subset.response_models)
    prepared = Prepared(source.split, config.subset, sources)
    manifest = read_manifest(folder, prepared)
    if manifest is None:
        converted = Path(resolve(config.converted))
        parts, images = converted / "parts" / _key(config, sources, with_models), converted / "images"
        _convert(config, units, parts, images)
        files = [part_file(parts, unit) for unit in units]
        manifest = write_prepared(folder, prepared, files, images, config.max_rejected_share)
        print(f"prepared in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{folder}: {manifest['rows']['chosen']} rows, {manifest['images']} images, keywords {manifest['keywords']}")
    for reason in ("rejected", "filtered"):
        print(f"  {reason}: {manifest['rows'][reason] or 'none'}", flush=True)
    return manifest


def _key(config: PrepareConfig, sources: list[dict[str, Any]], with_models: bool) -> str:
    """Parts are shared by all subsets of the same files, and by nothing else."""
    cut = [config.source.split, config.source.image_folder, with_models, sources]
    return hashlib.sha256(json.dumps(cut).encode()).hexdigest()[:16]


def _convert(config: PrepareConfig, units: list[Unit], parts: Path, images: Path) -> None:
    pending = [unit for unit in units if not part_file(parts, unit).exists()]
    print(f"{len(units) - len(pending)} of {len(units)} units are converted", flush=True)
    if not pending:
        return
    meta = read_meta(config.source, bool(config.subset.response_models))  # once, for all workers
    run_units(Converter, (config.source, parts, images, meta), [asdict(unit) for unit in pending], config.workers)


if __name__ == "__main__":
    main(PrepareConfig, run, __doc__ or "")
