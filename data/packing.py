"""Scenes as packed ones, a tar a clip, or the other way round.

    python -m data.packing preprocessed_data/train/full_list.txt --output_dir packed/train

The bytes of the frames stay as they are. Run it again to go on where it stopped; what could not be used is named at
the end and in OUTPUT_DIR/lost.json, and the exit code is then 1.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.outcome import tell
from data.packed import read_image_file
from data.parallel import DIED, import_in_parallel
from data.scene import read_named_scene, read_scene_list
from data.transforms import MAX_IMAGE_BYTES
from data.writing import ImportResult, NewScene, SceneWriter
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.parallel import cores_of_process
from utils.stop_signal import exit_on_sigterm
from utils.text import printable

# Scenes that a process takes at once.
_SCENES_A_TASK = 16


@dataclass(frozen=True)
class Task:
    """Scenes to be copied, by their metadata files."""

    paths: Sequence[Path]
    writer: SceneWriter
    allow_outside: bool

    def __len__(self) -> int:
        return len(self.paths)


def copy_scenes(paths: Sequence[Path], writer: SceneWriter, num_processes: int, allow_outside: bool) -> ImportResult:
    """Write scenes that are on disk as the writer does it.

    Args:
        allow_outside: images may lie outside the scenes' sets.

    Raises:
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    total = ImportResult()
    chosen = _first_of_each_name(paths, total)
    tasks = [
        Task(chosen[start : start + _SCENES_A_TASK], writer, allow_outside)
        for start in range(0, len(chosen), _SCENES_A_TASK)
    ]
    with writer.session():
        import_in_parallel(_copy, tasks, num_processes, _lose_all, total)
    return total


def _first_of_each_name(paths: Sequence[Path], total: ImportResult) -> list[Path]:
    """The metadata files whose names no file before has; the others are lost."""
    first: dict[str, Path] = {}
    for path in paths:
        if first.setdefault(path.stem, path) != path:
            total.lose(f"clip {path}", f"{first[path.stem]} is of a clip of this name, too: only that is used")
    return list(first.values())


def _lose_all(task: Task) -> ImportResult:
    result = ImportResult()
    for path in task.paths:
        result.lose(f"clip {path.stem}", DIED)
    return result


def _copy(task: Task) -> ImportResult:
    result = ImportResult()
    for path in task.paths:
        task.writer.add(path.stem, partial(_new_scene, path, task.allow_outside), result)
    return result


def _new_scene(path: Path, allow_outside: bool) -> NewScene:
    scene = read_named_scene(path, allow_outside)

    def read_image(frame: int) -> bytes:
        return read_image_file(scene.image_path(frame), MAX_IMAGE_BYTES)

    return NewScene(scene.name, read_image, scene.fxfycxcy, scene.w2c)


def _check_output(folder: Path, paths: Sequence[Path]) -> None:
    """Raises InputError if scenes would be written to the set that they are read from."""
    if folder.resolve() in {parent.resolve() for parent in {path.parent.parent for path in paths}}:
        raise InputError(f"--output_dir {printable(str(folder))} is the set that is read: name another folder")


def main(argv: Sequence[str]) -> None:
    """Pack the scenes of a list, or unpack them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("scenes", type=path_argument, help="scene list, full_list.txt of a preprocessed split")
    add("--output_dir", type=path_argument, required=True, help="folder of the new set, which gets a full_list.txt")
    add("--unpack", action="store_true", help="write frames as files of their own")
    add("--allow_outside_images", action="store_true", help="read images outside the set, too")
    add("--num_processes", type=int, default=cores_of_process(), help="default: all cores")
    given = parser.parse_args(argv)
    if given.num_processes < 1:
        raise InputError(f"--num_processes is {given.num_processes}; at least 1 is needed")
    paths = read_scene_list(given.scenes, "the command line")
    _check_output(given.output_dir, paths)
    writer = SceneWriter(given.output_dir, packed=not given.unpack)
    with exit_on_sigterm():
        tell(copy_scenes(paths, writer, given.num_processes, given.allow_outside_images), writer)


if __name__ == "__main__":
    run_main(main)
