"""Evaluation indices: which frames of which scene are inputs and targets of an evaluation (spec section 10)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.scene import read_scene
from utils.errors import InputError
from utils.files import atomic_path, read_json, sha256

INDEX_NAME = "evaluation_index_re10k.json"
INDEX_URL = f"https://raw.githubusercontent.com/dcharatan/pixelsplat/main/assets/{INDEX_NAME}"
INDEX_SHA256 = "fbcff9b4b13139227d809af45b84bb5a7a9cdb1c7a55bced85b6c66556a219cc"


@dataclass(frozen=True)
class Selection:
    """Frame numbers of one scene: inputs and targets."""

    context: list[int]
    target: list[int]


def read_evaluation_index(path: Path) -> dict[str, Selection]:
    """The scenes of an index that are to be evaluated, in its order; those marked null are left out.

    Raises:
        InputError: the file is missing or not an evaluation index; the message names the scene.
    """
    record = read_json(path, "evaluation index (inference.view_idx_file_path)")
    if not isinstance(record, dict):
        raise InputError(f"{path} is not an evaluation index: no object at the top")
    selections = {key: _selection(entry, key, path) for key, entry in record.items() if entry is not None}
    if not selections:
        raise InputError(f"{path} names no scene to evaluate")
    return selections


def _selection(entry: Any, key: str, path: Path) -> Selection:
    fields = entry if isinstance(entry, dict) else {}
    lists = [fields.get("context"), fields.get("target")]
    for frames in lists:
        if not isinstance(frames, list) or not frames or not all(type(f) is int and f >= 0 for f in frames):
            raise InputError(f"{path}: scene {key}: context and target must be lists of frame numbers")
    return Selection(fields["context"], fields["target"])


def match_scenes(
    index: dict[str, Selection], scene_files: list[Path]
) -> tuple[list[tuple[Path, Selection]], dict[str, str]]:
    """Pair the scenes of an index with their metadata files; also the scenes that cannot be evaluated, and why.

    Raises:
        InputError: a scene's metadata is unusable, or it has fewer frames than the index names.
    """
    files = {path.stem: path for path in scene_files}
    found, missing = [], {}
    for name, selection in index.items():
        if name not in files:
            missing[name] = "not in the scene list"
        elif lost := _lost_frames(files[name], selection):
            missing[name] = f"frame {lost[0]} was lost in preprocessing"
        else:
            found.append((files[name], selection))
    return found, missing


def _lost_frames(path: Path, selection: Selection) -> list[int]:
    """The frames of a selection whose images were lost."""
    scene, frames = read_scene(path), selection.context + selection.target
    if scene.name != path.stem:
        raise InputError(f"{path}: scene_name is {scene.name}, not the file's name")
    if max(frames) >= len(scene):
        raise InputError(f"scene {scene.name} has frames 0 to {len(scene) - 1}, not {max(frames)} ({path})")
    return [frame for frame in frames if scene.image_paths[frame] is None]


def fetch_evaluation_index(path: Path) -> None:
    """Download the RealEstate10K index to `path` if it is missing there and goes by the published name.

    Raises:
        InputError: there is no network, or the file is not the published one; the message says what to do.
    """
    if path.exists() or path.name != INDEX_NAME:
        return
    try:
        with atomic_path(path) as temporary:
            torch.hub.download_url_to_file(INDEX_URL, str(temporary), progress=os.isatty(2))
            digest = sha256(temporary)
            if digest != INDEX_SHA256:
                raise InputError(f"{INDEX_URL} has SHA-256 {digest}, expected {INDEX_SHA256}: nothing was stored")
    except OSError as error:
        raise InputError(
            f"evaluation index not found: {path}, and it cannot be fetched ({error}): "
            f"get {INDEX_URL} elsewhere and put it there"
        ) from None
