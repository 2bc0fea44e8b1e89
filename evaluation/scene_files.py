"""The files of one scene in an evaluation's folder; metrics.json is written and read here alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import PSNR_IN_MASK
from evaluation.pages.report import SceneRecord
from utils.errors import InputError
from utils.files import fingerprint, read_json, write_json
from utils.text import shown

PICTURE_FILES = ("input.png", "gt_vs_pred.png")
VIDEO_FILE = "rendered_video.mp4"
# Written last: it marks the scene as done.
METRICS_FILE = "metrics.json"


def picture_files(num_targets: int) -> tuple[str, ...]:
    """The pictures of a scene: its inputs and, if it has targets, these beside the renders."""
    return PICTURE_FILES if num_targets else PICTURE_FILES[:1]


@dataclass(frozen=True)
class SceneMetrics:
    """The content of a metrics.json: means with the scene's name, numbers of the views, input frames.

    `context` is empty where an older evaluation did not note the input frames. `run` and `files`, which are not
    checked, say what it was written by and after.
    """

    summary: dict[str, Any]
    per_view: list[dict[str, Any]]
    context: list[int]
    run: object
    files: object


def make_record(
    name: str, frames: list[int], num_inputs: int, scores: dict[str, list[float]], has_video: bool
) -> SceneRecord:
    """A scene's numbers: per target and their means. A target that a metric has no number of, NaN, is without it."""
    known = [{metric: values[i] for metric, values in scores.items()} for i in range(len(frames) - num_inputs)]
    columns = [{metric: value for metric, value in column.items() if not math.isnan(value)} for column in known]
    views = [{"view": frame, **column} for frame, column in zip(frames[num_inputs:], columns, strict=True)]
    means = {metric: _mean(columns, metric) for metric in scores if any(metric in column for column in columns)}
    return SceneRecord(name, name, means, views, frames[:num_inputs], has_video)


def _mean(columns: Sequence[Mapping[str, float]], metric: str) -> float:
    """Over the targets that have a number of the metric."""
    values = [column[metric] for column in columns if metric in column]
    return sum(values) / len(values)


def write_metrics(out_dir: Path, record: SceneRecord, run_id: str) -> None:
    """Write a scene's metrics.json, last of its files: it marks the scene as done, and knows the others again."""
    folder = out_dir / record.folder
    names = [*picture_files(len(record.per_view)), *[VIDEO_FILE] * record.has_video]
    content = {
        "summary": {"scene_name": record.scene_name, **record.metrics},
        "per_view": list(record.per_view),
        "context": list(record.context),
        "run": run_id,
        "files": {name: fingerprint(folder / name) for name in names},
    }
    write_json(folder / METRICS_FILE, content)


def read_metrics(path: Path) -> SceneMetrics:
    """Read a scene's metrics.json.

    Raises:
        InputError: it is missing, or holds anything else.
    """
    content = read_json(path, "metrics of a scene")
    fields = content if isinstance(content, dict) else {}
    summary = fields.get("summary")
    per_view = fields.get("per_view")
    context = fields.get("context", [])
    if not isinstance(summary, dict) or not isinstance(context, list) or not isinstance(per_view, list):
        raise InputError(f"{path} is not the metrics.json of a scene: evaluate again")
    frames = [view.get("view") if isinstance(view, dict) else None for view in per_view]
    if not all(type(frame) is int for frame in [*frames, *context]):
        raise InputError(f"{path}: a view has no frame number: evaluate again")
    for view in per_view:
        for metric, value in view.items():
            read_number(value, f"{path}: frame {view['view']}: {metric}")
    return SceneMetrics(summary, per_view, context, fields.get("run"), fields.get("files"))


def read_number(value: object, where: str) -> float | None:
    """A finite number; None for null and what strict JSON cannot hold."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {shown(value)}, not a number: evaluate again")
    return float(value) if abs(value) < math.inf else None


def read_finished(out_dir: Path, name: str, frames: list[int], num_inputs: int, run_id: str) -> SceneRecord | None:
    """A scene that an interrupted run with the same identity has finished; None if anything of it is not as written.

    Args:
        frames: the frame numbers of its views, inputs first.
    """
    folder = out_dir / name
    try:
        read = read_metrics(folder / METRICS_FILE)
        pictures = set(picture_files(len(frames) - num_inputs))
        if read.run != run_id or not _are_as_written(folder, read.files, pictures):
            return None
    except (InputError, OSError):
        return None
    if read.summary.get("scene_name") != name:
        return None
    metrics = {key: value for key, value in read.summary.items() if key != "scene_name"}
    columns = [{key: value for key, value in view.items() if key != "view"} for view in read.per_view]
    if read.context + [view["view"] for view in read.per_view] != frames or len(read.context) != num_inputs:
        return None
    if not all(_is_complete(numbers, metrics) and _all_finite(numbers) for numbers in [metrics, *columns]):
        return None
    if not all(any(key in column for column in columns) for key in metrics):
        return None
    if not all(math.isclose(metrics[key], _mean(columns, key)) for key in metrics):
        return None
    has_video = is_filled(folder / VIDEO_FILE)
    return SceneRecord(name, name, metrics, read.per_view, read.context, has_video)


def _are_as_written(folder: Path, files: object, pictures: set[str]) -> bool:
    """Whether the pictures and the video of a scene are those that its metrics.json was written after."""
    if not isinstance(files, dict) or not pictures <= files.keys() <= {*pictures, VIDEO_FILE}:
        return False
    return all(fingerprint(folder / name) == written for name, written in files.items())


def is_filled(path: Path) -> bool:
    """Whether there is a file, no link, with anything in it."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size > 0


def _is_complete(numbers: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Whether a target has all numbers of its scene but those that not every target need have."""
    return metrics.keys() - {PSNR_IN_MASK} <= numbers.keys() <= metrics.keys()


def _all_finite(numbers: Mapping[str, Any]) -> bool:
    return all(isinstance(value, float) and math.isfinite(value) for value in numbers.values())
