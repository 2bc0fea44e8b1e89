"""Evaluations side by side: matching their scenes and metrics, and what differs.

Runs are compared over the scenes and metrics that all of them have; every difference is to the first run.
`utils/comparison_page.py` makes the page.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.pages.page import KNOWN_METRICS, as_number, column_names
from evaluation.pages.report import SceneRecord
from evaluation.runs import Run, make_labels, read_run
from evaluation.scene_files import PICTURE_FILES
from utils.errors import InputError
from utils.text import counted

# What decides the ground truth besides the scene: PSNR against other pictures is another quantity.
PICTURE_KEYS = (
    "config.training.background",
    "config.training.square_crop",
    "config.model.image_tokenizer.image_size",
    "config.model.image_tokenizer.patch_size",
)


@dataclass(frozen=True)
class Comparison:
    """Two or more runs with the scenes and metrics that they have in common."""

    runs: Sequence[Run]
    scenes: Sequence[str]
    metrics: Sequence[str]

    def values(self, metric: str) -> list[list[float]]:
        """A list per run over the scenes in which every run has a number, in the same order."""
        rows = ([run.scenes[name].get(metric) for run in self.runs] for name in self.scenes)
        complete = [[value for value in row if value is not None] for row in rows]
        return [list(column) for column in zip(*(r for r in complete if len(r) == len(self.runs)), strict=True)]


@dataclass(frozen=True)
class Average:
    """A run's mean over scenes, its difference to the first run's, and that difference's standard error (paired)."""

    mean: float | None
    difference: float | None
    error: float | None


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read the runs in `folders` and match them.

    Raises:
        InputError: fewer than two runs, the same one twice, one that cannot be read, or no scene in common.
    """
    if len(folders) < 2:
        raise InputError("--compare needs two or more evaluation folders")
    for i, folder in enumerate(folders):
        if any(folder.resolve() == other.resolve() for other in folders[:i]):
            raise InputError(f"{folder} is given twice: name each evaluation folder once")
    labels = make_labels(folders)
    runs = [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]
    scenes = [name for name in runs[0].scenes if all(name in run.scenes for run in runs)]
    if not scenes:
        counts = ", ".join(f"{run.folder} has {counted(len(run.scenes), 'scene')}" for run in runs)
        raise InputError(f"the runs have no scene in common ({counts}): compare evaluations of the same set")
    have = [run.metrics(scenes) for run in runs]
    shared = [name for name in have[0] if all(name in other for other in have)]
    return Comparison(runs, scenes, [name for name in shared if not _says_nothing(runs, scenes, name)])


def missing_pictures(comparison: Comparison) -> list[Path]:
    """The pictures that the runs' folders do not hold, though their results do the scenes."""
    folders = (run.folder / name for run in comparison.runs for name in comparison.scenes)
    return [folder / file for folder in folders for file in PICTURE_FILES if not (folder / file).is_file()]


def _says_nothing(runs: Sequence[Run], scenes: Sequence[str], metric: str) -> bool:
    """Whether a metric, none of the known ones, has one value a scene, as one that no model has a part in."""
    values = ({as_number(run.scenes[name].get(metric)) for run in runs} for name in scenes)
    return metric not in KNOWN_METRICS and all(len(distinct) == 1 for distinct in values)


def average(comparison: Comparison, metric: str) -> list[Average]:
    """Each run's mean of a metric over the scenes in which every run has it."""
    columns = comparison.values(metric)
    if not columns:
        return [Average(None, None, None) for _ in comparison.runs]
    means = [statistics.fmean(column) for column in columns]
    differences = [[b - a for a, b in zip(columns[0], column, strict=True)] for column in columns[1:]]
    compared = [Average(m, statistics.fmean(d), _error(d)) for m, d in zip(means[1:], differences, strict=True)]
    return [Average(means[0], None, None), *compared]


def _error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def differing_keys(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """What the runs came from, where they differ: dotted key -> a text per run, None where a run lacks the key.

    The configuration stands first, the command last, since it repeats the configuration.
    """
    flat = [dict(_flatten(run.provenance)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    keys.sort(key=lambda key: (key == "command", not key.startswith("config.")))
    values = {key: [one.get(key) for one in flat] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            pairs += _flatten(item, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)))
    return pairs


@dataclass
class Group:
    """Runs (by position) that rendered the same frames of a scene from, as far as known, the same inputs."""

    runs: list[int]
    views: list[Any]
    context: list[Any]

    def admits(self, views: list[Any], context: list[Any]) -> bool:
        """Whether nothing known contradicts that these are the same views."""
        pairs = ((self.views, views), (self.context, context))
        return all(mine == other or not mine or not other for mine, other in pairs)


def group_by_views(records: Sequence[SceneRecord]) -> list[Group]:
    """Runs of one scene with the same views together, the first run's group first."""
    groups: list[Group] = []
    for run, record in enumerate(records):
        views = [view["view"] for view in record.per_view]
        context = list(record.context)
        group = next((group for group in groups if group.admits(views, context)), None)
        if group is None:
            groups.append(Group([run], views, context))
        else:
            group.runs.append(run)
            group.views = group.views or views
            group.context = group.context or context
    return groups


def find_caveats(comparison: Comparison, regrouped: Sequence[str]) -> list[str]:
    """What a reader must know before trusting the differences, a sentence each.

    Args:
        regrouped: the scenes whose views differ between runs.
    """
    differing = differing_keys(comparison.runs)
    caveats = []
    if "index_sha256" in differing:
        caveats.append("The runs used different evaluation indices.")
    # What an older run does not say, its ground truth need not differ in.
    pictures = [key for key in PICTURE_KEYS if None not in differing.get(key, [None])]
    if pictures and not has_same_truth(comparison):
        caveats.append(f"The ground truth was prepared differently ({', '.join(pictures)}).")
    if regrouped:
        some = ", ".join(regrouped[:3]) + (", ..." if len(regrouped) > 3 else "")
        caveats.append(f"Views differ between runs in {counted(len(regrouped), 'scene')} ({some}), marked below.")
    return caveats


def has_same_truth(comparison: Comparison) -> bool:
    """Whether copying the nearest input scores the same in every run and scene, as it does on the same pixels alone."""
    copies = ({run.scenes[name].get("psnr_nearest_input") for run in comparison.runs} for name in comparison.scenes)
    return all(len(distinct) == 1 and None not in distinct for distinct in copies)


def find_omissions(comparison: Comparison) -> list[str]:
    """Scenes and metrics that some run has and the comparison has not, a sentence each."""
    sentences = []
    for run in comparison.runs:
        if extra := len(run.scenes) - len(comparison.scenes):
            sentences.append(f"{run.label} has {counted(extra, 'scene')} beyond those in common.")
    have = [run.metrics(comparison.scenes) for run in comparison.runs]
    for metric in column_names(dict.fromkeys(names) for names in have):
        lacking = [run.label for run, names in zip(comparison.runs, have, strict=True) if metric not in names]
        if lacking:
            sentences.append(f"{metric} is left out: {', '.join(lacking)} lacks it.")
        elif metric not in comparison.metrics:
            sentences.append(f"{metric} is left out: it is the same in every run.")
    return sentences
