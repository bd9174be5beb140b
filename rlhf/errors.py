"""Every error that SafeVL raises on purpose.

SafeVLError
├── ConfigError            the configuration is wrong; nothing was started
├── ResourceError          the cluster or machine cannot hold what the configuration asks for
├── DataError              an input file, row or image is wrong
│   ├── RowError           one row is malformed
│   ├── ImageError         one image is missing, broken or too large
│   ├── PolicyError        a guard's policy is empty, or names what its taxonomy does not have
│   ├── PromptTooLongError a prompt does not fit beside its image tokens and the answer budget
│   └── MaskedRowError     cutting a row to the context leaves nothing to learn
├── TrainingError          learning went wrong; the last good checkpoint is kept
│   ├── NonFiniteError     a NaN or infinity in a loss, score or gradient
│   ├── LogprobGapError    engine and learner disagree about the same tokens
│   ├── StaleRolloutError  a rollout is of another policy version than the present one
│   └── WeightSyncError    the weights in an engine are not those of the policy
├── EndpointError          a model behind an endpoint cannot be reached, or refuses
│   └── JudgeError         the one that judges answers
├── RequestError           a server of ours refuses a request, and tells its client so
├── CheckpointError        a checkpoint is incomplete, corrupt or belongs to another configuration
└── WorkerLostError        an actor or rank died
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EndpointError",
    "ImageError",
    "JudgeError",
    "LogprobGapError",
    "MaskedRowError",
    "NonFiniteError",
    "PolicyError",
    "PromptTooLongError",
    "RequestError",
    "ResourceError",
    "RowError",
    "SafeVLError",
    "StaleRolloutError",
    "TrainingError",
    "WeightSyncError",
    "WorkerLostError",
]


class SafeVLError(Exception):
    """Base of all errors below; catch it to tell SafeVL's own refusals from bugs."""


class ConfigError(SafeVLError):
    """Met before anything starts: unknown keys, wrong types, numbers that do not fit together."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(["the configuration is wrong:", *(f"  - {problem}" for problem in problems)]))


class ResourceError(SafeVLError):
    """Met within seconds of the start, when the cluster lacks CPUs, GPUs or memory that the roles ask for."""


class DataError(SafeVLError):
    """Met while reading data. Carries what `rejected.jsonl` needs."""

    def __init__(self, reason: str, *, source: str = "", row: int | str | None = None) -> None:
        self.reason, self.source, self.row = reason, source, row
        place = f"{source or '<memory>'}" + (f", row {row}" if row is not None else "")
        super().__init__(f"{place}: {reason}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_data_error, (type(self), self.reason, self.source, self.row))


class RowError(DataError):
    """One row is malformed: a missing key, a wrong type, an empty answer."""


class ImageError(DataError):
    """One image cannot be used: missing, truncated, not an image, or larger than allowed."""


class PolicyError(DataError):
    """A guard cannot be asked with this policy: it is empty, or has an unknown category, variant or answer key."""


class PromptTooLongError(DataError):
    """Prompt tokens plus image tokens plus the answer budget exceed the model's context."""


class MaskedRowError(DataError):
    """A conversation that is cut to the model's context keeps no answer token: the row would train nothing."""


class TrainingError(SafeVLError):
    """Met inside a training loop; the run stops and the last good checkpoint stays."""


class NonFiniteError(TrainingError):
    """A loss, score or gradient is NaN or infinite."""


class LogprobGapError(TrainingError):
    """Rollout engine and learner give the same tokens different log-probabilities."""


class StaleRolloutError(TrainingError):
    """A rollout was produced by other weights than the policy's present ones."""


class WeightSyncError(TrainingError):
    """Fingerprints or the canary differ after a weight sync; the engine must not answer."""


class EndpointError(SafeVLError):
    """Met while a model elsewhere is asked: its endpoint refuses, stays away or does not speak the protocol.

    `silent` says that it gave nothing usable as often as it was asked, or cannot take this question (too long, not to
    be read); another question may be answered.
    """

    def __init__(self, message: str, *, silent: bool = False) -> None:
        self.silent = silent
        super().__init__(message)


class JudgeError(EndpointError):
    """Met while judging: the judge's endpoint refuses or does not answer; what was judged is kept."""


class RequestError(SafeVLError):
    """Met by the client of a server: HTTP `status`, a `code` for programs, and which parameter is wrong, if one is."""

    def __init__(
        self, message: str, status: int = 400, code: str = "invalid_request", param: str | None = None
    ) -> None:
        self.message, self.status, self.code, self.param = message, status, code, param
        super().__init__(message)


class CheckpointError(SafeVLError):
    """A checkpoint cannot be used; the message names the file and the reason."""


class WorkerLostError(SafeVLError):
    """A Ray actor or a rank died. `role` tells which."""

    def __init__(self, role: str, detail: str = "") -> None:
        self.role, self.detail = role, detail
        super().__init__(f"{role} died" + (f": {detail}" if detail else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.role, self.detail))


def _rebuild_data_error(kind: type[DataError], reason: str, source: str, row: int | str | None) -> DataError:
    return kind(reason, source=source, row=row)
