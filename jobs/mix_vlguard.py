"""VLGuard's conversations with helpful ones in one training file: `python jobs/mix_vlguard.py --config ...`.

For fine-tuning a released model a sample of helpful rows is enough; for instruction tuning all of them are taken.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from jobs.command_line import claim_output, main
from rlhf.config import Config, resolve
from rlhf.data.prepared import file_hash
from rlhf.data.vlguard_mix import Source, mix, read_safety
from rlhf.errors import ConfigError
from rlhf.ledger import write_whole

_SHOWN = 3  # of the new ids; the manifest has all of them


class MixConfig(Config):
    """Which rows, and how many."""

    output: str
    """JSON file for the mixture; beside it goes a manifest with counts, the safety share and hashes."""
    safety: str
    """VLGuard's conversations, as `jobs/prepare_vlguard.py` writes them."""
    helpful: str | None = None
    """Helpful conversations: the model's own instruction data, or a text-only set; unset: safety rows alone."""
    helpful_format: Source = "llava"
    """llava: id, conversations, maybe image. alpaca: instruction, input, output, text only."""
    helpful_rows: int | None = Field(default=5000, ge=0)
    """How many are drawn, without replacement; null: all of them (mixed fine-tuning)."""
    safety_rows: int | None = Field(default=None, ge=0)
    """A seeded part of the safety rows, contained in larger ones, for a size sweep; null: all of them."""
    hold_out: tuple[str, ...] = ()
    """Harmful categories whose images are left out, for example [privacy]."""
    seed: int = 0
    """Of both samples."""

    @model_validator(mode="after")
    def _helpful_is_named(self) -> MixConfig:
        if self.helpful is None and self.helpful_rows:
            raise ConfigError(["helpful: name the file of helpful rows, or set helpful_rows to 0"])
        return self


def run(config: MixConfig) -> dict[str, Any]:
    """Write the mixture and its manifest; returns the manifest."""
    output, safety = Path(resolve(config.output)), Path(resolve(config.safety))
    helpful = Path(resolve(config.helpful)) if config.helpful else None
    claim_output(output, *(path for path in (safety, helpful) if path is not None))
    rows = read_safety(safety, config.safety_rows, config.hold_out, config.seed)
    made = mix(output, rows, helpful, config.helpful_format, config.helpful_rows, config.seed)
    manifest = {
        **asdict(made),
        "safety_share": made.safety_share,
        "config": config.model_dump(mode="json"),
        "sources": [file_hash(path) for path in (safety, helpful) if path is not None],
        "file": file_hash(output),
    }
    write_whole(output.with_suffix(".manifest.json"), json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    share = f"{100 * made.safety_share:.2f} % of {made.helpful + made.safety} rows"
    print(f"{output}: {made.helpful} helpful and {made.safety} safety rows ({share})", flush=True)
    if made.renamed:
        some = ", ".join(list(made.renamed)[:_SHOWN])
        print(f"  {len(made.renamed)} rows have a new id, because theirs was taken, such as {some}", flush=True)
    return manifest


if __name__ == "__main__":
    main(MixConfig, run, __doc__ or "")
