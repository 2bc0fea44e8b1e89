"""Damage for files: odd values and odd bytes, each a function of the random generator alone.

Every function that damages something returns a few words on what it did and where. List positions in them are `*`, so
that like damage reads alike.
"""

import json
import os
import random
import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

NUMBERS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "0": 0,
    "-1": -1,
    "0.5": 0.5,
    "1e30": 1e30,
    "1e-30": 1e-30,
    "2^31": 2**31,
    "2^63": 2**63,
    "2^64": 2**64,
    "10^400": 10**400,
    "true": True,
}
OTHERS = {
    "null": None,
    "false": False,
    "word": "abc",
    "digits": "1",
    "[]": [],
    "[[1]]": [[1]],
    "{}": {},
    "[0]*1000": [0] * 1000,
}
TEXTS = {
    "empty text": "",
    "colour codes": "a\x1b[31mred\x07",
    "line break": "a\nb",
    "surrogate": "\ud800",
    "NUL": "a\0b",
    "100,000 letters": "x" * 100_000,
    "outside": "../../outside/secret.jpg",
    "dots": "..",
    "slash": "/",
    "device": "/dev/zero",
    "home": "~",
    "variable": "$HOME",
    "bidi": "\u202egpj.exe",
    "markup": "<script>alert(1)</script>",
    "format": "%s{0}{x}",
    "backslash": "C:\\x",
}
# What the JSON writer of Python does not write: stands as a string in the tree, and is replaced in the text.
_RAW = {
    "nested 3,000 deep": "[" * 3000 + "]" * 3000,
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "5,000 digits": "9" * 5000,
    "1e400": "1e400",
}
JSON_VALUES = NUMBERS | OTHERS | TEXTS | {name: f"@{name}@" for name in _RAW}


def json_text(tree: Any) -> str:
    """The JSON text of a damaged tree."""
    text = json.dumps(tree)
    for name, raw in _RAW.items():
        text = text.replace(f'"@{name}@"', raw)
    return text


def repeat_key(text: str, rng: random.Random) -> tuple[str, str]:
    """JSON text in which one object names a key twice, at first with null."""
    places = [place for place in range(len(text)) if text.startswith('": ', place)]
    if not places:
        return text, "nothing"
    end = rng.choice(places)
    start = text.rindex('"', 0, end)
    key = text[start : end + 1]
    return f"{text[:start]}{key}: null, {text[start:]}", f"repeat key {key}"


# Trees of dictionaries and lists


def damage_tree(holder: list[Any], rng: random.Random, values: dict[str, Any]) -> str:
    """Damage one place of the tree `holder[0]`, the top included; `values` are odd ones by name."""
    parent, key, where = _choose_place(holder, rng)
    old = parent[key]
    if isinstance(old, Tensor) and rng.random() < 0.75:
        name = rng.choice(sorted(TENSORS))
        parent[key] = TENSORS[name](old)
        return f"{name} @ {where}"
    action = rng.choice(["replace"] * 6 + ["drop", "double", "rename", "swap"])
    if action == "drop" and parent is not holder:
        del parent[key]
    elif action == "double" and isinstance(parent, list) and parent is not holder:
        parent.insert(key, old)
    elif action == "rename" and isinstance(parent, dict):
        del parent[key]
        parent[f"{key}x" if isinstance(key, str) else key + 1000] = old
    elif action == "swap" and parent is not holder and len(parent) > 1:
        other = rng.choice([k for k in _keys(parent) if k != key])
        parent[key] = parent[other]
        parent[other] = old
    else:
        name = _choose_value(old, rng, values)
        parent[key] = values[name]
        return f"{name} @ {where}"
    return f"{action} @ {where}"


def _choose_place(holder: list[Any], rng: random.Random) -> tuple[Any, Any, str]:
    """A container of the tree, a key in it, and words for the way there."""
    parent: Any = holder
    key: Any = 0
    names: list[str] = []
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice(_keys(parent))
        names.append("*" if isinstance(parent, list) else str(key))
    return parent, key, ".".join(names) or "top"


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _choose_value(old: Any, rng: random.Random, values: dict[str, Any]) -> str:
    """A value that is odd in the old one's place: mostly of its own kind."""
    kind = NUMBERS if isinstance(old, int | float) else TEXTS if isinstance(old, str) else OTHERS
    names = sorted(values.keys() & kind.keys()) if rng.random() < 0.5 else sorted(values)
    return rng.choice(names)


