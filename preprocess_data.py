"""RealEstate10K chunks -> scenes on disk.

    python preprocess_data.py --base_path re10k --output_dir preprocessed_data --mode train

Frames keep their original bytes and their numbers. Run it again to go on where it stopped: scenes that are complete
are left alone. What could not be used is named at the end and in OUTPUT_DIR/MODE/lost.json, and the exit code is then
1. Of two clips of one name, the one in the chunk that index.json says is written, or without an index the first.
"""

import argparse
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from data.importers.re10k import Clip, chunk_files, clip_key, missing_keys, open_chunk, parse_clip
from data.scene import Scene, read_scene, write_scene
from data.torch_file import DamagedError, TorchFile
from data.transforms import IMAGE_ERRORS, open_image, to_rgb
from geometry.camera_check import camera_faults
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.files import (
    errors_name,
    filled_files,
    is_inside,
    is_plain_name,
    remove_stale,
    sync_folder,
    temporary_path,
    write_json,
    write_text,
)
from utils.lock import only_writer
from utils.parallel import cores_of_process
from utils.pool import run_in_workers
from utils.text import printable, shown

log = logging.getLogger("lvsm")

_SHOWN = 20
_SYNCED_AT_ONCE = 16
_JPEG_START = b"\xff\xd8"
_FRAME_NAME = re.compile(r"\d{5,}\.(jpg|png)")
# Beyond that many processes (or the cores, if they are more) nothing gets faster.
_MOST_PROCESSES = 64


@dataclass(frozen=True)
class Output:
    """Where scenes go: `root` is OUT/MODE."""

    root: Path
    image_format: str

    def metadata(self, key: str) -> Path:
        """A scene's metadata; written last, so it marks the scene as complete."""
        return self.root / "metadata" / f"{key}.json"

    def images(self, key: str) -> Path:
        """The folder of a scene's frames."""
        return self.root / "images" / key

    def find(self, key: str) -> Scene | InputError | None:
        """The scene that an earlier run wrote, or why its metadata cannot be read; None if not every frame is there."""
        if not (is_plain_name(key) and self.metadata(key).exists() and self.images(key).is_dir()):
            return None
        try:
            scene = read_scene(self.metadata(key))
        except InputError as error:
            return error
        images = {image.name for image in scene.image_paths if image is not None}
        return scene if images <= filled_files(self.images(key)) else None

    def clear(self) -> None:
        """Remove what killed processes left; nobody may be writing."""
        for folder in (self.root / "metadata", self.root / "images"):
            remove_stale(folder)


@dataclass
class Report:
    """What became of clips: how many were written, how many were there before, and what was lost, by name.

    Of those that were there, `other_format` are not in the format that was asked for.
    """

    written: int = 0
    kept: int = 0
    other_format: int = 0
    lost: dict[str, str] = field(default_factory=dict)

    def lose(self, name: str, reason: object) -> None:
        """Add a loss; both texts may hold what stood in a file."""
        self.lost[printable(name, 250)] = printable(" ".join(str(reason).split()), 500)

    def lose_chunk(self, path: Path, keys: Sequence[str], reason: object) -> None:
        """Add the clips of a chunk, or the chunk itself where nobody says what it holds."""
        for name in [f"clip {key}" for key in keys] or [f"chunk {path.name}"]:
            self.lose(name, reason)

    def add(self, other: "Report") -> None:
        """Add up."""
        self.written += other.written
        self.kept += other.kept
        self.other_format += other.other_format
        self.lost |= other.lost


@dataclass(frozen=True)
class Task:
    """A chunk, the names of the clips to be written from it, and why other names in it are not."""

    path: Path
    keys: list[str]
    refused: dict[str, str]
    out: Output


@dataclass(frozen=True)
class Names:
    """The names of a chunk's clips, or why it cannot be read."""

    keys: list[str]
    fault: str | None = None


def names_in_chunk(path: Path) -> Names:
    """The names of a chunk's clips, in order; nothing else is read."""
    try:
        with open_chunk(path) as chunk:
            return Names([key for record in chunk.content if (key := clip_key(record)) is not None])
    except InputError as error:
        return Names([], str(error))


