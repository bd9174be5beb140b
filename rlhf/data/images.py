"""Opening images safely: one way in for training, rollouts, reward and evaluation."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rlhf.errors import ImageError

CLIP_MEAN_COLOUR = (122, 116, 104)  # int(255 * CLIP mean), the canvas of LLaVA's pad-to-square
MAX_PIXELS = 50_000_000
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# What Pillow's decoders raise on damaged files (PNG: SyntaxError, struct.error; EXIF: ValueError, KeyError).
_DAMAGE = (OSError, SyntaxError, ValueError, KeyError, IndexError, EOFError, struct.error, OverflowError, MemoryError)
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_JPEG_END = b"\xff\xd9"
_TAIL_BYTES = 65_536


def load_image(path: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file as RGB, upright (EXIF orientation applied); the first frame of an animation.

    Transparency is shown on white, 16-bit greyscale is scaled to 8 bits. Raises ImageError when the file is missing,
    empty, not an image, damaged or truncated, or has more than `max_pixels` pixels (known before decoding).
    """
    with _open(path, max_pixels) as image:
        return _decoded(image, path)


def decode_image(content: bytes, source: str, max_side: int) -> Image.Image:
    """What `load_image` makes of a file with this content, for images that strangers send. Raises ImageError.

    Of the formats only those that browsers show are tried, because others run programs or have many more ways to break.
    `max_side` bounds both sides in pixels: a line of pixels is a small image until it is padded to a square.
    """
    with _opened(io.BytesIO(content), len(content), source, MAX_PIXELS, UPLOAD_FORMATS) as image:
        if max(image.size) > max_side:
            width, height = image.size
            raise ImageError(f"a side of {width}x{height} is longer than {max_side} pixels", source=source)
        return _decoded(image, source)


def image_size(path: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of what `load_image` returns, read without decoding the pixels. Raises ImageError."""
    with _open(path, max_pixels) as image:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        except _DAMAGE as error:
            raise ImageError(f"corrupt or truncated image: {error}", source=path) from error
        width, height = image.size
    return (width, height) if turned else (height, width)


def verify_image(path: str, max_pixels: int = MAX_PIXELS) -> None:
    """Check an image without decoding its pixels where the format allows it (checksums for PNG, end mark for JPEG).

    Raises ImageError for the reasons of `load_image`; damage inside the pixel data of a JPEG shows only there.
    """
    with _open(path, max_pixels) as image:
        is_jpeg = image.format == "JPEG"
        try:
            image.verify()
        except _DAMAGE as error:
            raise ImageError(f"corrupt or truncated image: {error}", source=path) from error
    if is_jpeg and not _has_jpeg_end(path):
        load_image(path, max_pixels)  # Pillow does not verify JPEGs; a missing end mark is worth a full decode


def pad_to_square(image: Image.Image, colour: tuple[int, int, int] = CLIP_MEAN_COLOUR) -> Image.Image:
    """Centre an RGB image on a square canvas of side max(width, height); a square image is returned as it is."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _open(path: str, max_pixels: int) -> Image.Image:
    try:
        size = Path(path).stat().st_size
    except FileNotFoundError:
        raise ImageError("no such image file", source=path) from None
    except _DAMAGE as error:
        raise ImageError(f"cannot be opened: {error}", source=path) from error
    return _opened(path, size, path, max_pixels)


def _opened(
    file: str | io.BytesIO, size: int, source: str, max_pixels: int, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """An image whose header was read and is within bounds; `formats` None tries all."""
    if size == 0:
        raise ImageError("empty file (0 bytes)", source=source)
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        kinds = f" of {', '.join(formats)}" if formats else ""
        raise ImageError(f"not an image{kinds}, or its header is corrupt", source=source) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels: {error}", source=source) from None
    except _DAMAGE as error:
        raise ImageError(f"cannot be opened: {error}", source=source) from error
    width, height = image.size
    if width * height == 0 or width * height > max_pixels:
        image.close()
        limit = "zero size" if width * height == 0 else f"too many pixels, at most {max_pixels} are allowed"
        raise ImageError(f"{limit}: {width}x{height}", source=source)
    return image


def _decoded(image: Image.Image, source: str) -> Image.Image:
    try:
        image.load()
        return _as_rgb(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise ImageError(f"corrupt or truncated image: {error}", source=source) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((levels.clip(0, 65_535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _has_jpeg_end(path: str) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        return _JPEG_END in file.read()
