"""The files of an evaluation: numbers of a scene, results of all, the page."""

import csv
import io
import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.pages.report import SceneRecord, write_report
from evaluation.runs import parts_of_scene
from utils.errors import InputError
from utils.files import fingerprint, read_json, write_json, write_text

log = logging.getLogger("lvsm")

# Beside the folders of the scenes.
RESULT_FILES = ("results.json", "summary.csv", "index.html")
# In the folder of a scene, besides metrics.json.
PICTURE_FILES = ("input.png", "gt_vs_pred.png")
VIDEO_FILE = "rendered_video.mp4"


def check_scene_folders(out_dir: Path, names: Iterable[str]) -> None:
    """Raises InputError for a scene whose folder in `out_dir` would be a link, a file, or one of the files there."""
    for name in names:
        folder = out_dir / name
        if name in RESULT_FILES:
            raise InputError(f"scene {name}: an evaluation writes a file of that name: rename the scene")
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} is not a folder: move it away, or choose another inference_out_dir")


def make_record(
    name: str, frames: list[int], num_inputs: int, scores: dict[str, list[float]], has_video: bool
) -> SceneRecord:
    """A scene's numbers: per target and their means."""
    views = [
        {"view": frame, **{metric: values[i] for metric, values in scores.items()}}
        for i, frame in enumerate(frames[num_inputs:])
    ]
    means = {metric: _mean(values) for metric, values in scores.items()}
    return SceneRecord(name, name, means, views, frames[:num_inputs], has_video)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_metrics(out_dir: Path, record: SceneRecord, run_id: str) -> None:
    """Write a scene's metrics.json, last of its files: it marks the scene as done, and knows the others again."""
    folder = out_dir / record.folder
    names = [*PICTURE_FILES, VIDEO_FILE] if record.has_video else PICTURE_FILES
    content = {
        "summary": {"scene_name": record.scene_name, **record.metrics},
        "per_view": list(record.per_view),
        "context": list(record.context),
        "run": run_id,
        "files": {name: fingerprint(folder / name) for name in names},
    }
    write_json(folder / "metrics.json", content)


def read_finished(out_dir: Path, name: str, frames: list[int], num_inputs: int, run_id: str) -> SceneRecord | None:
    """A scene that an interrupted run with the same identity has finished; None if anything of it is not as written.

    Args:
        frames: the frame numbers of its views, inputs first.
    """
    folder = out_dir / name
    try:
        content = read_json(folder / "metrics.json", "metrics")
        if not isinstance(content, dict) or content.get("run") != run_id:
            return None
        summary, per_view, context = parts_of_scene(content, folder / "metrics.json")
        if not _are_as_written(folder, content.get("files")):
            return None
    except (InputError, OSError):
        return None
    if summary.get("scene_name") != name:
        return None
    metrics = {key: value for key, value in summary.items() if key != "scene_name"}
    columns = [{key: value for key, value in view.items() if key != "view"} for view in per_view]
    if context + [view["view"] for view in per_view] != frames or len(context) != num_inputs:
        return None
    if not all(numbers.keys() == metrics.keys() and _all_finite(numbers) for numbers in [metrics, *columns]):
        return None
    if not all(math.isclose(metrics[key], _mean([view[key] for view in columns])) for key in metrics):
        return None
    has_video = is_filled(folder / VIDEO_FILE)
    return SceneRecord(name, name, metrics, per_view, context, has_video)


def _are_as_written(folder: Path, files: object) -> bool:
    """Whether the pictures and the video of a scene are those that its metrics.json was written after."""
    if not isinstance(files, dict) or not set(PICTURE_FILES) <= files.keys() <= {*PICTURE_FILES, VIDEO_FILE}:
        return False
    return all(fingerprint(folder / name) == written for name, written in files.items())


def is_filled(path: Path) -> bool:
    """Whether there is a file, no link, with anything in it."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size > 0


def _all_finite(numbers: Mapping[str, Any]) -> bool:
    return all(isinstance(value, float) and math.isfinite(value) for value in numbers.values())


def averages(scenes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over scenes of the scenes' means."""
    return {name: statistics.fmean(scene[name] for scene in scenes) for name in (scenes[0] if scenes else ())}


def without_inputs(record: SceneRecord) -> dict[str, float]:
    """A scene's means over the targets that are not input frames; empty if none is left."""
    views = [view for view in record.per_view if view["view"] not in record.context]
    return {name: statistics.fmean(float(view[name]) for view in views) for name in record.metrics if views}


def has_input_among_targets(record: SceneRecord) -> bool:
    """Whether a target of the scene is an input frame, too."""
    return any(view["view"] in record.context for view in record.per_view)


def write_results(out_dir: Path, records: list[SceneRecord], run: dict[str, Any], page: bool) -> None:
    """Write summary.csv, results.json and the page of a finished evaluation."""
    means = averages([record.metrics for record in records])
    others = averages([scene for scene in map(without_inputs, records) if scene])
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["scene_name", *means])
    writer.writerows([record.scene_name, *(record.metrics[name] for name in means)] for record in records)
    write_text(out_dir / "summary.csv", table.getvalue())
    results = {
        "averages": means,
        "spread": {name: statistics.pstdev(record.metrics[name] for record in records) for name in means},
        "averages_without_input_frames": others,
        "provenance": run,
        "scenes": {record.scene_name: dict(record.metrics) for record in records},
    }
    write_json(out_dir / "results.json", results)
    text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    log.info("%d scenes: %s", len(records), text or "not scored")
    if page:
        written = write_report(
            out_dir,
            title="LVSM evaluation",
            averages=means,
            provenance=run,
            scenes=records,
            averages_without_inputs=others if any(map(has_input_among_targets, records)) else None,
        )
        log.info("page: %s", written)
