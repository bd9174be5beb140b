"""What conversions between checkpoint layouts share: finding both ends, checking every tensor, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.config import resolve
from rlhf.errors import CheckpointError, ConfigError


def find(name: str, key: str) -> Path:
    """A local directory, or the snapshot of a hub model. Raises ConfigError if there is neither."""
    folder = Path(resolve(name))
    if not folder.is_dir() and not folder.is_absolute():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name))
        except Exception as error:  # no network, no such model, no right to it
            raise ConfigError(
                [f"{key}: {name} is no directory and not to be fetched ({type(error).__name__}): name a local one"]
            ) from error
    if not (folder / "config.json").exists():
        raise ConfigError([f"{key}: {folder} holds no config.json"])
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected an object, found {type(content).__name__}"])
    return content


def renamed(name: str, rename: Callable[[str], str], folder: Path, kind: str) -> str:
    """`rename(name)`. Raises CheckpointError where it knows no such name."""
    try:
        return rename(name)
    except KeyError:
        raise CheckpointError(f"{folder}: {name} belongs to another architecture than {kind}") from None


class Expected:
    """The parameters of a model by name, each to be seen once and in its shape."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self.seen: set[str] = set()

    def see(self, name: str, tensor: Tensor, at: Path) -> None:
        """Raises CheckpointError for a tensor that is unknown, misshapen or there twice."""
        if name not in self._shapes:
            raise CheckpointError(f"{at}: {name} is no parameter of the model that config.json describes")
        if tuple(tensor.shape) != self._shapes[name]:
            raise CheckpointError(f"{at}: {name} is {tuple(tensor.shape)}, config.json asks for {self._shapes[name]}")
        if name in self.seen:
            raise CheckpointError(f"{at}: {name} is there twice")
        self.seen.add(name)

    def require_all(self, at: Path) -> None:
        """Raises CheckpointError with what was never seen."""
        if missing := sorted(set(self._shapes) - self.seen):
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise CheckpointError(f"{at} lacks {shown}")


class Aside:
    """A folder beside `target` that takes its place when all went well, and vanishes otherwise."""

    def __init__(self, target: Path) -> None:
        self._target, self._aside = target, target.with_name(target.name + ".partial")

    def __enter__(self) -> Path:
        if self._target.exists():
            raise ConfigError([f"target: {self._target} exists already; name another one or remove it"])
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        return self._aside

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self._aside, self._target)
        else:
            shutil.rmtree(self._aside, ignore_errors=True)
