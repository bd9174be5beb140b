"""Ray's futures as `rlhf.roles.Pending`, with its errors translated into ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlhf.errors import SafeVLError, WorkerLostError

T = TypeVar("T")
_PATIENCE_SECONDS = 20


class RayPending(Generic[T]):
    """Results of one verb on every actor of a role, merged when asked for."""

    def __init__(self, role: str, refs: Sequence[Any], merge: Callable[[list[Any]], T]) -> None:
        self._role, self._refs, self._merge = role, list(refs), merge

    def result(self) -> T:
        """Wait for all. Raises WorkerLostError naming the role, or the error that an actor raised."""
        return self._merge(wait(self._role, self._refs))


def wait(role: str, refs: Sequence[Any]) -> list[Any]:
    """`ray.get` that raises SafeVL's errors."""
    try:
        return ray.get(list(refs))
    except RayTaskError as error:
        if isinstance(error.cause, SafeVLError):
            raise error.cause from None
        lost = _death(refs)  # the ranks that survive one fail too, in the collective that they shared with it
        if lost is not None:
            raise WorkerLostError(role, lost) from None
        raise
    except RayActorError as error:
        raise WorkerLostError(role, str(error).splitlines()[0]) from None


def nothing(results: list[Any]) -> None:
    """Merge for verbs without an answer."""


def _death(refs: Sequence[Any]) -> str | None:
    for ref in refs:
        try:
            ray.get(ref, timeout=_PATIENCE_SECONDS)
        except RayActorError as error:
            return str(error).splitlines()[0]
        except (RayTaskError, GetTimeoutError):
            continue
    return None
