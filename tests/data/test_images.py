"""Images of others: JPEG and PNG alone are opened, within bounds, and both ways to read them agree."""

import os
import re
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from data import transforms
from data.transforms import IMAGE_ERRORS, check_image_size, open_image, read_image, read_pixels, to_planes
from tests.chunks import wide_png
from tests.messages import refused
from utils.errors import InputError

READERS = (read_image, read_pixels)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n(x) print\n%%EOF\n"


def picture(mode="RGB", size=(64, 48)):
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode=None if mode != "CMYK" else mode)


def encoded(image, image_format, **options):
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def other_formats():
    contents = {
        "EPS": EPS,
        "EPS in a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<2I", 32, len(EPS)) + bytes(20) + EPS,
    }
    contents["SVG"] = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"/>'
    for name in ("BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "AVIF", "JPEG2000", "PDF"):
        try:
            contents[name] = encoded(picture(), name)
        except (KeyError, OSError, ValueError):  # this Pillow was built without it
            continue
    return contents


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", other_formats().values(), ids=other_formats())
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_no_other_format_is_opened(tmp_path, monkeypatch, read, content, suffix):
    started = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / f"image{suffix}"
    path.write_bytes(content)
    with refused("frame 3", path, "JPEG or PNG"):
        read(path, "frame 3")
    with pytest.raises(IMAGE_ERRORS):
        open_image(content)
    assert not started.exists()


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("make", [fifo, device, folder])
def test_only_regular_files_are_read(tmp_path, read, make):
    path = tmp_path / "image.jpg"
    make(path)
    with refused("frame 3", path):
        read(path, "frame 3")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0b.jpg", "x" * 5000 + ".jpg"], ids=["surrogate", "NUL", "long"])
def test_a_name_that_no_file_can_have_is_an_image_not_found(tmp_path, read, name):
    with refused("frame 3", re.compile(re.escape(f"{tmp_path}/"))):
        read(tmp_path / name, "frame 3")


@pytest.mark.parametrize("read", READERS)
def test_a_file_beyond_the_bound_is_refused_before_it_is_read(tmp_path, read):
    path = tmp_path / "image.jpg"
    with path.open("wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(1 << 40)
    with refused("frame 3", path, "larger"):
        read(path, "frame 3")


def with_size(content, width, height):
    """The same file, its header claiming another size."""
    data = bytearray(content)
    if content.startswith(b"\x89PNG"):
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        place = data.find(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "bound"),
    [((65000, 65000), "100 million"), ((12000, 12000), "100 million"), ((17, 1), "1:16"), ((40, 65000), "1:16")],
)
def test_size_and_aspect_are_bounded(tmp_path, read, image_format, size, bound):
    path = tmp_path / "image"
    path.write_bytes(with_size(encoded(picture(), image_format), *size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused("frame 3", path, f"{size[0]}x{size[1]} pixels", bound):
            read(path, "frame 3")


@pytest.mark.parametrize("read", READERS)
def test_a_jpeg_claims_no_more_pixels_than_its_bytes_hold(tmp_path, read):
    content = encoded(picture(), "JPEG")
    path = tmp_path / "image.jpg"
    path.write_bytes(with_size(content, 5000, 5000))
    with refused("frame 3", path, "5000x5000 pixels", f"{len(content)} bytes"):
        read(path, "frame 3")


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}], ids=str)
def test_one_colour_is_a_jpeg_like_any_other(tmp_path, options):
    path = tmp_path / "black.jpg"
    path.write_bytes(encoded(Image.new("RGB", (2048, 2048)), "JPEG", quality=1, **options))
    assert read_image(path, "frame 3").size == (2048, 2048)


@pytest.mark.parametrize("size", [(640, 272), (640, 360), (1296, 1936), (10000, 10000), (16, 1)])
def test_sizes_of_real_images_pass(size):
    check_image_size(*size)


def wide_colors(channels):
    return np.random.default_rng(0).integers(0, 1 << 16, (48, 64, channels), dtype=np.uint16)


def palette(transparency):
    image = picture().quantize(16)
    return encoded(image, "PNG", **({"transparency": transparency} if transparency is not None else {}))


def on_white(pixels, alpha):
    """Colours [h, w, 3] with alpha [h, w] before white."""
    weight = alpha[..., None] / 255
    return np.rint(pixels * weight + 255 * (1 - weight)).astype(np.uint8)


