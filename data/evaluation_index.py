"""Evaluation indices: which frames of which scene are inputs and targets of an evaluation.

To make one for any preprocessed set, by frame distance as in training:

    python -m data.evaluation_index --scenes preprocessed_data/test/full_list.txt --output index.json \\
        --context 2 --targets 3 --min_frame_dist 25 --max_frame_dist 192

Of objects, whose cameras stand all around in no order, inputs that lie apart, and all other frames as targets:

    python -m data.evaluation_index --scenes objects/test/full_list.txt --output index.json \\
        --any_order --context 4 --targets 0

Several numbers of inputs make an index each, index_2.json and so on for `--context 2 4 8 16`, with the same windows and
the same targets, so that scores can be compared.
"""

import argparse
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.packed import file_of
from data.scene import Scene, read_named_scene, read_scene_list
from data.views import Selection, ViewSelectorConfig, choose_window, draw_usable, spread_inputs, spread_over
from utils.cli import path_argument, run_main
from utils.download import DownloadError, PublishedFile
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.text import counted, printable, shown

log = logging.getLogger("lvsm")

# Damaged scenes that are named.
_SHOWN = 10
# Inputs that an index may have.
_MOST_INPUTS = 256

INDEX_NAME = "evaluation_index_re10k.json"
INDEX_URL = f"https://raw.githubusercontent.com/dcharatan/pixelsplat/main/assets/{INDEX_NAME}"
INDEX_SHA256 = "fbcff9b4b13139227d809af45b84bb5a7a9cdb1c7a55bced85b6c66556a219cc"
# Bytes; it has 1 MB.
_INDEX_LIMIT = 1 << 26


def read_evaluation_index(path: Path, key: str = "inference.view_idx_file_path") -> dict[str, Selection]:
    """The scenes of an index that are to be evaluated, in its order; those marked null are left out.

    Args:
        key: what named the path, for messages.

    Raises:
        InputError: the file is missing or not an evaluation index; the message names the scene.
    """
    record = read_json(path, f"evaluation index ({key})")
    if not isinstance(record, dict):
        raise InputError(f"{printable(str(path))} is not an evaluation index: no object at the top")
    selections = {key: _selection(entry, key, path) for key, entry in record.items() if entry is not None}
    if not selections:
        raise InputError(f"{printable(str(path))} names no scene to evaluate")
    return selections


def _selection(entry: Any, key: str, path: Path) -> Selection:
    where = f"{printable(str(path))}: scene {shown(key)}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: context and target must be lists of frame numbers, but it is {shown(entry)}")
    for name in ("context", "target"):
        frames: Any = entry.get(name)
        fault = _frames_fault(frames)
        if fault:
            raise InputError(f"{where}: context and target must be lists of frame numbers, but {name} {fault}")
        if len(set(frames)) < len(frames):
            twice = next(frame for n, frame in enumerate(frames) if frame in frames[:n])
            raise InputError(f"{where}: frame {shown(twice)} stands twice in {name}")
    context = entry["context"]
    target = entry["target"]
    if len(context) == 1 and context[0] in target:
        raise InputError(f"{where}: frame {shown(context[0])} is a target and the only context frame")
    return Selection(context, target)


def _frames_fault(frames: Any) -> str | None:
    """Why `frames` is not a list of frame numbers."""
    if not isinstance(frames, list):
        return f"is {shown(frames)}"
    if not frames:
        return "is empty"
    return next((f"holds {shown(frame)}" for frame in frames if type(frame) is not int or frame < 0), None)


def match_scenes(
    index: dict[str, Selection], scene_files: Sequence[Path], allow_outside: bool = False
) -> tuple[list[tuple[Path, Selection]], dict[str, str]]:
    """Pair the scenes of an index with their metadata files; also the scenes that cannot be evaluated, and why.

    Raises:
        InputError: two files are of one scene that the index names.
    """
    files: dict[str, Path] = {}
    for path in scene_files:
        if path.stem in index and files.setdefault(path.stem, path) != path:
            raise InputError(
                f"two files of the scene list are of scene {path.stem}: {files[path.stem]} and {path}: remove one"
            )
    found = []
    missing = {}
    for name, selection in index.items():
        fault = _fault(files[name], selection, allow_outside) if name in files else "not in the scene list"
        if fault:
            missing[name] = fault
        else:
            found.append((files[name], selection))
    return found, missing