def _filled(value: float) -> Callable[[Tensor], Any]:
    """A function that puts `value` in the middle of a tensor, as far as its type holds it."""

    def fill(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        if copy.numel() and (copy.is_floating_point() or abs(value) < 100):
            copy.view(-1)[copy.numel() // 2] = value
        return copy

    return fill


def _nested(tensor: Tensor) -> Any:
    return torch.nested.nested_tensor([tensor.float(), tensor.float()])


def _quantized(tensor: Tensor) -> Any:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "csr": lambda t: t.reshape(1, -1).to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "quantized": _quantized,
    "nested": _nested,
    "expanded": lambda t: t.reshape(-1)[:1].expand(10**13),
    "expanded alike": lambda t: t.reshape(-1)[:1].expand(t.numel()).reshape(t.shape),
    "transposed": lambda t: t.t() if t.ndim == 2 else t.flip(0),
    "empty": lambda t: t[:0] if t.ndim else t.reshape(1)[:0],
    "scalar": lambda t: t.reshape(-1)[0] if t.numel() else t,
    "flat": lambda t: t.reshape(-1),
    "one axis more": lambda t: t[None],
    "shorter": lambda t: t[1:] if t.ndim else t,
    "longer": lambda t: torch.cat([t, t]) if t.ndim else t.reshape(1),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "int64": lambda t: t.long(),
    "uint8": lambda t: t.to(torch.uint8),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "one nan": _filled(float("nan")),
    "one inf": _filled(float("inf")),
    "one 1e30": _filled(1e30),
    "one -1": _filled(-1.0),
    "all 0": torch.zeros_like,
    "negated": lambda t: -t.float(),
    "with gradient": lambda t: t.float().requires_grad_(),
    "parameter": lambda t: torch.nn.Parameter(t.float(), requires_grad=False),
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "numpy scalar": lambda t: t.reshape(-1).numpy()[0] if t.numel() else t,
    "bytes": lambda t: t.numpy().tobytes(),
    "storage": lambda t: t.untyped_storage(),
}


# Bytes


def damage_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage to the content of a file, and words for it."""
    name = rng.choice(sorted(_BYTES))
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice([1, 8, 200, 5000]))
    return _BYTES[name](data, start, stop, rng), name


def _flip(data: bytes, start: int, stop: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    if start < len(changed):
        changed[start] ^= 1 << rng.randrange(8)
    return bytes(changed)


_BYTES: dict[str, Callable[[bytes, int, int, random.Random], bytes]] = {
    "flip a bit": _flip,
    "flip a bit ": _flip,
    "cut the end": lambda data, a, b, rng: data[:a],
    "cut the start": lambda data, a, b, rng: data[a:],
    "cut a part": lambda data, a, b, rng: data[:a] + data[b:],
    "repeat a part": lambda data, a, b, rng: data[:b] + data[a:],
    "zero a part": lambda data, a, b, rng: data[:a] + bytes(b - a) + data[b:],
    "noise in a part": lambda data, a, b, rng: data[:a] + rng.randbytes(b - a) + data[b:],
    "noise put in": lambda data, a, b, rng: data[:a] + rng.randbytes(64) + data[a:],
    "noise at the end": lambda data, a, b, rng: data + rng.randbytes(64),
    "twice": lambda data, a, b, rng: data + data,
    "byte order mark": lambda data, a, b, rng: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data, a, b, rng: data.decode("latin-1").encode("utf-16"),
    "nothing": lambda data, a, b, rng: b"",
    "zeros": lambda data, a, b, rng: bytes(len(data)),
    "only noise": lambda data, a, b, rng: rng.randbytes(len(data)),
    "web page": lambda data, a, b, rng: b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "LFS pointer": lambda data, a, b, rng: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 687866374\n"
    ),
    "postscript": lambda data, a, b, rng: POSTSCRIPT,
}
# What stands for a number in binary files.
_FIELDS = {
    "nan": struct.pack("<d", float("nan")),
    "inf": struct.pack("<d", float("inf")),
    "1e30": struct.pack("<d", 1e30),
    "0": bytes(8),
    "-1": b"\xff" * 8,
    "2^63 - 1": struct.pack("<q", 2**63 - 1),
    "2^32": struct.pack("<q", 2**32),
}


def damage_field(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Put another number in a place of a binary file that is a multiple of four bytes."""
    name = rng.choice(sorted(_FIELDS))
    place = 4 * rng.randrange(len(data) // 4 + 1)
    return data[:place] + _FIELDS[name] + data[place + 8 :], name


def damage_word(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Put something else in the place of a word of a text."""
    words = list(re.finditer(rb"\S+", data))
    if not words:
        return data, "nothing"
    word = rng.choice(words)
    values = NUMBERS | TEXTS
    name = rng.choice(sorted(values))
    text = str(values[name]).encode(errors="surrogatepass")
    return data[: word.start()] + text + data[word.end() :], name


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EndComments\n0 0 moveto\nshowpage\n%%EOF\n"


# Files


def damage_file(path: Path, rng: random.Random, outside: Path | None) -> str:
    """Put something else in a file's place; `outside` is a folder that links may lead to, if they may lead anywhere."""
    names = ["fifo", "folder", "missing", "link in a circle", "link to a device"]
    name = rng.choice(names if outside is None else [*names, "link", "broken link"])
    path.unlink()
    if name == "fifo" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "link in a circle":
        path.symlink_to(path)
    elif name == "link to a device":
        path.symlink_to("/dev/zero")
    elif outside is not None and name != "missing":
        path.symlink_to(outside / ("secret.jpg" if name == "link" else "nothing"))
    return name


# Configurations: YAML text, and values on the command line

YAML_VALUES = {
    "nan": ".nan",
    "inf": ".inf",
    "-inf": "-.inf",
    "0": "0",
    "-1": "-1",
    "0.5": "0.5",
    "1e30": "1e30",
    "1e400": "1e400",
    "1e-300": "1e-300",
    "2^31": str(2**31),
    "2^63": str(2**63),
    "2^64": str(2**64),
    "10^400": str(10**400),
    "5,000 digits": "9" * 5000,
    "hexadecimal": "0x10",
    "sexagesimal": "1:30",
    "date": "2001-01-01",
    "true": "true",
    "yes": "yes",
    "null": "null",
    "empty": "",
    "quotes": '""',
    "word": "abc",
    "list": "[1, 2]",
    "words": "psnr,ssim",
    "open list": "[1, 2",
    "object": "{a: 1}",
    "nested 3,000 deep": "[" * 3000 + "]" * 3000,
    "python object": '!!python/object/apply:os.system ["touch canary"]',
    "environment": "${oc.env:HOME}",
    "reference": "${training.lr}",
    "circle": "${training.seed}",
    "broken reference": "${nope",
    "mandatory": "???",
    "alias": "*nope",
    "binary": "!!binary R0lGODlh",
    "NUL": '"a\\0b"',
    "colour codes": '"a\\e[31mred\\a"',
    "surrogate": '"\\ud800"',
    "long": "x" * 100_000,
    "home": "~/x",
    "variable": "$HOME/x",
    "dots": "..",
    "device": "/dev/zero",
    "hub": "hf://nobody/nothing/file.pt",
    "tab": "\t1",
    "colon": "a: b: c",
}
# Each level says the one before ten times.
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


# Images


def image_bytes(name: str, size: tuple[int, int]) -> bytes:
    """An image file of an unusual kind (one of `IMAGES`)."""
    gray = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    color = Image.fromarray(np.stack([gray] * 3, axis=-1))
    buffer = BytesIO()
    kind, changed, options = IMAGES[name](color, gray)
    changed.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


IMAGES: dict[str, Callable[[Any, Any], tuple[str, Any, dict[str, Any]]]] = {
    "png": lambda color, gray: ("png", color, {}),
    "png gray": lambda color, gray: ("png", color.convert("L"), {}),
    "png 16 bit": lambda color, gray: ("png", Image.fromarray(gray.astype(np.uint16) * 257), {}),
    "png alpha": lambda color, gray: ("png", color.convert("RGBA"), {}),
    "png palette": lambda color, gray: ("png", color.convert("P"), {"transparency": 0}),
    "png 1 bit": lambda color, gray: ("png", color.convert("1"), {}),
    "jpeg gray": lambda color, gray: ("jpeg", color.convert("L"), {}),
    "jpeg cmyk": lambda color, gray: ("jpeg", color.convert("CMYK"), {}),
    "jpeg progressive": lambda color, gray: ("jpeg", color, {"progressive": True}),
    "jpeg turned": lambda color, gray: ("jpeg", color, {"exif": _turned()}),
    "jpeg 1 pixel": lambda color, gray: ("jpeg", color.resize((1, 1)), {}),
    "jpeg 3000 x 1": lambda color, gray: ("jpeg", color.resize((3000, 1)), {}),
    "jpeg other size": lambda color, gray: ("jpeg", color.resize((40, 30)), {}),
    "gif": lambda color, gray: ("gif", color.convert("P"), {}),
    "bmp": lambda color, gray: ("bmp", color, {}),
    "tiff": lambda color, gray: ("tiff", color, {}),
    "webp": lambda color, gray: ("webp", color, {}),
    "ppm": lambda color, gray: ("ppm", color, {}),
    "pdf": lambda color, gray: ("pdf", color, {}),
}
