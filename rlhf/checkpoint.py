"""The run folder and its checkpoints: written aside, hashed, renamed; the manifest comes last.

A folder `checkpoints/step-00000010` exists only if everything in it is complete. A crash while saving leaves a
`.partial` folder, which the next save removes; a damaged checkpoint is passed over for the one before it.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash
import yaml

from rlhf.config import Config, RunConfig, dump, home, load, resolve
from rlhf.errors import CheckpointError, ConfigError
from rlhf.ledger import write_whole

MANIFEST = "manifest.json"
_READING = ("config.yaml", "rejected.jsonl", "images")  # what a run leaves behind that was refused its inputs
_FREE_OF_RUN = ("checkpoint_every", "keep_checkpoints", "log_every", "max_restarts")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its folder, step and the small state saved with it."""

    folder: Path
    step: int
    state: dict[str, Any]


class CheckpointStore:
    """Checkpoints of one run, newest `keep` of them on disk beside a pinned one."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self.skipped: list[str] = []  # damaged checkpoints that were passed over, with the reason

    def begin(self, step: int) -> Path:
        """An empty folder to save into; nobody reads it before `commit`."""
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def commit(self, step: int, state: dict[str, Any], pinned: int | None = None) -> Checkpoint:
        """Hash what was saved, write state and manifest, rename, drop the oldest; the step `pinned` stays."""
        partial = self._partial(step)
        (partial / "state.json").write_text(json.dumps(state))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(partial)): _hash(path) for path in files}
        for path in files:
            _sync(path)
        (partial / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}))
        _sync(partial / MANIFEST)
        final = self._final(step)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self._folder)
        held = None if pinned is None else self._final(pinned)
        for old in [folder for folder in self._complete() if folder != held][: -self._keep]:
            shutil.rmtree(old)
        return Checkpoint(final, step, state)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose files all match their hashes."""
        for folder in reversed(self._complete()):
            if found := self._intact(folder):
                return found
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; None if it is damaged or not there."""
        return self._intact(self._final(step))

    def _intact(self, folder: Path) -> Checkpoint | None:
        problem = _damage(folder)
        if problem is not None:
            self.skipped.append(f"{folder.name}: {problem}")
            return None
        manifest = json.loads((folder / MANIFEST).read_text())
        return Checkpoint(folder, manifest["step"], json.loads((folder / "state.json").read_text()))

    def _complete(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))

    def _final(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _partial(self, step: int) -> Path:
        return self._folder / f".step-{step:08d}.partial"


class RunFolder:
    """The folder of one run: locked while in use, bound to one configuration, mirrored if its root is a URI.

    It is bound as soon as it holds something that was made: a run that was refused its inputs or its machine left
    nothing, and what is mended then is its configuration. `free` names sections that may differ between a run and its
    continuation, because no result depends on them. Raises CheckpointError if another live process holds the run, or
    if what the folder holds was made by another configuration.
    """

    def __init__(self, config: RunConfig, whole: Config, free: tuple[str, ...] = ()) -> None:
        self._remote, self.path = _remote(config), local_path(config)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._acquire()
        self._restore()
        self._bind(whole, free)
        self.checkpoints = CheckpointStore(self.path / "checkpoints", config.keep_checkpoints)

    def publish(self) -> None:
        """Copy the folder to its URI; nothing to do for a local root."""
        if self._remote:
            import fsspec

            target, path = fsspec.core.url_to_fs(self._remote)
            target.put(f"{self.path}/", path, recursive=True)

    def mark_complete(self) -> None:
        """Say that the run reached its end."""
        (self.path / "COMPLETE").write_text("")
        self.publish()

    @property
    def complete(self) -> bool:
        """Whether an earlier process finished this run."""
        return (self.path / "COMPLETE").exists()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _acquire(self) -> IO[str]:
        handle = (self.path / ".lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise CheckpointError(f"{self.path} is in use by another process; wait for it, or set run.name") from None
        return handle

    def _restore(self) -> None:
        if not self._remote or (self.path / "config.yaml").exists():
            return
        import fsspec

        source, path = fsspec.core.url_to_fs(self._remote)
        if source.exists(f"{path}/config.yaml"):
            source.get(f"{path}/", f"{self.path}/", recursive=True)

    def _bind(self, whole: Config, free: tuple[str, ...]) -> None:
        text = dump(whole)
        file = self.path / "config.yaml"
        made = [name for name in os.listdir(self.path) if name not in _READING and not name.startswith(".")]
        if not made or not file.exists():
            write_whole(file, text)
            return
        before, now = (_binding(one, free) for one in (_in_todays_keys(file, type(whole)), text))
        lines = difflib.unified_diff(before, now, "this run folder", "now", "", "", 0)
        changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        if changed:
            raise CheckpointError(
                f"{self.path} was started with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nset run.name to start a new run beside it, or give --fresh to begin again"
            )


def local_path(config: RunConfig) -> Path:
    """Where a run is written: below its root, or in the project's runs/ if the root is a URI (and mirrored there)."""
    root = home() / "runs" if _remote(config) else Path(resolve(config.root))
    return root / config.name


def discard(config: RunConfig) -> None:
    """Remove a run folder and everything in it (--fresh)."""
    shutil.rmtree(local_path(config), ignore_errors=True)
    remote = _remote(config)
    if remote:
        import fsspec

        target, path = fsspec.core.url_to_fs(remote)
        if target.exists(path):
            target.rm(path, recursive=True)


def _remote(config: RunConfig) -> str | None:
    return f"{config.root.rstrip('/')}/{config.name}" if "://" in config.root else None


def _in_todays_keys(file: Path, schema: type[Config]) -> str:
    """A folder's configuration with the defaults of keys that are newer than it; as it is where it no longer fits."""
    try:
        return dump(load(schema, file))
    except ConfigError:
        return file.read_text()


def _binding(text: str, free: tuple[str, ...]) -> list[str]:
    content = yaml.safe_load(text)
    for key in _FREE_OF_RUN:
        content["run"].pop(key, None)
    for section in free:
        content.pop(section, None)
    return yaml.safe_dump(content, sort_keys=False, width=1000).splitlines()


def _hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            state.update(chunk)
    return state.hexdigest()


def _damage(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return "no readable manifest"
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _hash(path) != expected:
            return f"{name} does not match its hash"
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