def process_chunk(task: Task) -> Report:
    """Write every clip of a chunk that is not complete yet; one bad clip or frame costs only itself.

    Raises:
        OSError: the disk is full or not writable.
    """
    torch.set_num_threads(1)
    report = Report()
    try:
        with open_chunk(task.path) as chunk:
            _process_records(chunk, task, report)
    except InputError as error:
        found = {key: scene for key in task.keys if (scene := task.out.find(key)) is not None}
        if found and len(found) == len(task.keys):
            for key, scene in found.items():
                _keep(key, scene, None, task.out, report)
        else:
            report.lose_chunk(task.path, task.keys, error)
    return report


def _process_records(chunk: TorchFile, task: Task, report: Report) -> None:
    left, allowed = set(task.keys), chunk.largest
    for number, record in enumerate(chunk.content):
        key = clip_key(record)
        name = f"{task.path.name}, clip {number}"
        try:
            if key is not None:
                _take(key, left, task)
                name = f"clip {key}"
            if key is not None and (found := task.out.find(key)) is not None:
                _keep(key, found, record, task.out, report)
                continue
            clip = parse_clip(record)
            # Frames may share what is stored, so that a small file may hold more than any disk.
            if clip.nbytes() > allowed:
                raise InputError(f"its frames have {clip.nbytes()} bytes; all of a chunk may have {chunk.largest}")
            allowed -= clip.nbytes()
            for frame, reason in write_clip(clip, task.out).items():
                report.lose(f"clip {key}, frame {frame}", reason)
            report.written += 1
        except DamagedError as error:
            report.lose(name, f"{task.path.name} is damaged (fetch it again): {error}")
        except (InputError, MemoryError) as error:
            report.lose(name, error or "there is not enough memory for it")
    for key in missing_keys(chunk.content, task.keys):
        report.lose(f"clip {key}", f"{task.path.name} does not hold it, though index.json says so")


def _take(key: str, left: set[str], task: Task) -> None:
    """Take a key from those that are left.

    Raises:
        InputError: it is not to be written from this chunk, or was already.
    """
    if key in left:
        left.remove(key)
    elif key in task.keys:
        raise InputError(f"clip {key} stands here for the second time; only the first is used")
    else:
        raise InputError(task.refused.get(key, f"index.json does not give clip {key} to this chunk"))


def _keep(key: str, scene: Scene | InputError, record: Any, out: Output, report: Report) -> None:
    """Count a scene that is there already; frames that it lost earlier are still lost.

    Metadata that cannot be read is named, and so is a record of another clip, whose poses are not the scene's.
    """
    path = out.metadata(key)
    if isinstance(scene, InputError):
        report.lose(f"clip {key}", f"{scene}; delete the file and run again")
        return
    if not _is_same(scene, record):
        report.lose(f"clip {key}", f"{path} was made of another clip of this name; delete it to have this one instead")
        return
    report.kept += 1
    report.other_format += _is_of_other_format(scene, record, out.image_format)
    for frame in range(len(scene)):
        if fault := scene.fault(frame):
            report.lose(f"clip {key}, frame {frame}", f"{fault}; delete {path} to try again")


def _is_same(scene: Scene, record: Any) -> bool:
    """Whether the scene's poses are a record's, if that has any."""
    try:
        w2c = parse_clip(record).w2c()
    except (InputError, DamagedError):
        return True
    known = [frame for frame, image in enumerate(scene.image_paths) if image is not None]
    return len(w2c) == len(scene) and np.allclose(w2c[known], scene.w2c[known], rtol=1e-5, atol=1e-7)


def _is_of_other_format(scene: Scene, record: Any, image_format: str) -> bool:
    """Whether a run that asks for `image_format` would have written a scene's first frame in another."""
    first = next(frame for frame, image in enumerate(scene.image_paths) if image is not None)
    is_png = scene.image_path(first).suffix == ".png"
    if image_format == "png" or not is_png:
        return image_format == "png" and not is_png
    try:
        return parse_clip(record).image(first).startswith(_JPEG_START)
    except (InputError, DamagedError):
        return False


def write_clip(clip: Clip, out: Output) -> dict[int, str]:
    """Write a clip's frames, then its metadata; return the frames that were lost and why.

    Raises:
        InputError: no frame of the clip is usable, or its folder holds what is not ours.
        DamagedError: the chunk does not hold what was written.
        OSError: the disk is full or not writable; the scene is then not there.
    """
    with _new_folder(out.images(clip.key), out.root) as folder:
        frames, lost = _write_frames(clip, folder, out.image_format)
        fxfycxcy, w2c = _cameras(clip, [None if frame is None else frame[1] for frame in frames], lost)
        for number, frame in enumerate(frames):
            if number in lost and frame is not None:
                (folder / frame[0]).unlink()
        if len(lost) == len(frames):
            raise InputError(f"none of its {len(frames)} frames can be used; frame 0: {lost[0]}")
    paths = [
        None if frame is None or number in lost else out.images(clip.key) / frame[0]
        for number, frame in enumerate(frames)
    ]
    write_scene(Scene(clip.key, paths, fxfycxcy, w2c, out.metadata(clip.key)))
    return lost


