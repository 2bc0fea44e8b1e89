"""The scenes of an evaluation: which ones, with which views, and how they are read."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from data.dataset import Batch, EvaluationDataset, Remark, Unusable, ViewLoader
from data.evaluation_index import fetch_evaluation_index, match_scenes, read_evaluation_index
from data.loader import LoaderConfig, evaluation_batches
from data.scene import check_cameras_are_of, read_cameras, read_scene, read_scene_list
from data.transforms import IMAGE_ERRORS, open_image
from data.views import Selection, select_own
from geometry.paths import VideoConfig
from utils.distributed import Process
from utils.errors import InputError
from utils.text import counted, printable

log = logging.getLogger("lvsm")

# A scene's metadata file, and its views.
Item = tuple[Path, Selection]
# Reads a process's part of the scenes, in batches.
ReadItems = Callable[[list[Item]], Iterator[Batch | Unusable]]

_GO_ON = "inference.allow_missing=true goes on without them"


def items_reader(
    load: ViewLoader, cfg: LoaderConfig, process: Process, patience: float, remark: Remark | None = None
) -> ReadItems:
    """A function that reads this process's part of the items it is given.

    Args:
        patience: seconds after which a batch that does not come is an error.
        remark: gives what is to be said of a scene.
    """

    def read(items: list[Item]) -> Iterator[Batch | Unusable]:
        dataset = EvaluationDataset(load, items, remark)
        return evaluation_batches(dataset, cfg, cfg.batch_size_per_gpu, process.rank, process.world_size, patience)

    return read


def find_items(
    index_path: Path,
    list_path: Path,
    allow_missing: bool,
    allow_outside: bool = False,
    keys: tuple[str, str] = ("inference.view_idx_file_path", "training.dataset_path"),
) -> tuple[list[Item], dict[str, str]]:
    """The scenes of an evaluation index with their views, in its order; the published index is fetched if missing.

    Args:
        keys: what named the two paths, for messages.

    Returns:
        The scenes to evaluate, and why each of the others is left out.

    Raises:
        InputError: the index is missing, or a scene that it names, unless `allow_missing` leaves such scenes out.
    """
    fetch_evaluation_index(index_path)
    index = read_evaluation_index(index_path, keys[0])
    items, missing = match_scenes(index, read_scene_list(list_path, keys[1]), allow_outside)
    if not items:
        raise InputError(
            f"none of the scenes in {index_path} can be evaluated with {list_path} ({_some(missing)}): "
            f"does {keys[1]} name the list of these scenes?"
        )
    scenes = counted(len(index), "scene")
    if missing and not allow_missing:
        remedy = "make an index without them" if keys[0].startswith("training.") else _GO_ON
        raise InputError(
            f"{len(missing)} of the {scenes} in {index_path} cannot be evaluated with "
            f"{list_path} ({_some(missing)}): {remedy}"
        )
    if missing:
        log.warning("left out: %d of the %s of the index (%s)", len(missing), scenes, _some(missing))
    return items, missing


def own_items(
    list_path: Path,
    num_inputs: int,
    input_frames: Sequence[int],
    *,
    filmed: bool,
    allow_missing: bool,
    allow_outside: bool = False,
) -> tuple[list[Item], dict[str, str]]:
    """All scenes of a list with views chosen here (`select_own`), for scenes without an index.

    Args:
        filmed: videos are rendered, so that a scene needs no frame besides its inputs.

    Returns:
        The scenes to evaluate, and why each of the others is left out.

    Raises:
        InputError: a scene cannot be evaluated, unless `allow_missing` leaves such scenes out; or none can.
    """
    items = []
    missing = {}
    for path in read_scene_list(list_path, "training.dataset_path"):
        try:
            items.append((path, _own_selection(path, num_inputs, input_frames, filmed, allow_outside)))
        except InputError as error:
            missing[path.stem] = str(error)
    if missing and not (items and allow_missing):
        remedy = f": {_GO_ON}" if items else ""
        raise InputError(f"{_left_out(missing, list_path)}{remedy}")
    if missing:
        log.warning("left out: %s", _left_out(missing, list_path))
    return items, missing


def _own_selection(
    path: Path, num_inputs: int, input_frames: Sequence[int], filmed: bool, allow_outside: bool
) -> Selection:
    selection = select_own(read_scene(path, allow_outside), num_inputs, input_frames)
    if not (selection.target or filmed):
        raise InputError("every frame is an input: inference.render_video=true films it")
    return selection


def _left_out(missing: dict[str, str], list_path: Path) -> str:
    return f"{counted(len(missing), 'scene')} of {list_path} cannot be evaluated ({_some(missing)})"


def _some(missing: dict[str, str]) -> str:
    named = [f"{printable(name, 80)}: {reason}" for name, reason in list(missing.items())[:3]]
    return "; ".join(named + ["..."] * (len(missing) > 3))


def whole(batches: Iterable[Batch | Unusable]) -> Iterator[Batch]:
    """The batches of scenes that are all to be read.

    Raises:
        InputError: one cannot be read.
    """
    for batch in batches:
        if isinstance(batch, Unusable):
            raise InputError(batch.reason)
        yield batch


def check_saved_cameras(path: Path, items: list[Item], allow_outside: bool) -> None:
    """Raises InputError for saved cameras that are of another scene, or cannot be meant for a scene's images."""
    checked = set()
    for scene, selection in items:
        file = cameras_file(path, scene.stem)
        size = _input_size(scene, selection, allow_outside)
        if file != path:
            check_cameras_are_of(file, scene.stem)
        if (file, size) not in checked:
            read_cameras(file, size)
            checked.add((file, size))


def _input_size(path: Path, selection: Selection, allow_outside: bool) -> tuple[int, int] | None:
    """Width and height of the first input image of a scene; None if it cannot be read, as will be told in its turn."""
    try:
        with open_image(read_scene(path, allow_outside).image_path(selection.context[0])) as image:
            return image.size
    except (InputError, *IMAGE_ERRORS):
        return None


def saved_cameras(cfg: VideoConfig, items: list[Item]) -> set[Path]:
    """The files of saved cameras that videos of these scenes need."""
    if cfg.traj_type != "through":
        return set()
    return {cameras_file(Path(cfg.cameras_path), path.stem) for path, _ in items}


def cameras_file(path: Path, scene: str) -> Path:
    """The saved cameras of a scene: `path` itself, or `<scene>.json` in it if it is a folder."""
    return path / f"{scene}.json" if path.is_dir() else path