def contents():
    """Every kind of pixel that the two formats hold, and what it is read as."""
    rgb, gray = np.asarray(picture()), np.asarray(picture("L"))
    as_rgb = np.repeat(gray[..., None], 3, axis=2)
    bits = Image.fromarray(gray > 100)
    upper = {n: (wide_colors(n) >> 8).astype(np.uint8) for n in (1, 2, 3, 4)}
    rgba, la = np.asarray(picture("RGBA")), np.asarray(picture("LA"))
    plain = np.asarray(Image.open(BytesIO(palette(None))).convert("RGB"))
    indices = np.asarray(Image.open(BytesIO(palette(None))))
    cmyk = encoded(picture("CMYK"), "JPEG")
    return {
        "RGB": (encoded(picture(), "PNG"), rgb),
        "RGB, a colour transparent": (
            encoded(picture(), "PNG", transparency=tuple(rgb[5, 7].tolist())),
            on_white(rgb, np.where((rgb == rgb[5, 7]).all(-1), 0, 255)),
        ),
        "RGBA": (encoded(picture("RGBA"), "PNG"), on_white(rgba[..., :3], rgba[..., 3])),
        "gray": (encoded(picture("L"), "PNG"), as_rgb),
        "gray, a shade transparent": (
            encoded(picture("L"), "PNG", transparency=7),
            on_white(as_rgb, np.where(gray == 7, 0, 255)),
        ),
        "gray with alpha": (encoded(picture("LA"), "PNG"), on_white(la[..., :1].repeat(3, 2), la[..., 1])),
        "one bit": (encoded(bits, "PNG"), np.where(np.asarray(bits)[..., None], 255, 0).repeat(3, 2)),
        "palette": (palette(None), plain),
        "palette, one transparent": (palette(3), on_white(plain, np.where(indices == 3, 0, 255))),
        "palette, several transparent": (
            palette(bytes([0, 40, 255])),
            on_white(plain, np.array([0, 40] + [255] * 14)[indices]),
        ),
        "16-bit gray": (wide_png(wide_colors(1), 0), upper[1].repeat(3, 2)),
        "16-bit gray with alpha": (
            wide_png(wide_colors(2), 4),
            on_white(upper[2][..., :1].repeat(3, 2), upper[2][..., 1]),
        ),
        "16-bit RGB": (wide_png(wide_colors(3), 2), upper[3]),
        "16-bit RGBA": (wide_png(wide_colors(4), 6), on_white(upper[4][..., :3], upper[4][..., 3])),
        "16-bit RGB, a colour transparent": (wide_png(wide_colors(3), 2, [(b"tRNS", bytes(6))]), upper[3]),
        "16-bit gray, a shade transparent": (wide_png(wide_colors(1), 0, [(b"tRNS", bytes(2))]), upper[1].repeat(3, 2)),
        "CMYK JPEG": (cmyk, np.asarray(Image.open(BytesIO(cmyk)).convert("RGB"))),
        "gray JPEG": (encoded(picture("L"), "JPEG", quality=100), None),
    }


@pytest.mark.parametrize(("content", "pixels"), contents().values(), ids=contents())
def test_every_kind_of_pixel_is_read_right_and_alike(tmp_path, content, pixels):
    path = tmp_path / "image"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exact, fast = read_image(path, "frame"), read_pixels(path, "frame")
    assert exact.mode == "RGB"
    np.testing.assert_array_equal(fast.numpy(), to_planes(exact))
    if pixels is not None:
        np.testing.assert_array_equal(np.asarray(exact), pixels)


def test_a_picture_of_16_bits_looks_as_it_does_in_8():
    gray = np.asarray(picture("L"))
    wide = wide_png(gray.astype(np.uint16)[..., None] * 257, 0)
    with open_image(wide) as image:
        np.testing.assert_array_equal(np.asarray(transforms.to_rgb(image))[..., 0], gray)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_image_is_named_or_read(tmp_path, seed):
    """Flipped, cut and repeated bytes: an error of ours, or pixels, the same both ways."""
    rng = np.random.default_rng(seed)
    sound = encoded(picture("RGBA"), "PNG") if seed % 2 else encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08")
    data = bytearray(sound)
    for place in rng.integers(0, min(len(data), 700), 3):
        data[place] = rng.integers(256)
    path = tmp_path / "image"
    path.write_bytes(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]) if seed % 3 else bytes(data))
    for read in READERS:
        try:
            read(path, "frame 3")
        except InputError as error:
            assert str(error).startswith("frame 3: ") and str(error).isprintable()
