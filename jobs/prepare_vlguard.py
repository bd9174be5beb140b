"""VLGuard's train.json as LLaVA conversations: `python jobs/prepare_vlguard.py --meta train.json --output FILE`.

Every row is checked first; a row of another shape stops the job and is named. Seed 0 gives the published order.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.command_line import claim_output, refusals
from rlhf.data.rejected import RejectedRows
from rlhf.data.vlguard import describe_rows, read_vlguard
from rlhf.data.vlguard_llava import conversation_counts, convert
from rlhf.errors import DataError
from rlhf.ledger import write_whole


def run(meta: Path, output: Path, seed: int = 0, image_prefix: str = "") -> dict[str, Any]:
    """Convert one file; returns what it held. Raises DataError where a row is malformed or cannot be trained on."""
    claim_output(output, meta)
    rejected = RejectedRows()
    rows = read_vlguard(meta, rejected)
    rejected.check(len(rows) + rejected.count)
    if not rows:
        raise DataError("no rows in it", source=str(meta))
    conversations = convert(rows, seed=seed, image_prefix=image_prefix, source=str(meta))
    write_whole(output, json.dumps(conversations, indent=2))
    return {**describe_rows(rows), **conversation_counts(conversations)}


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, say what there was. Errors end as everywhere."""
    parser = argparse.ArgumentParser(prog="jobs/prepare_vlguard.py", description=__doc__)
    parser.add_argument("--meta", type=Path, required=True, help="VLGuard's train.json")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the conversations")
    parser.add_argument("--seed", type=int, default=0, help="of the order of each safe image's two questions")
    parser.add_argument("--image-prefix", default="", help='put before image paths, for example "vlguard/train"')
    chosen = parser.parse_args(arguments)
    with refusals():
        _say(chosen.output, run(chosen.meta, chosen.output, chosen.seed, chosen.image_prefix))


def _say(output: Path, found: Mapping[str, Any]) -> None:
    print(
        f"{output}: {found['conversations']} conversations, {found['two_turns']} of two turns (unsafe images), "
        f"{found['four_turns']} of four (safe images)"
    )
    if found["placeholders"]:
        print(f"  {len(found['placeholders'])} instructions say nothing, such as {found['placeholders'][0]!r}; kept")
    for what in ("repeated_images", "repeated_ids"):
        for name, count in found[what].items():
            print(f"  {what.removesuffix('s').replace('_', ' ')}: {name} ({count} times)")
    if found["repeated_ids"]:
        print("  ids are as published; training refuses a repeated one, and jobs/mix_vlguard.py gives it a new one")


if __name__ == "__main__":
    main(sys.argv[1:])