def _write_frames(
    clip: Clip, folder: Path, image_format: str
) -> tuple[list[tuple[str, tuple[int, int]] | None], dict[int, str]]:
    """Write every frame that is an image; file names with (width, height), and the reason of each of the others."""
    frames: list[tuple[str, tuple[int, int]] | None] = []
    lost = {}
    for number in range(len(clip.images)):
        try:
            data, suffix, size = _encode(clip.image(number), image_format)
        except IMAGE_ERRORS as error:
            frames.append(None)
            lost[number] = f"cannot be decoded: {str(error).split(' <')[0]}"
            continue
        name = f"{number:05d}.{suffix}"
        (folder / name).write_bytes(data)
        frames.append((name, size))
    return frames, lost


def _encode(data: bytes, image_format: str) -> tuple[bytes, str, tuple[int, int]]:
    """File content, suffix and (width, height) of a frame.

    The header is read and the end marker of a JPEG looked for; pixels are decoded only if that is not the end.

    Raises:
        IMAGE_ERRORS: the bytes are not an image that is read, or one cut short.
    """
    with open_image(data) as image:
        size = image.size
        if image_format == "png":
            buffer = BytesIO()
            to_rgb(image).save(buffer, format="png")
            return buffer.getvalue(), "png", size
        if image.format != "JPEG" or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            image.load()
        return data, "jpg" if image.format == "JPEG" else "png", size


