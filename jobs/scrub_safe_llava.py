"""Biometric information out of LLaVA files, on Ray Data: `python jobs/scrub_safe_llava.py --config ...`.

Scrubbed units stay in `work`: a killed job goes on from there. The result is a folder with a scrubbed file for each
source, the lineage of every change, an audit and a page to look at.
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
from rlhf.data.json_stream import plan_spans
from rlhf.data.prepared import file_hash
from rlhf.errors import ConfigError
from rlhf.scrub.engines import VERSION, EngineConfig
from rlhf.scrub.faces import ImageCopies, ImagesConfig, require_detector
from rlhf.scrub.files import Scrubber, Unit, assemble, blurred_folder, part_file
from rlhf.scrub.manifest import MANIFEST


class ScrubConfig(Config):
    """From files of conversations to files that tell nothing biometric."""

    sources: tuple[str, ...] = Field(min_length=1)
    """JSON files in LLaVA's format; a scrubbed file has the name of its source."""
    folder: str
    """Where the result goes: scrubbed files, ledger.parquet, audit.json, rejected.jsonl, report.html, manifest.json."""
    work: str
    """Where finished units are kept; on a cluster, a file system that all nodes share. May be removed afterwards."""
    image_root: str | None = None
    """Folder of the images; with it, rows whose image is missing or broken are refused."""
    hair: bool = False
    """Also take out hair colour and style, which Safe-LLaVA allows."""
    engine: EngineConfig = EngineConfig()
    """Who rewrites what is told in passing; the rules audit every engine."""
    images: ImagesConfig = ImagesConfig()
    """Whether faces in the images are blurred."""
    workers: int = Field(default=4, ge=1)
    """CPUs that scrub at the same time, at most."""
    rows_per_unit: int = Field(default=10_000, ge=1)
    """Rows of a unit, which is what a killed worker can cost."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of rows is unusable."""

    @model_validator(mode="after")
    def _images_are_somewhere(self) -> ScrubConfig:
        if self.images.kind == "blur" and self.image_root is None:
            raise ConfigError(["image_root: images.kind blur needs the folder of the images"])
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> ScrubConfig:
        names = [Path(source).name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError([f"sources: two files are called {', '.join(twice)}; scrub them into two folders"])
        return self


def run(config: ScrubConfig) -> dict[str, Any]:
    """Scrub the files, or say that it is done; returns the manifest."""
    began, folder, work = time.monotonic(), Path(resolve(config.folder)), Path(resolve(config.work))
    paths = [Path(resolve(source)) for source in config.sources]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ConfigError([f"sources: no such file {path}; mend the path" for path in missing])
    identity = {
        "scrubbed_from": [file_hash(path) for path in paths],
        "hair": config.hair,
        "version": VERSION,
        "engine": config.engine.identity,
        "images": config.images.identity,
    }
    manifest = _finished(folder, identity)
    if manifest is None:
        cut = json.dumps([identity, config.rows_per_unit, config.image_root])
        parts = work / hashlib.sha256(cut.encode()).hexdigest()[:16]
        units = _plan(paths, config.rows_per_unit)
        pending = [asdict(unit) for unit in units if not part_file(parts, unit).exists()]
        print(f"{len(units) - len(pending)} of {len(units)} units are scrubbed", flush=True)
        root = Path(resolve(config.image_root)) if config.image_root is not None else None
        if pending:
            require_detector(config.images)
            arguments = (parts, root, config.hair, config.engine, work / "answers", config.images)
            run_units(Scrubber, arguments, pending, config.workers, config.engine.gpus)
        copies = None
        if root is not None and config.images.kind == "blur":
            copies = ImageCopies(config.images, root, blurred_folder(parts))
        manifest = assemble(folder, identity, units, parts, config.max_rejected_share, config.engine, copies)
        print(f"scrubbed in {time.monotonic() - began:.0f} s", flush=True)
    for name, count in manifest["sources"].items():
        print(f"{folder / name}: {count['rows']} rows, {count['changed']} of them changed")
    print(f"rejected: {manifest['rejected'] or 'none'}; report: {folder / 'report.html'}", flush=True)
    return manifest


def _plan(paths: list[Path], rows_per_unit: int) -> list[Unit]:
    units: list[Unit] = []
    for path in paths:
        for span in plan_spans(path, rows_per_unit):
            units.append(Unit(len(units), path.name, str(path), **asdict(span)))
    return units


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not folder.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError([f"folder: {folder} exists and has no readable {MANIFEST}; give another folder"]) from None
    if changed := [key for key in identity if manifest.get(key) != identity[key]]:
        raise ConfigError(
            [f"folder: {folder} was scrubbed from or with other {', '.join(changed)}; give another folder"]
        )
    return manifest


if __name__ == "__main__":
    main(ScrubConfig, run, __doc__ or "")
