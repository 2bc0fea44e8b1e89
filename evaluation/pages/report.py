"""The HTML page of an evaluation: `index.html` beside the scene folders, whose pictures and videos it shows.

How it looks is `templates/report.*` on top of `templates/page.*`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from evaluation.pages.page import as_cell, as_description, as_number, as_text, column_names, write_page
from utils.errors import InputError


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
    path = Path(out_dir) / "index.html"
    write_page(path, "report", title, data)
    return path


def _report_data(
    averages: Mapping[str, float], provenance: Mapping[str, object], scenes: Sequence[SceneRecord]
) -> dict[str, object]:
    """Everything the page shows, as JSON values; numbers of a scene are rows under columns named once."""
    metrics = column_names(scene.metrics for scene in scenes)
    columns = column_names(view for scene in scenes for view in scene.per_view)
    return {
        "averages": _pairs(averages),
        "provenance": [[as_text(key), as_description(value)] for key, value in provenance.items()],
        "metrics": [as_text(name) for name in metrics],
        "viewMetrics": [as_text(name) for name in columns if name != "view"],
        "scenes": [_scene_data(scene, metrics, columns) for scene in scenes],
    }


def _pairs(numbers: Mapping[str, float]) -> list[list[object]]:
    return [[as_text(name), as_number(numbers[name])] for name in column_names([numbers])]


def _scene_data(scene: SceneRecord, metrics: Sequence[str], columns: Sequence[str]) -> dict[str, object]:
    view_metrics = [name for name in columns if name != "view"]
    return {
        "name": as_text(scene.scene_name),
        "folder": _plain_folder(scene.folder),
        "values": [as_number(scene.metrics.get(name)) for name in metrics],
        "views": [as_cell(view.get("view")) for view in scene.per_view],
        "viewValues": [[as_cell(view.get(name)) for name in view_metrics] for view in scene.per_view],
        "context": [as_cell(frame) for frame in scene.context],
        "video": bool(scene.has_video),
    }


def _plain_folder(folder: str) -> str:
    """Return `folder`; raise InputError unless it names a folder right beside the page."""
    absolute = PurePosixPath(folder).is_absolute() or PureWindowsPath(folder).is_absolute()
    if absolute or folder in ("", ".", "..") or "/" in folder or "\\" in folder:
        raise InputError(f"scene folder {folder!r} is not the name of a folder beside the page")
    return as_text(folder)