def _cameras(clip: Clip, sizes: list[tuple[int, int] | None], lost: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics in pixels and w2c; frames whose camera is of no use join `lost`, and have NaN for a camera.

    A frame lost for its image keeps its camera, in pixels of the first good frame.
    """
    first = next((size for size in sizes if size is not None), (1, 1))
    pixels = np.array([size or first for size in sizes], dtype=np.float64)
    fxfycxcy = clip.cameras[:, :4] * pixels[:, [0, 1, 0, 1]]
    w2c = clip.w2c()
    faults = camera_faults(fxfycxcy, w2c, pixels)
    for frame, reason in faults.items():
        lost.setdefault(frame, f"it has no usable camera: {reason}")
    fxfycxcy[list(faults)] = np.nan
    w2c[list(faults)] = np.nan
    return fxfycxcy, w2c


@contextmanager
def _new_folder(folder: Path, root: Path) -> Iterator[Path]:
    """A folder to write files to, which takes the place of `folder` once they are on disk.

    Raises:
        InputError: what is there is a link, leads out of `root`, or holds something other than frames.
    """
    _check_replaceable(folder, root)
    temporary = temporary_path(folder)
    try:
        with errors_name(folder):
            temporary.mkdir(parents=True)
            yield temporary
            # Together, since a disk that is asked for many at once writes them in few goes.
            with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
                list(pool.map(_sync, temporary.iterdir()))
            sync_folder(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _check_replaceable(folder: Path, root: Path) -> None:
    """What stands at `folder` without metadata is taken to be of a run that was killed, if it looks like that."""
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not folder.is_dir() or not is_inside(folder, root):
        raise InputError(f"{folder} stands in its place, and is not a folder of this set: move it away")
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file() or not _FRAME_NAME.fullmatch(path.name):
            raise InputError(f"{folder} holds {shown(path.name)}, which is not a frame: move it away")


def preprocess(chunks: dict[Path, list[str] | None], out: Output, num_processes: int) -> Report:
    """Process all chunks in parallel, then write the scene list. A worker that dies costs the chunk.

    Raises:
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    total = Report()
    for folder in (out.root / "metadata", out.root / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    out.clear()
    workers = min(num_processes, max(_MOST_PROCESSES, cores_of_process()))
    try:
        tasks = _share_out(_all_names(chunks, workers, total), out)
        _process_chunks(tasks, workers, total)
    finally:
        out.clear()
    _write_list(out.root)
    return total


def _all_names(chunks: dict[Path, list[str] | None], workers: int, report: Report) -> dict[Path, list[str] | None]:
    """The names of each chunk's clips: those that the index says, or without one, those in it."""
    names = dict(chunks)

    def add(path: Path, found: Names | None) -> None:
        if found is not None and found.fault is None:
            names[path] = found.keys
        else:
            report.lose_chunk(path, [], _died(path) if found is None else found.fault)
            del names[path]

    run_in_workers(names_in_chunk, [path for path, keys in chunks.items() if keys is None], workers, add)
    return names


def _died(path: Path) -> str:
    return f"the process that read it died twice (out of memory?): {path.name} is too large, or not a sound chunk"


def _share_out(names: dict[Path, list[str] | None], out: Output) -> list[Task]:
    """Say from which chunk each clip is written: the first that has its name."""
    fold = _folding(out.root)
    first: dict[str, tuple[str, Path]] = {}
    tasks = []
    for path, keys in names.items():
        own: dict[str, None] = {}
        refused = {}
        for key in keys or []:
            other = first.setdefault(fold(key), (key, path))
            if other == (key, path):
                own[key] = None
            else:
                refused[key] = f"clip {key} is not written, since {other[1].name} has a clip {other[0]} before it"
        tasks.append(Task(path, list(own), refused, out))
    return tasks


def _folding(root: Path) -> Callable[[str], str]:
    """What makes those names alike that are one to the file system of `root`, where `metadata` stands."""
    return str.casefold if (root / "METADATA").exists() else str


def _process_chunks(tasks: list[Task], workers: int, total: Report) -> None:
    with tqdm(total=sum(len(task.keys) for task in tasks), desc="clips", unit="clip", disable=None) as bar:

        def add(task: Task, report: Report | None) -> None:
            if report is None:
                total.lose_chunk(task.path, [key for key in task.keys if task.out.find(key) is None], _died(task.path))
                return
            total.add(report)
            bar.update(report.written + report.kept)

        run_in_workers(process_chunk, tasks, workers, add)


def _write_list(root: Path) -> None:
    """List every complete scene of the split, whichever run wrote it."""
    scenes = sorted((root / "metadata").glob("[!.]*.json"))
    write_text(root / "full_list.txt", "".join(f"metadata/{path.name}\n" for path in scenes))


def _say(report: Report, out: Output) -> None:
    """Print the outcome; write what was lost to a file, and exit with 1 if anything was."""
    where = printable(str(out.root / "full_list.txt"))
    print(f"{report.written} clips written, {report.kept} already there: {where}")
    if report.other_format:
        log.warning(
            "%d of the clips already there are kept in another format than --image_format %s: "
            "name another --output_dir to have them in it, or delete them first",
            report.other_format,
            out.image_format,
        )
    lost_path = out.root / "lost.json"
    if not report.lost:
        lost_path.unlink(missing_ok=True)
        return
    lost = dict(sorted(report.lost.items()))
    write_json(lost_path, lost)
    for name, reason in list(lost.items())[:_SHOWN]:
        print(printable(f"lost: {name}: {reason}"), file=sys.stderr)
    raise InputError(f"{len(report.lost)} clips or frames were lost; {lost_path} names them all")


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Make SIGTERM end the run as Ctrl-C does: no worker goes on."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        log.warning("%s: stopping; run again to go on", signal.Signals(number).name)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str]) -> None:
    """Parse arguments, process one split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base_path", type=path_argument, required=True, help="folder with train/ and test/ chunk folders"
    )
    parser.add_argument("--output_dir", type=path_argument, required=True, help="scenes go to OUTPUT_DIR/MODE")
    parser.add_argument("--mode", choices=["train", "test"], required=True, help="which split")
    parser.add_argument("--num_processes", type=int, help="default: all cores")
    parser.add_argument(
        "--image_format",
        choices=["jpeg", "png"],
        default="jpeg",
        help="jpeg keeps the original bytes; png re-encodes them (the same pixels in 6.6 times the space)",
    )
    arguments = parser.parse_args(argv)
    processes = cores_of_process() if arguments.num_processes is None else arguments.num_processes
    if processes < 1:
        raise InputError(f"--num_processes is {processes}; at least 1 is needed")
    chunks = chunk_files(arguments.base_path / arguments.mode)
    out = Output(arguments.output_dir / arguments.mode, arguments.image_format)
    with _stopped_by_sigterm(), only_writer(out.root, "--output_dir"):
        _say(preprocess(chunks, out, processes), out)


if __name__ == "__main__":
    run_main(main)
