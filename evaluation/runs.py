"""The output folder of an evaluation, read back.

It holds `results.json`, and a folder per scene with its pictures, its `metrics.json` and perhaps a video.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.pages.page import column_names
from evaluation.pages.report import SceneRecord
from evaluation.scene_files import METRICS_FILE, VIDEO_FILE, read_metrics, read_number
from utils.errors import InputError
from utils.files import check_plain_name, read_json


@dataclass(frozen=True)
class Run:
    """One evaluation: its folder, a name that tells it from the other runs, and its results.json."""

    folder: Path
    label: str
    provenance: Mapping[str, Any]
    scenes: Mapping[str, Mapping[str, float | None]]

    def metrics(self, names: Sequence[str]) -> list[str]:
        """The metrics that any of the scenes `names` has a number of."""
        scenes = (self.scenes[name] for name in names)
        return column_names({key: 0 for key, value in scene.items() if value is not None} for scene in scenes)


def make_labels(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: as few of the last parts of its path as tell them all apart."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    joined = (["/".join(part[-count:]) for part in parts] for count in range(1, longest + 1))
    return next(labels for labels in joined if len(set(labels)) == len(labels))


def read_run(folder: Path, label: str) -> Run:
    """Read the results.json of an evaluation.

    Raises:
        InputError: it is missing, broken, or names a scene that cannot be a folder.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{path} not found: name the output folder of a finished evaluation (inference_out_dir)")
    results = read_json(path, "results of an evaluation")
    scenes = results.get("scenes") if isinstance(results, dict) else None
    provenance = results.get("provenance", {}) if isinstance(results, dict) else None
    if not isinstance(scenes, dict) or not isinstance(provenance, dict):
        raise InputError(f"{path} is not the results.json of an evaluation: evaluate again")
    return Run(folder, label, provenance, {name: _read_values(values, name, path) for name, values in scenes.items()})


def _read_values(values: object, name: str, path: Path) -> dict[str, float | None]:
    check_plain_name(name, f"{path}: scene")
    if not isinstance(values, dict):
        raise InputError(f"{path}: scene {name} has no numbers by metric: evaluate again")
    return {metric: read_number(value, f"{path}: scene {name}: {metric}") for metric, value in values.items()}


def read_scene(run: Run, name: str) -> SceneRecord:
    """A scene of a run with its numbers per view; without `metrics.json` (nothing was computed) there are none.

    Raises:
        InputError: `metrics.json` is broken, or of another evaluation than results.json.
    """
    folder = run.folder / name
    path = folder / METRICS_FILE
    has_video = (folder / VIDEO_FILE).is_file()
    if not path.exists() and not path.is_symlink():
        return SceneRecord(name, name, _known(run.scenes[name]), [], [], has_video)
    read = read_metrics(path)
    for metric, value in run.scenes[name].items():
        if read_number(read.summary.get(metric), f"{path}: {metric}") != value:
            raise InputError(
                f"{path} gives {metric} {read.summary.get(metric)} where results.json gives {value}: "
                f"finish the evaluation in {run.folder}"
            )
    return SceneRecord(name, name, _known(run.scenes[name]), read.per_view, read.context, has_video)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {metric: value for metric, value in values.items() if value is not None}
