"""Images of every awkward sort, made on the fly."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlhf.data.images import CLIP_MEAN_COLOUR, decode_image, load_image, pad_to_square, verify_image
from rlhf.errors import DataError, ImageError


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header says width x height, with hardly any data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    image = noise(31, 17)
    image.save(tmp_path / "a.png")
    loaded = load_image(str(tmp_path / "a.png"))
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(image))


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png")).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("check", [load_image, verify_image])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff\xd8\xff", png_claiming(0, 5)])
def test_not_an_image(tmp_path: Path, check, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        check(str(path))
    assert caught.value.source == str(path)
    assert caught.value.reason


@pytest.mark.parametrize("check", [load_image, verify_image])
def test_missing_and_folder(tmp_path: Path, check) -> None:
    with pytest.raises(ImageError, match="no such image"):
        check(str(tmp_path / "none.png"))
    with pytest.raises(ImageError):
        check(str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError):
        load_image(str(path))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_verify_sees_truncation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise(64, 64).save(path)
    verify_image(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="truncated"):
        verify_image(str(path))


def test_flipped_bit_in_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(64, 64).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError):
        verify_image(str(path))


def test_jpeg_with_bytes_after_the_end_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise(8, 8).save(path)
    path.write_bytes(path.read_bytes() + b"\0" * 1000)
    verify_image(str(path))
    assert load_image(str(path)).size == (8, 8)


@pytest.mark.parametrize("check", [load_image, verify_image])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_too_many_pixels_is_known_from_the_header(tmp_path: Path, check, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))  # decoding would fail with another reason: there are no such pixels
    with pytest.raises(ImageError, match="too many pixels"):
        check(str(path))


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(10, 10).save(path)
    assert load_image(str(path), max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10x10"):
        load_image(str(path), max_pixels=99)


def test_animation_gives_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(str(tmp_path / "a.gif")).getpixel((4, 4)) == (255, 0, 0)


def test_cmyk_palette_grey(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = load_image(str(tmp_path / "cmyk.jpg")).getpixel((4, 4))
    assert np.allclose(red, (255, 0, 0), atol=5)
    Image.new("RGB", (8, 8), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert load_image(str(tmp_path / "p.png")).getpixel((0, 0)) == (10, 20, 30)
    Image.new("L", (8, 8), 77).save(tmp_path / "l.png")
    assert load_image(str(tmp_path / "l.png")).getpixel((0, 0)) == (77, 77, 77)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (200, 0, 0)), (128, (227, 127, 127))])
def test_alpha_is_shown_on_white(tmp_path: Path, alpha: int, expected: tuple[int, int, int]) -> None:
    Image.new("RGBA", (4, 4), (200, 0, 0, alpha)).save(tmp_path / "a.png")
    assert np.allclose(load_image(str(tmp_path / "a.png")).getpixel((0, 0)), expected, atol=1)


def test_transparent_palette(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9])
    image.save(tmp_path / "a.png", transparency=0)
    assert load_image(str(tmp_path / "a.png")).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 20))  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn of 90 degrees clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = load_image(str(tmp_path / "a.jpg"))
    assert upright.size == (20, 40)
    assert np.allclose(upright.getpixel((10, 5)), (255, 0, 0), atol=10)
    assert np.allclose(upright.getpixel((10, 35)), (0, 0, 255), atol=10)


@pytest.mark.parametrize(("width", "height"), [(30, 10), (10, 30), (11, 4), (1, 9)])
def test_row04_pad_to_square_by_pixels(width: int, height: int) -> None:
    image = noise(width, height)
    square = np.asarray(pad_to_square(image))
    side = max(width, height)
    assert square.shape == (side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    assert np.array_equal(square[top : top + height, left : left + width], np.asarray(image))
    outside = np.ones((side, side), dtype=bool)
    outside[top : top + height, left : left + width] = False
    assert (square[outside] == CLIP_MEAN_COLOUR).all()


def test_pad_leaves_a_square_alone_and_takes_a_colour() -> None:
    image = noise(5, 5)
    assert np.array_equal(np.asarray(pad_to_square(image)), np.asarray(image))
    assert pad_to_square(noise(9, 1), (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_mean_colour_is_clips() -> None:
    assert tuple(int(255 * mean) for mean in (0.48145466, 0.4578275, 0.40821073)) == CLIP_MEAN_COLOUR


def test_image_errors_are_data_errors() -> None:
    assert issubclass(ImageError, DataError)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_an_uploaded_image_is_what_its_file_would_be(tmp_path: Path, suffix: str) -> None:
    """Turned by its EXIF orientation where the format has one."""
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(12, 7).save(path, **({"exif": exif} if suffix in ("jpg", "webp") else {}))
    uploaded = decode_image(path.read_bytes(), "it", 12)
    assert uploaded.size == ((7, 12) if suffix in ("jpg", "webp") else (12, 7))
    assert np.array_equal(np.asarray(uploaded), np.asarray(load_image(str(path))))


@pytest.mark.parametrize(
    ("content", "side", "reason"),
    [
        (b"", 99, "empty"),
        (b"<svg/>", 99, "not an image of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 99, "not an image of JPEG, PNG"),
        (png_claiming(100, 1), 99, "a side of 100x1 is longer than 99 pixels"),
        (png_claiming(1, 100), 99, "a side of 1x100 is longer"),
        (png_claiming(60_000, 60_000), 99, "too many pixels"),
        (png_claiming(50, 50), 99, "truncated"),
    ],
)
def test_an_upload_is_refused_with_its_reason(content: bytes, side: int, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(content, "it", side)
