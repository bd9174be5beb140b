"""What every service has in common: a request becomes a call, a call is answered, and what is wrong is said alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf.batch import Completion, Prompt
from rlhf.errors import DataError, ImageError, PolicyError, PromptTooLongError, RequestError
from rlhf.rollout.base import Sampling
from rlhf.serving.uploads import Upload

_CODES: tuple[tuple[type[DataError], str], ...] = (
    (ImageError, "invalid_image"),
    (PolicyError, "invalid_policy"),
    (PromptTooLongError, "context_length_exceeded"),
)
_SHOWN = 4  # problems of one request, at most


class Body(BaseModel):
    """Base of request bodies: what is not known is refused, as a setting that is ignored would be a wrong answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Call:
    """A request that an engine can answer. `upload` keeps the picture that the prompt names in memory."""

    prompt: Prompt
    sampling: Sampling
    upload: Upload | None
    respond: Callable[[Completion, float], dict[str, Any]]
    """The answer as JSON, from a completion and the seconds since the request came."""


class Service(Protocol):
    """What is served at `path`. Must not depend on anything but a request's own content."""

    @property
    def path(self) -> str:
        """Where requests are posted."""

    def read(self, content: bytes) -> Call:
        """A request's body as a call. Raises RequestError or DataError; may be called from several threads."""

    def about(self) -> dict[str, Any]:
        """What the list of models says beyond its name."""


Schema = TypeVar("Schema", bound=Body)


def parse(schema: type[Schema], content: bytes) -> Schema:
    """The body of a request. Raises RequestError with what is wrong, which never repeats what was sent."""
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
    lines = []
    for one in problems[:_SHOWN]:
        where = ".".join(str(part) for part in one["loc"]) or "body"
        unknown = one["type"] == "extra_forbidden" and len(one["loc"]) == 1
        known = f"not supported here; known are {', '.join(schema.model_fields)}"
        lines.append(f"{where[:80]}: {known if unknown else one['msg']}")
    more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
    param = ".".join(str(part) for part in problems[0]["loc"])[:80] or None
    raise RequestError("; ".join(lines) + more, param=param)


def refused(error: DataError) -> RequestError:
    """A request that cannot be asked, in HTTP's words."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "invalid_request")
    return RequestError(error.reason, code=code)