def _fault(path: Path, selection: Selection, allow_outside: bool) -> str | None:
    """Why the frames of a selection cannot be evaluated, as far as the metadata tell."""
    try:
        scene = read_named_scene(path, allow_outside)
    except InputError as error:
        return str(error)
    faults = ((frame, scene.fault(frame)) for frame in selection.frames)
    return next((f"frame {shown(frame)}: {fault} ({path})" for frame, fault in faults if fault), None)


def fetch_evaluation_index(path: Path) -> None:
    """Download the RealEstate10K index to `path` if it is missing there and goes by the published name.

    Raises:
        InputError: there is no network, or the file is not the published one; the message says what to do.
    """
    if path.name != INDEX_NAME:
        return
    try:
        PublishedFile(INDEX_URL, INDEX_SHA256, limit=_INDEX_LIMIT).fetch(path)
    except (DownloadError, OSError) as error:
        raise InputError(
            f"evaluation index not found: {path}, and it cannot be fetched ({error}): "
            f"get {INDEX_URL} elsewhere and put it there"
        ) from None


def choose_selections(
    scene: Scene, contexts: Sequence[int], targets: int, distances: ViewSelectorConfig, seed: int
) -> list[Selection] | None:
    """Inputs and targets of one scene for each number of inputs; None if it is too short.

    A function of the scene's name and the seed. The first and last frame of a random window are inputs, further inputs
    stand evenly between them, and the targets are drawn from the frames that are input of none: they are the same for
    all. Their images are files, but no image is opened.

    Raises:
        InputError: the scene is too damaged; the message names a frame.
    """
    rng = np.random.default_rng([seed, zlib.crc32(scene.name.encode())])

    def draw() -> list[int] | None:
        window = choose_window(len(scene), _frames_of_window(contexts, targets), distances, rng)
        if window is None:
            return None
        first, last = window[:2]
        inputs = {frame for context in contexts for frame in spread_over(first, last, context)}
        between = np.setdiff1d(np.arange(first + 1, last), list(inputs))
        return [*sorted(inputs), *sorted(rng.choice(between, targets, replace=False).tolist())]

    frames = draw_usable(draw, lambda frame: _image_fault(scene, frame))
    if frames is None:
        return None
    *inputs, last = frames[:-targets]
    return [Selection(spread_over(inputs[0], last, context), frames[-targets:]) for context in contexts]


def _frames_of_window(contexts: Sequence[int], targets: int) -> int:
    """Frames that a window has at least, whose ends all numbers of inputs share."""
    return 2 + sum(context - 2 for context in contexts) + targets


def spread_selections(scene: Scene, contexts: Sequence[int], targets: int, seed: int) -> list[Selection] | None:
    """Inputs whose cameras lie apart (`spread_inputs`), and targets among all frames that are input of none.

    A function of the scene's name and the seed; None if it has too few frames. No image is opened.

    Args:
        targets: how many are drawn; 0: all.
    """
    usable = [frame for frame in scene.usable_frames() if _image_fault(scene, frame) is None]
    if len(usable) < max(contexts) + max(targets, 1):
        return None
    inputs = [spread_inputs(scene, context, usable) for context in contexts]
    others = sorted(set(usable).difference(*inputs))
    if targets:
        rng = np.random.default_rng([seed, zlib.crc32(scene.name.encode())])
        others = sorted(rng.choice(others, targets, replace=False).tolist())
    return [Selection(context, others) for context in inputs]


def _image_fault(scene: Scene, frame: int) -> str | None:
    """Why the image of a frame is not a file, without opening it."""
    try:
        path = scene.image_path(frame)
    except InputError as error:
        return str(error)
    if os.path.isfile(file_of(path)):  # noqa: PTH113  Path.is_file raises for some names
        return None
    return f"scene {scene.name}, frame {frame}: its image {printable(str(path))} is not a file that can be read"


