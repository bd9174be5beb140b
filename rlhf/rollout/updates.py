"""The state of a weight update, kept the same way by every engine."""

from __future__ import annotations

from rlhf.errors import WeightSyncError
from rlhf.rollout.weights import fingerprint


class UpdateState:
    """Which version answers, and what has arrived of the next one.

    An update that failed half way stays open: the weights are then a mixture, so the engine keeps refusing to answer
    until a later update has finished.
    """

    def __init__(self) -> None:
        self._version = 0
        self._next: int | None = None
        self._digests: list[str] = []
        self._failure = ""

    @property
    def version(self) -> int:
        """The version that answers, or -1 while an update is unfinished."""
        return -1 if self._next is not None else self._version

    def begin(self, version: int) -> None:
        """Open an update; one that is still open is forgotten."""
        self._next, self._digests, self._failure = version, [], ""

    def received(self, digest: str) -> None:
        """Note a bucket that was loaded."""
        self._digests.append(digest)

    def failed(self, reason: str) -> None:
        """Note that the open update cannot be finished any more."""
        self._failure = self._failure or reason

    def finish(self) -> str:
        """Close the update and return the fingerprint of what arrived."""
        self.require_open()
        if self._next is not None:
            self._version, self._next = self._next, None
        return fingerprint(self._digests)

    def require_open(self) -> None:
        """Raise WeightSyncError unless an update is open and sound."""
        if self._next is None:
            raise WeightSyncError("no weight update is open: call begin_update first")
        if self._failure:
            raise WeightSyncError(f"the update to version {self._next} failed and must begin again: {self._failure}")

    def require_closed(self) -> None:
        """Raise WeightSyncError while an update is open."""
        if self._next is not None:
            reason = f" (it failed: {self._failure})" if self._failure else ""
            raise WeightSyncError(
                f"the update to version {self._next} is unfinished{reason}; the engine does not answer"
            )
