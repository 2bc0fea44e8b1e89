"""The files of a whole evaluation: results.json, summary.csv, the page."""

import csv
import io
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.pages.report import SceneRecord, write_report
from utils.errors import InputError
from utils.files import write_json, write_text
from utils.text import counted

log = logging.getLogger("lvsm")

# Beside the folders of the scenes.
RESULT_FILES = ("results.json", "summary.csv", "index.html")


def check_scene_folders(out_dir: Path, names: Iterable[str]) -> None:
    """Raises InputError for a scene whose folder in `out_dir` would be a link, a file, or one of the files there."""
    for name in names:
        folder = out_dir / name
        if name in RESULT_FILES:
            raise InputError(f"scene {name}: an evaluation writes a file of that name: rename the scene")
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} is not a folder: move it away, or choose another inference_out_dir")


def averages(scenes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over scenes of the scenes' means, each over the scenes that have it."""
    names = dict.fromkeys(name for scene in scenes for name in scene)
    return {name: statistics.fmean(scene[name] for scene in scenes if name in scene) for name in names}


def spread(records: Sequence[SceneRecord], name: str) -> float:
    """The standard deviation of a metric over the scenes that have it."""
    return statistics.pstdev(record.metrics[name] for record in records if name in record.metrics)


def without_inputs(record: SceneRecord) -> dict[str, float]:
    """A scene's means over the targets that are not input frames; empty if none is left."""
    views = [view for view in record.per_view if view["view"] not in record.context]
    values = {name: [float(view[name]) for view in views if name in view] for name in record.metrics}
    return {name: statistics.fmean(known) for name, known in values.items() if known}


def has_input_among_targets(record: SceneRecord) -> bool:
    """Whether a target of the scene is an input frame, too."""
    return any(view["view"] in record.context for view in record.per_view)


def write_results(out_dir: Path, records: list[SceneRecord], run: dict[str, Any], page: bool) -> None:
    """Write summary.csv, results.json and the page of a finished evaluation."""
    means = averages([record.metrics for record in records])
    others = averages([without_inputs(record) for record in records])
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["scene_name", *means])
    writer.writerows([record.scene_name, *(record.metrics.get(name) for name in means)] for record in records)
    write_text(out_dir / "summary.csv", table.getvalue())
    results = {
        "averages": means,
        "spread": {name: spread(records, name) for name in means},
        "averages_without_input_frames": others,
        "provenance": run,
        "scenes": {record.scene_name: dict(record.metrics) for record in records},
    }
    write_json(out_dir / "results.json", results)
    text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    log.info("%s: %s", counted(len(records), "scene"), text or "not scored")
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
