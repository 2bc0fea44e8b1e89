"""The HTML page of several evaluations side by side; pictures and videos stay in the folders of the runs.

How it looks is `templates/comparison.*` on top of `templates/page.*`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evaluation.compare import Comparison, average, differing_keys, find_caveats, find_omissions, group_by_views
from evaluation.pages.page import as_number, as_text, write_page
from evaluation.runs import Run, read_scene
from utils.errors import InputError


def write_comparison(out_dir: Path, title: str, comparison: Comparison) -> Path:
    """Write `out_dir/index.html` in one step and return its path.

    Raises:
        InputError: `out_dir` holds an evaluation, whose page this would replace, or a scene cannot be read.
    """
    if (out_dir / "results.json").exists():
        raise InputError(f"{out_dir} is an evaluation, whose index.html would be lost: name another folder (--output)")
    path = out_dir / "index.html"
    write_page(path, "comparison", title, comparison_data(comparison, out_dir))
    return path


def comparison_data(comparison: Comparison, out_dir: Path) -> dict[str, object]:
    """Everything the page shows, as JSON values; numbers are rows under metrics named once."""
    scenes = [_scene_data(name, comparison) for name in comparison.scenes]
    regrouped = [str(scene["name"]) for scene in scenes if len(scene["groups"]) > 1]
    differing = differing_keys(comparison.runs)
    return {
        "metrics": [as_text(metric) for metric in comparison.metrics],
        "runs": [_run_data(run, out_dir) for run in comparison.runs],
        "averages": [_average_data(comparison, metric) for metric in comparison.metrics],
        "caveats": [as_text(sentence) for sentence in find_caveats(comparison, regrouped)],
        "omissions": [as_text(sentence) for sentence in find_omissions(comparison)],
        "differing": [[as_text(key), [_optional(text) for text in texts]] for key, texts in differing.items()],
        "scenes": scenes,
    }


def _run_data(run: Run, out_dir: Path) -> dict[str, object]:
    has_page = (run.folder / "index.html").is_file()
    return {"label": as_text(run.label), "address": relative_address(run.folder, out_dir), "page": has_page}


def relative_address(folder: Path, start: Path) -> str:
    """The address of `folder` relative to a page in `start`, percent-encoded part by part.

    Both are made absolute without following links, since browsers resolve `..` by the address alone.
    """
    parts = Path(os.path.relpath(folder.absolute(), start.absolute())).parts
    return "/".join(quote(os.fsencode(part), safe="") for part in parts) or "."


def _average_data(comparison: Comparison, metric: str) -> list[list[float | None]]:
    averages = average(comparison, metric)
    return [[as_number(one.mean), as_number(one.difference), as_number(one.error)] for one in averages]


def _optional(text: str | None) -> str | None:
    return None if text is None else as_text(text)


def _scene_data(name: str, comparison: Comparison) -> dict[str, Any]:
    """`values` are [run][metric], `viewValues` [run][view][metric]; `groups` say which runs share which views."""
    records = [read_scene(run, name) for run in comparison.runs]
    return {
        "name": name,
        "values": [_row(record.metrics, comparison.metrics) for record in records],
        "viewValues": [[_row(view, comparison.metrics) for view in record.per_view] for record in records],
        "groups": [[group.runs, group.views, group.context] for group in group_by_views(records)],
        "videos": [record.has_video for record in records],
    }


def _row(values: Mapping[str, Any], metrics: Sequence[str]) -> list[float | None]:
    return [as_number(values.get(metric)) for metric in metrics]
