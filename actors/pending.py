"""Ray's futures as `rlhf.roles.Pending`, with its errors translated into ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from rlhf.errors import SafeVLError, WorkerLostError

T = TypeVar("T")


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
        if isinstance(error.cause, RayActorError):
            raise WorkerLostError(role, str(error.cause)) from None
        raise
    except RayActorError as error:
        raise WorkerLostError(role, str(error).splitlines()[0]) from None


def first(results: list[T]) -> T:
    """Merge for verbs whose answer every rank knows."""
    return results[0]


def nothing(results: list[Any]) -> None:
    """Merge for verbs without an answer."""
