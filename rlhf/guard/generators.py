"""Where pictures to moderate come from: an OpenAI-compatible images endpoint, or a folder of pictures by prompt id."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from rlhf.config import Config, resolve
from rlhf.data.images import verify_image
from rlhf.data.rows import ImageFolder
from rlhf.data.spa_vl_hub import store_image, stored_image
from rlhf.errors import DataError, EndpointError, ImageError
from rlhf.evaluation.asking import Patience, ask_all
from rlhf.guard.guards import EndpointConfig
from rlhf.ledger import Ledger

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A prompt for a picture; `category` is what the prompt was collected under, if that is known."""

    id: str
    prompt: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of one prompt: the absolute path of a picture, or why there is none.

    `silent` says that the generator never answered; asked again, it may.
    """

    image: str | None
    problem: str = ""
    silent: bool = False


class Generator(Protocol):
    """Makes pictures of prompts."""

    tries: bool
    """Whether asking again gives another picture."""

    def draw(self, wanted: Sequence[Wanted], attempt: int) -> list[Drawn]:
        """One picture per prompt, in order; `attempt` counts from 0."""


class FolderConfig(Config):
    """Pictures that are there already."""

    kind: Literal["folder"] = "folder"
    """folder: a file for each prompt, named by its id (.png, .jpg, .jpeg, .webp)."""
    folder: str
    """Where they are."""

    def build(self, work: Path) -> FolderImages:
        """The generator; `work` is not needed."""
        return FolderImages(Path(resolve(self.folder)))


class ImagesEndpointConfig(EndpointConfig):
    """A generator behind any OpenAI-compatible images endpoint."""

    kind: Literal["openai"] = "openai"
    """openai: POST images/generations, answered with base64."""
    timeout_seconds: float = Field(default=180.0, gt=0)
    """Patience with one picture."""
    extra: dict[str, Any] = Field(default_factory=lambda: {"response_format": "b64_json"})
    """Further keys of a request (size, ...). Some endpoints refuse response_format: give {} for these."""
    seed: int | None = None
    """Sent with a request, plus the number of the try; unset: not sent, as most endpoints know no seed."""

    def build(self, work: Path) -> EndpointImages:
        """The generator; pictures and what came of each prompt are kept in `work`."""
        return EndpointImages(self, work)


class FolderImages:
    """`Generator` over a folder; a second try would be the same picture."""

    tries = False

    def __init__(self, folder: Path) -> None:
        self._folder, self._images = folder, ImageFolder(folder, check=False)

    def draw(self, wanted: Sequence[Wanted], attempt: int) -> list[Drawn]:
        """The file of every prompt; a missing or broken one is said."""
        return [self._one(one) for one in wanted]

    def _one(self, wanted: Wanted) -> Drawn:
        try:
            paths = [Path(self._images.locate(wanted.id + ending)) for ending in _ENDINGS]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                return Drawn(None, f"no file {wanted.id}{{{','.join(_ENDINGS)}}} in {self._folder}")
            verify_image(str(path))
        except DataError as error:
            return Drawn(None, error.reason)
        return Drawn(str(path))


class EndpointImages:
    """`Generator` over an endpoint. A picture is stored under the hash of its content before it counts as drawn."""

    tries = True

    def __init__(self, config: ImagesEndpointConfig, work: Path) -> None:
        self._config, self._work, self._images = config, work, work / "images"
        self._chat = config.chat(1)

    def draw(self, wanted: Sequence[Wanted], attempt: int) -> list[Drawn]:
        """Ask for what an earlier process did not get.

        Raises EndpointError where the endpoint refuses, sends addresses, or is dead (`ask_all`).
        """
        made_by = {
            "generator": f"{self._config.model} at {self._chat.host}",
            "request": json.dumps({**self._config.extra, "seed": self._config.seed}, sort_keys=True),
        }
        with Ledger(self._work / "drawn", made_by) as ledger:
            keys = [json.dumps([attempt, one.id, one.prompt]) for one in wanted]
            todo = {
                key: partial(self._one, one, attempt)
                for key, one in zip(keys, wanted, strict=True)
                if key not in ledger.entries
            }
            patience = Patience(settled=len(ledger.entries))
            lost = ask_all(todo, ledger.add, self._config.concurrency, patience)
            return [
                Drawn(None, lost[key], silent=True) if key in lost else self._drawn(ledger.entries[key]) for key in keys
            ]

    def _one(self, wanted: Wanted, attempt: int) -> dict[str, Any]:
        """The hash of a stored picture, or why there is none."""
        body: dict[str, Any] = {"model": self._config.model, "prompt": wanted.prompt, "n": 1, **self._config.extra}
        if self._config.seed is not None:
            body["seed"] = self._config.seed + attempt
        data = self._chat.post("images/generations", body, self._picture)
        if data is None:
            return {"sha256": "", "problem": "the generator's own filter refused"}
        try:
            return {"sha256": store_image(data, self._images, wanted.id), "problem": ""}
        except ImageError as error:
            return {"sha256": "", "problem": error.reason}

    def _picture(self, answer: Any) -> bytes:
        """Raises EndpointError for an address, which would come again; what `OpenAIChat.post` wants for the rest."""
        found = answer["data"][0]
        if isinstance(found, dict) and found.get("url") and not found.get("b64_json"):
            raise EndpointError(
                f"the generator at {self._config.base_url} sent an address and no data[0].b64_json; "
                "ask for base64 (generator.extra)"
            )
        return base64.b64decode(found["b64_json"], validate=True)

    def _drawn(self, value: dict[str, Any]) -> Drawn:
        if not value["sha256"]:
            return Drawn(None, value["problem"])
        return Drawn(str(stored_image(self._images, value["sha256"]).absolute()))
