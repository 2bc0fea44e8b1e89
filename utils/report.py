"""The HTML page of an evaluation: `index.html` beside the scene folders, readable from disk or from a server.

Markup, style and script live in `report_template.html`, `.css` and `.js` beside this file and are inlined, so
that the page is one file that asks for nothing but the pictures and videos of its own scene folders.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path, PurePosixPath, PureWindowsPath
from string import Template

from utils.errors import InputError
from utils.files import write_text

TEMPLATE = Path(__file__).with_name("report_template.html")
KNOWN_METRICS = ("psnr", "ssim", "lpips")
SIGNIFICANT_DIGITS = 6  # more than the page shows, and half the bytes of a full double


@dataclass(frozen=True)
class SceneRecord:
    """One evaluated scene: its folder beside the page, its means over the targets and each target's numbers.

    `metrics` maps names to means (psnr in dB); any may be absent, and unknown names are shown as they are.
    `per_view` holds one mapping per target, `view` being its frame number; `context` the input frame numbers.
    """

    scene_name: str
    folder: str
    metrics: Mapping[str, float]
    per_view: Sequence[Mapping[str, float | int | str]]
    context: Sequence[int]
    has_video: bool


def write_report(
    out_dir: Path,
    *,
    title: str,
    averages: Mapping[str, float],
    provenance: Mapping[str, object],
    scenes: Sequence[SceneRecord],
    averages_without_inputs: Mapping[str, float] | None = None,
) -> Path:
    """Write `out_dir/index.html` in one step and return its path.

    `averages` are the means over scenes (psnr in dB, ssim, lpips, or any other name); `provenance` says how
    they came about; `averages_without_inputs` leave out targets that are input frames. Raises InputError if a
    scene's folder is not the plain name of a folder in `out_dir`.
    """
    data = _report_data(averages, provenance, scenes) | {"withoutInputs": _pairs(averages_without_inputs or {})}
    page = _fill_template(title, data)
    path = Path(out_dir) / "index.html"
    write_text(path, page)
    return path


def _report_data(
    averages: Mapping[str, float], provenance: Mapping[str, object], scenes: Sequence[SceneRecord]
) -> dict[str, object]:
    """Everything the page shows, as JSON values; numbers of a scene are rows under columns named once."""
    metrics = _column_names(scene.metrics for scene in scenes)
    columns = _column_names(view for scene in scenes for view in scene.per_view)
    return {
        "averages": _pairs(averages),
        "provenance": [[_text(key), _description(value)] for key, value in provenance.items()],
        "metrics": [_text(name) for name in metrics],
        "viewMetrics": [_text(name) for name in columns if name != "view"],
        "scenes": [_scene_data(scene, metrics, columns) for scene in scenes],
    }


def _pairs(numbers: Mapping[str, float]) -> list[list[object]]:
    return [[_text(name), _number(numbers[name])] for name in _column_names([numbers])]


def _column_names(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Every key of `rows` once: the known metrics in their customary order, then the rest as first met."""
    seen = dict.fromkeys(key for row in rows for key in row)
    rest = [name for name in seen if name not in KNOWN_METRICS]
    return [name for name in KNOWN_METRICS if name in seen] + rest


def _scene_data(scene: SceneRecord, metrics: Sequence[str], columns: Sequence[str]) -> dict[str, object]:
    view_metrics = [name for name in columns if name != "view"]
    return {
        "name": _text(scene.scene_name),
        "folder": _plain_folder(scene.folder),
        "values": [_number(scene.metrics.get(name)) for name in metrics],
        "views": [_cell(view.get("view")) for view in scene.per_view],
        "viewValues": [[_cell(view.get(name)) for name in view_metrics] for view in scene.per_view],
        "context": [_cell(frame) for frame in scene.context],
        "video": bool(scene.has_video),
    }


def _plain_folder(folder: str) -> str:
    """Return `folder`; raise InputError unless it names a folder right beside the page."""
    absolute = PurePosixPath(folder).is_absolute() or PureWindowsPath(folder).is_absolute()
    if absolute or folder in ("", ".", "..") or "/" in folder or "\\" in folder:
        raise InputError(f"scene folder {folder!r} is not the name of a folder beside the page")
    return _text(folder)


def _number(value: object) -> float | None:
    """`value` as a float of a few digits; None for what JSON cannot hold (absent, NaN, infinite)."""
    number = math.nan if value is None else float(value)  # type: ignore[arg-type]
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(number) else None


def _cell(value: object) -> float | int | str | None:
    if isinstance(value, str):
        return _text(value)
    return int(value) if isinstance(value, Integral) else _number(value)


def _description(value: object) -> str:
    """A provenance value as one line of text; mappings and lists as JSON."""
    structured = isinstance(value, Mapping | list | tuple)
    return _text(json.dumps(value, ensure_ascii=False, default=str) if structured else value)


def _text(value: object) -> str:
    """`value` as text that UTF-8 and `encodeURIComponent` accept: an unpaired surrogate becomes '?'."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _embedded_json(data: object) -> str:
    """`data` as JSON that cannot end the script element holding it, whatever the strings in it say.

    Non-ASCII characters, U+2028 and U+2029 among them, are escaped by `json.dumps` itself.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _fill_template(title: str, data: object) -> str:
    """The whole page. Its policy admits the one script and style by hash, and files of its own place only."""
    style = TEMPLATE.with_suffix(".css").read_text(encoding="utf-8")
    script = TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(_text(title)),
        style=style,
        script=script,
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
        data=_embedded_json(data),
    )


def _policy_hash(source: str) -> str:
    """The name by which a Content-Security-Policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