def make_indices(
    scene_files: Sequence[Path], contexts: Sequence[int], targets: int, distances: ViewSelectorConfig | None, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """An evaluation index of these scenes for each number of inputs; null for those too short or too damaged.

    Also what is wrong with the damaged ones, a line each.

    Args:
        distances: of inputs in a clip, for `choose_selections`; None: frames have no order, as for `spread_selections`.

    Raises:
        InputError: two files are of one scene.
    """
    selections: dict[str, list[Selection] | None] = {}
    faults: list[str] = []
    for path in tqdm(scene_files, unit="scene", disable=None):
        if path.stem in selections:
            raise InputError(
                f"two files of the scene list are of scene {shown(path.stem)}: remove one, such as "
                f"{printable(str(path))}"
            )
        selections[path.stem] = None
        try:
            scene = read_named_scene(path, allow_outside=True)
            if distances is None:
                selections[path.stem] = spread_selections(scene, contexts, targets, seed)
            else:
                selections[path.stem] = choose_selections(scene, contexts, targets, distances, seed)
        except InputError as error:
            faults.append(str(error))
    indices = [
        {name: chosen and _record(chosen[number]) for name, chosen in selections.items()}
        for number in range(len(contexts))
    ]
    return indices, faults


def _record(selection: Selection) -> dict[str, list[int]]:
    return {"context": selection.context, "target": selection.target}


def _check_numbers(given: argparse.Namespace) -> None:
    """Raises InputError for an argument out of its range."""
    fewest = 0 if given.any_order else 1
    for name, least in (
        ("targets", fewest),
        ("seed", 0),
        ("min_frame_dist", 1),
        ("max_frame_dist", given.min_frame_dist),
    ):
        if getattr(given, name) < least:
            raise InputError(f"--{name} is {getattr(given, name)}; it must be at least {least}")
    for position, context in enumerate(given.context):
        if not 2 <= context <= _MOST_INPUTS:
            raise InputError(f"--context is {context}; it must be from 2 to {_MOST_INPUTS}")
        if context in given.context[:position]:
            raise InputError(f"--context names {context} twice: name it once")
    frames = _frames_of_window(given.context, given.targets)
    if not given.any_order and frames - 1 > given.max_frame_dist:
        raise InputError(
            f"--max_frame_dist={given.max_frame_dist} is too short for --context={_listed(given.context)} and "
            f"--targets={given.targets}, which need {frames - 1}"
        )


def _listed(contexts: Sequence[int]) -> str:
    return " ".join(map(str, contexts))


def numbered(path: Path, context: int) -> Path:
    """The file of the index with so many inputs, where there are several: `path` with the number in its name."""
    return path.with_name(f"{path.stem}_{context}{path.suffix}")


def _check_output(path: Path) -> None:
    """Raises InputError if something stands at `path` that is not an evaluation index."""
    if not path.exists():
        return
    try:
        read_evaluation_index(path, "--output")
    except InputError as error:
        raise InputError(f"--output would replace what is no evaluation index: {error}: choose another name") from None


def main(argv: Sequence[str]) -> None:
    """Write an evaluation index, or several."""
    parser = argparse.ArgumentParser(description=make_indices.__doc__.splitlines()[0] if make_indices.__doc__ else None)
    parser.add_argument(
        "--scenes", type=path_argument, required=True, help="scene list, full_list.txt of a preprocessed split"
    )
    parser.add_argument("--output", type=path_argument, required=True, help="JSON file to write")
    parser.add_argument(
        "--context", type=int, default=[2], nargs="+", metavar="N", help="input views; an index for each N"
    )
    parser.add_argument("--targets", type=int, default=3, help="target views; with --any_order 0 for all other frames")
    parser.add_argument(
        "--any_order",
        action="store_true",
        help="frames of objects, in no order: inputs lie apart, distances do not count",
    )
    parser.add_argument("--min_frame_dist", type=int, default=25, help="frames between the first and last input, least")
    parser.add_argument("--max_frame_dist", type=int, default=192, help="and most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    _check_numbers(given)
    if given.output.is_dir():
        raise InputError(f"--output {printable(str(given.output))} is a folder: name a file in it")
    distances = None if given.any_order else ViewSelectorConfig(given.min_frame_dist, given.max_frame_dist)
    several = len(given.context) > 1
    outputs = [numbered(given.output, context) if several else given.output for context in given.context]
    for output in outputs:
        _check_output(output)
    scene_files = read_scene_list(given.scenes)
    indices, faults = make_indices(scene_files, given.context, given.targets, distances, given.seed)
    if not any(indices[0].values()):
        wanted = f"--context={_listed(given.context)} and --targets={given.targets}"
        if not given.any_order:
            wanted = (
                f"--min_frame_dist={given.min_frame_dist}, {wanted} (views in no order, as of objects: --any_order)"
            )
        reason = f"can be used: {faults[0]}" if faults else f"has enough frames for {wanted}"
        raise InputError(f"no scene in {printable(str(given.scenes))} {reason}")
    for fault in faults[:_SHOWN]:
        log.warning("not in the index: %s", fault)
    if len(faults) > _SHOWN:
        log.warning("not in the index: %d damaged scenes in all", len(faults))
    for output, index in zip(outputs, indices, strict=True):
        write_json(output, index)
        log.info("%s: views of %d of %s", output, sum(map(bool, index.values())), counted(len(index), "scene"))


if __name__ == "__main__":
    run_main(main)
