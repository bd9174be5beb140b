"""The manifest beside scrubbed files, and the demand that a file of training data has one."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf.data.prepared import file_hash
from rlhf.errors import ConfigError

MANIFEST = "manifest.json"


def require_scrubbed(path: Path) -> None:
    """Raise ConfigError unless `jobs/scrub_safe_llava.py` wrote this file and nobody changed it since."""
    manifest = path.with_name(MANIFEST)
    remedy = "give a file that jobs/scrub_safe_llava.py wrote, or set data.require_scrubbed to false"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        known = {entry["name"]: entry["sha256"] for entry in content["files"]}
        scrubbed = path.name in content["sources"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError([f"data.train: {path} has no manifest of a scrubbing job beside it; {remedy}"]) from None
    if not scrubbed or path.name not in known:
        raise ConfigError([f"data.train: {manifest} does not name {path.name} among the scrubbed files; {remedy}"])
    if not path.is_file() or file_hash(path)["sha256"] != known[path.name]:
        raise ConfigError([f"data.train: {path} is not the file that was scrubbed: its content has changed; {remedy}"])
