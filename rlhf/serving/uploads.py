"""Pictures that come with requests: decoded in memory, named by the hash of their bytes, never written to disk."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image

from rlhf.data.images import decode_image
from rlhf.data.processor import Processor
from rlhf.errors import RequestError
from rlhf.models.families import ImageSize

_HEAD = re.compile(r"data:image/[\w.+-]+;base64", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that stays in memory as long as somebody has its upload; `name` is what a prompt has for a path."""

    name: str
    picture: Image.Image


class UploadProcessor(Processor):
    """A processor whose prompts name uploads. Apart from where pictures come from it is the one of evaluation."""

    kept_images = 0  # strangers rarely send a picture twice, and decoded ones are large

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._pictures: WeakValueDictionary[str, Image.Image] = WeakValueDictionary()
        self._lock = threading.Lock()

    def hold(self, content: bytes, max_side: int) -> Upload:
        """Decode a picture, or share that of an equal upload. Raises ImageError. May be called from several threads.

        Engines cache what they made of a picture by its name, so equal names must mean equal bytes.
        """
        name = f"sha256:{hashlib.sha256(content).hexdigest()}"
        picture = self._pictures.get(name)
        if picture is None:
            picture = decode_image(content, "the image", max_side)
            with self._lock:
                picture = self._pictures.setdefault(name, picture)
        return Upload(name, picture)

    def open(self, path: str) -> Any:
        """The picture of an upload that is held."""
        return self._pictures[path]

    def image_size(self, path: str) -> ImageSize:
        """Height and width of `image(path)`; not looked at where it changes nothing."""
        if self.tokens_per_image is not None:
            return self.family.blank
        width, height = self._pictures[path].size
        return height, width


def image_bytes(text: str, param: str) -> bytes:
    """The bytes of a data URI, or of base64 alone. Raises RequestError for anything else, addresses above all."""
    if "://" in text[:64]:
        raise RequestError(
            'addresses are never fetched: send the image itself, as "data:image/png;base64,..."',
            code="invalid_image",
            param=param,
        )
    head, comma, body = text.partition(",")
    if comma and not _HEAD.fullmatch(head):
        raise RequestError(
            f'{head[:40]!r} is no head of an image: write "data:image/png;base64,..."',
            code="invalid_image",
            param=param,
        )
    try:
        content = base64.b64decode(body if comma else text, validate=True)
    except ValueError as error:
        raise RequestError(f"the image is not base64: {error}", code="invalid_image", param=param) from None
    return content
