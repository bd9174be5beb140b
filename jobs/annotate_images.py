"""Verdicts of a guard on many images, on Ray Data: `python jobs/annotate_images.py --config ...`.

Reads folders, tar shards, parquet files and, if allowed, addresses. Writes `annotations.parquet`, `rejected.jsonl`,
`evaluation/audit.json` and `report.html` in the run folder; kill it and repeat the command to go on.
`annotate_images.py audit --annotations FILE.parquet --output PAGE.html` makes the page of any file of annotations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from jobs import command_line
from rlhf.checkpoint import RunFolder
from rlhf.config import resolve
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError
from rlhf.guard.annotations import annotation_row, write_annotations
from rlhf.guard.asking import GuardGenerationConfig, batch_prompt, held_to, require_room_for
from rlhf.guard.audit import WHOLE, audit, write_audit_page
from rlhf.guard.fetch import FetchConfig
from rlhf.guard.image_sources import Found, ImageSource, Unpacker, item_of, key_of, part_file, plan_units, read_found
from rlhf.guard.policy import Policy
from rlhf.guard.policy_config import PolicyConfig
from rlhf.guard.prompt import GuardRequest
from rlhf.inference import Answer, fingerprint
from rlhf.ledger import write_whole
from rlhf.report import REPORT_FILE

ANNOTATIONS = "annotations.parquet"


class AnnotateConfig(GuardGenerationConfig):
    """Which images, which guard, which policy."""

    sources: dict[str, ImageSource] = Field(min_length=1)
    """Sets of images by name, as the audit calls them: sources.<name>.folder, .tar or .parquet."""
    policy: PolicyConfig = PolicyConfig()
    allow_urls: bool = False
    """Fetch images from addresses; this machine then talks to whatever a column names."""
    fetch: FetchConfig = FetchConfig()
    unpack_workers: int = Field(default=4, ge=1)
    """CPUs that unpack and check images at the same time, at most."""
    images_per_unit: int = Field(default=500, ge=1)
    """Images of a folder that are checked together, which is what a killed worker can cost."""
    gallery: int = Field(default=8, ge=0)
    """Flagged images of each category on the page."""
    label: str = ""
    """What the data are; stands above the audit."""

    @model_validator(mode="after")
    def _addresses_are_allowed(self) -> AnnotateConfig:
        named = [name for name, source in self.sources.items() if source.urls]
        if named and not self.allow_urls:
            raise ConfigError(
                [f"sources.{name}.urls: addresses are fetched only with allow_urls=true" for name in named]
            )
        return self


def run(config: AnnotateConfig) -> Path:
    """Annotate every image, or go on where an earlier process was stopped; returns the table."""
    folder = RunFolder(config.run, config, free=("workers", "unpack_workers"))
    try:
        target = folder.path / ANNOTATIONS
        if folder.complete:
            print(f"{config.run.name} is complete: {target} (--fresh begins again)", flush=True)
        else:
            _run(config, folder.path, target)
            folder.mark_complete()
        print(f"report: {folder.path / REPORT_FILE}", flush=True)
        return target
    finally:
        folder.close()


def _run(config: AnnotateConfig, folder: Path, target: Path) -> None:
    from rlhf.data.processor import Processor

    began = time.monotonic()
    rejected = RejectedRows(folder / "rejected.jsonl")
    policy = config.policy.build()
    processor = Processor.load(config.model)  # a missing model is refused before anything starts
    require_room_for(config, [GuardRequest(policy.name, "", policy)], processor, with_image=False)
    found, totals = unpack(config, folder, rejected)
    if not found:
        rejected.check(rejected.count, config.max_rejected_share)
        raise DataError("no usable image", source=", ".join(config.sources))
    require_room_for(config, [_request(found[0], policy)], processor)
    answers = _answers(config, policy, found, folder, rejected)
    model_hash = fingerprint(resolve(config.model.path)) or config.model.path
    rows = (
        annotation_row(one, answers[name], policy, model_hash) for one in found if (name := _prompt_id(one)) in answers
    )
    count = write_annotations(target, rows)
    facts = {
        "model": f"{config.model.path} ({model_hash})",
        "policy": policy.words,
        "decoding": config.sampling.words,
        "engine": f"{config.rollout.engine} {config.rollout.dtype}",
        "broken images": f"{rejected.count} of {totals.total()}: see rejected.jsonl",
    }
    numbers = write_audit(folder, target, facts, config.gallery, totals, config.label)
    print(
        f"{count} images annotated, {rejected.count} of {totals.total()} rejected, "
        f"{numbers[WHOLE]['ratings']['Unsafe']} unsafe, {numbers[WHOLE]['invalid']} invalid, "
        f"{time.monotonic() - began:.0f} s: {target}",
        flush=True,
    )


def unpack(config: AnnotateConfig, folder: Path, rejected: RejectedRows) -> tuple[list[Found], Counter[str]]:
    """The images of all sources in order, and how many each had; what an earlier process found is not opened again."""
    units = plan_units(config.sources, config.images_per_unit)
    parts = folder / "found" / key_of(config.sources, units)
    pending = [unit for unit in units if not part_file(parts, unit.number).exists()]
    print(f"{len(units) - len(pending)} of {len(units)} units of images are unpacked and checked", flush=True)
    if pending:
        from jobs.units import run_units

        arguments = (config.sources, parts, folder / "images", config.fetch)
        run_units(Unpacker, arguments, [item_of(unit) for unit in pending], config.unpack_workers)
    return read_found([part_file(parts, unit.number) for unit in units], rejected)


def write_audit(
    folder: Path, annotations: Path, facts: dict[str, str], gallery: int, totals: Counter[str], label: str
) -> dict[str, Any]:
    """`evaluation/audit.json` and the page; returns the numbers."""
    numbers = audit(annotations)
    target = folder / "evaluation" / "audit.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, json.dumps({**numbers, "totals": totals, "facts": facts}, indent=2, ensure_ascii=False) + "\n")
    write_audit_page(folder / REPORT_FILE, annotations, numbers, facts, gallery, totals, label)
    return numbers


def audit_page(arguments: Sequence[str]) -> None:
    """`audit`: the page of any file of annotations, without a cluster or a model."""
    parser = argparse.ArgumentParser(prog="annotate_images.py audit", description="The page of a file of annotations.")
    parser.add_argument("--annotations", type=Path, required=True, help="parquet file with a column rating")
    parser.add_argument("--output", type=Path, required=True, help="the page to write")
    parser.add_argument("--gallery", type=int, default=8, help="flagged images of each category (default 8)")
    options = parser.parse_args(arguments)
    with command_line.refusals():
        command_line.claim_output(options.output, options.annotations)
        facts = {"file": str(options.annotations)}
        write_audit_page(options.output, options.annotations, audit(options.annotations), facts, options.gallery)
        print(f"report: {options.output}", flush=True)


def _answers(
    config: AnnotateConfig, policy: Policy, found: Sequence[Found], folder: Path, rejected: RejectedRows
) -> dict[str, Answer]:
    from jobs.generation import answer_prompts

    requests = [_request(one, policy) for one in found]
    prompts = [batch_prompt(request, one.source, one.number) for request, one in zip(requests, found, strict=True)]
    models = {"guard": (config.model, prompts)}
    return answer_prompts(held_to(config, requests[0]), models, folder / "generation", rejected)["guard"]


def _request(found: Found, policy: Policy) -> GuardRequest:
    return GuardRequest(found.id, found.image, policy)


def _prompt_id(found: Found) -> str:
    return f"{found.source}:{found.number}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["audit"]:
        audit_page(sys.argv[2:])
    else:
        command_line.main(AnnotateConfig, run, __doc__ or "")
