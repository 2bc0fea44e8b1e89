"""What the HTML pages share: one file that can be read from disk or from a server and asks for no network.

Markup, style and script lie in `templates/`: `page.*` is common to all pages, and a page's own files beside it add
to them. All are inlined. Whatever comes from a data file reaches the page as JSON text or escaped.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from string import Template

from utils.files import write_text

TEMPLATES = Path(__file__).with_name("templates")
KNOWN_METRICS = ("psnr", "psnr_in_mask", "ssim", "lpips")
SIGNIFICANT_DIGITS = 6  # more than the pages show, and half the bytes of a full double

_PART = re.compile(r"^<!-- part: (\w+) -->\n", re.MULTILINE)


def write_page(path: Path, name: str, title: str, data: object) -> None:
    """Write the page `name` (its files in `templates/`) in one step.

    Its policy admits the one script and style by hash, and files of its own place only.
    """
    _, *pieces = _PART.split(_source(f"{name}.html"))
    parts = {key: text.strip("\n") for key, text in zip(pieces[::2], pieces[1::2], strict=True)}
    style, script = (_source(f"page.{kind}") + _source(f"{name}.{kind}") for kind in ("css", "js"))
    page = Template(_source("page.html")).substitute(
        parts,
        title=html.escape(as_text(title)),
        style=style,
        script=script,
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
        data=_embedded_json(data),
    )
    write_text(path, page)


def _source(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def column_names(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Every key of `rows` once: the known metrics in their customary order, then the rest as first met."""
    seen = dict.fromkeys(key for row in rows for key in row)
    rest = [name for name in seen if name not in KNOWN_METRICS]
    return [name for name in KNOWN_METRICS if name in seen] + rest


def as_number(value: object) -> float | None:
    """`value` as a float of a few digits; None for what JSON cannot hold (absent, NaN, infinite)."""
    number = math.nan if value is None else float(value)  # type: ignore[arg-type]
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(number) else None


def as_cell(value: object) -> float | int | str | None:
    """A number of a view as it is shown, or its text; None as for `as_number`."""
    if isinstance(value, str):
        return as_text(value)
    return int(value) if isinstance(value, Integral) else as_number(value)


def as_description(value: object) -> str:
    """A provenance value as one line of text; mappings and lists as JSON."""
    structured = isinstance(value, Mapping | list | tuple)
    return as_text(json.dumps(value, ensure_ascii=False, default=str) if structured else value)


def as_text(value: object) -> str:
    """`value` as text that UTF-8 and `encodeURIComponent` accept: an unpaired surrogate becomes '?'."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _embedded_json(data: object) -> str:
    """`data` as JSON that cannot end the script element holding it, whatever the strings in it say.

    Non-ASCII characters, U+2028 and U+2029 among them, are escaped by `json.dumps` itself.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy_hash(source: str) -> str:
    """The name by which a Content-Security-Policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
