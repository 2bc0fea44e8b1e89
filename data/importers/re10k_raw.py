"""RealEstate10K as it is published, camera files, with the frames that a person has of it -> scenes on disk.

The frames of a clip are images (JPEG or PNG, which keep their bytes) named by their timestamps in a folder of the
clip's name, or those of its video that are shown nearest to the timestamps, which are written in the video's size.
"""

import importlib.util
import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from data.importers.re10k_cameras import is_camera_file
from data.importers.re10k_media import TOLERANCE, FrameReader, Media, RawClip, find_clip, usual_media
from data.parallel import DIED, import_in_parallel, useful_workers
from data.scene import Scene
from data.shards import Shard
from data.transforms import JPEG_QUALITY
from data.writing import ImportResult, NewScene, SceneWriter
from utils.errors import InputError
from utils.pool import run_in_workers
from utils.text import counted, printable

log = logging.getLogger("lvsm")

# The table: what there is of clips, and what became of them.
_CAMERAS = "clips with sound cameras"
_ALL_IMAGES = "clips with an image of every frame"
_SOME_IMAGES = "clips with images of some frames"
_VIDEO = "clips with a video"
_NOTHING = "clips with neither images nor a video"
_WHOLE = "scenes with all frames"
_PARTLY = "scenes that lack frames"
_NO_CAMERAS = "clips lost, since their cameras cannot be used"
_NO_MEDIA = "clips lost, since there are neither images nor a video"
_UNUSABLE = "clips lost, since their images, their video or an earlier scene cannot be used"
_DIED = "clips lost, since the process that read them died"
_TABLE = (
    *(_CAMERAS, _ALL_IMAGES, _SOME_IMAGES, _VIDEO, _NOTHING),
    *(_WHOLE, _PARTLY, _NO_CAMERAS, _NO_MEDIA, _UNUSABLE, _DIED),
)


def find_camera_files(folder: Path) -> list[Path]:
    """The text files of a folder, hidden ones left out, if there is a camera file of a clip among them."""
    paths = sorted(folder.glob("[!.]*.txt"))
    return paths if any(map(is_camera_file, paths)) else []


@dataclass(frozen=True)
class Task:
    """A clip to be written."""

    path: Path
    media: Media
    writer: SceneWriter

    def __len__(self) -> int:
        return 1


def import_folder(folder: Path, writer: SceneWriter, num_processes: int, media: Media | None = None) -> ImportResult:
    """Write the scenes of all camera files of a split, then their list; the result has a table of what there is.

    Args:
        media: where the frames are; None: where they usually are.

    Raises:
        InputError: there are no camera files, no frames, or videos but no PyAV.
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    media = media or usual_media(folder, None, None, TOLERANCE)
    tasks = [Task(path, media, writer) for path in _files_of_shard(folder, writer.shard)]
    _check_media(media)
    log.info("frames are %s", media)
    if media.has_videos():
        log.info(
            "from videos the frame nearest to each timestamp is taken, at most %g ms away (--tolerance), and stored as "
            "JPEG of quality %d, or as PNG with --image_format png",
            media.tolerance,
            JPEG_QUALITY,
        )
    total = ImportResult(table=Counter(dict.fromkeys(_TABLE, 0)))
    with writer.session():
        import_in_parallel(import_clip, tasks, num_processes, _lose, total)
    return total


def _files_of_shard(folder: Path, shard: Shard) -> list[Path]:
    paths = find_camera_files(folder)
    if not paths:
        raise InputError(f"no camera files (*.txt) in {printable(str(folder))}")
    return [path for path in paths if shard.holds(path.stem)]


def _check_media(media: Media) -> None:
    if not media.is_there():
        raise InputError(f"nothing is there of {media}: --list_missing says which videos to fetch")
    if media.has_videos() and importlib.util.find_spec("av") is None:
        raise InputError("videos are read with PyAV, which is not installed: pip install -r requirements.txt")


def import_clip(task: Task) -> ImportResult:
    """Write a clip unless it is there.

    Raises:
        OSError: the disk is full or not writable.
    """
    result = ImportResult()
    try:
        clip = find_clip(task.path, task.media)
    except InputError as error:
        task.writer.add(task.path.stem, partial(_refuse, error), result)
        return _with_outcome(result, _NO_CAMERAS)
    result.table.update(_rows(clip))
    with FrameReader(clip, task.media, task.writer.image_format) as reader:
        task.writer.add(clip.key, partial(_new_scene, clip, reader), result)
    return _with_outcome(result, _NO_MEDIA if clip.has_nothing else _UNUSABLE)


def _refuse(error: InputError) -> NoReturn:
    raise error


def _new_scene(clip: RawClip, reader: FrameReader) -> NewScene:
    if clip.has_nothing:
        raise InputError(f"there are neither images nor a video: {clip.missing}")
    return NewScene(clip.key, reader.read, clip.cameras.rows[:, :4], clip.cameras.w2c, normalized=True)


def _rows(clip: RawClip) -> list[str]:
    """The rows of the table in which a clip counts, whatever becomes of it."""
    rows = {
        _CAMERAS: True,
        _ALL_IMAGES: clip.has_all_images,
        _SOME_IMAGES: bool(clip.images) and not clip.has_all_images,
        _VIDEO: clip.video is not None,
        _NOTHING: clip.has_nothing,
    }
    return [row for row, counts in rows.items() if counts]


def _with_outcome(result: ImportResult, loss: str) -> ImportResult:
    """The result of a clip with the row of what became of it; `loss` is that of a clip that is lost."""
    scene = _PARTLY if result.lost else _WHOLE
    result.table[scene if result.written + result.kept else loss] += 1
    return result


def _lose(task: Task) -> ImportResult:
    result = ImportResult(table=Counter([_DIED]))
    result.lose(f"clip {task.path.stem}", DIED)
    return result


@dataclass(frozen=True)
class Missing:
    """What is to be fetched of a clip: a video; None: nothing, or nobody knows, as `fault` then says."""

    video_id: str | None
    fault: str | None = None


def missing_videos(
    folder: Path, num_processes: int, media: Media, shard: Shard, written: SceneWriter | None
) -> list[str]:
    """The ids of the videos that clips need which lack images, and whose scenes `written` does not have as a whole.

    Clips of which that cannot be said are left out, and counted in a warning.

    Raises:
        InputError: there are no camera files.
    """
    found: list[str] = []
    faults: dict[Path, str] = {}

    def add(path: Path, result: Missing | None) -> None:
        missing = result or Missing(None, DIED)
        if missing.fault is not None:
            faults[path] = missing.fault
        elif missing.video_id is not None:
            found.append(missing.video_id)

    work = partial(find_missing, media=media, written=written)
    run_in_workers(work, _files_of_shard(folder, shard), useful_workers(num_processes), add)
    log.info("%s lack images and a video; their videos: %d", counted(len(found), "clip"), len(set(found)))
    if faults:
        path = min(faults)
        log.warning("%s left out, first %s: %s", counted(len(faults), "clip"), path.stem, faults[path])
    return sorted(set(found))


def find_missing(path: Path, media: Media, written: SceneWriter | None) -> Missing:
    """What is to be fetched of a clip."""
    found = None if written is None else written.find(path.stem)
    if isinstance(found, Scene) and None not in found.image_paths:
        return Missing(None)
    try:
        clip = find_clip(path, media)
    except InputError as error:
        return Missing(None, str(error))
    if clip.has_all_images or clip.video is not None:
        return Missing(None)
    return Missing(clip.video_id, clip.missing if clip.video_id is None else None)
