"""RealEstate10K chunks -> scenes on disk, in parallel; a chunk, clip or frame that cannot be used costs only itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.importers.re10k_chunks import Clip, chunk_files, clip_key, missing_keys, open_chunk, parse_clip
from data.parallel import DIED, import_in_parallel, useful_workers
from data.writing import ImportResult, NewScene, SceneWriter, loss_reason
from utils.errors import DamagedError, InputError
from utils.pool import run_in_workers
from utils.torch_file import TorchFile


def import_folder(folder: Path, writer: SceneWriter, num_processes: int) -> ImportResult:
    """Write the scenes of all chunks of a split."""
    return import_chunks(chunk_files(folder), writer, num_processes)


def import_chunks(chunks: dict[Path, list[str] | None], writer: SceneWriter, num_processes: int) -> ImportResult:
    """Write the scenes of all chunks in parallel, then their list. A worker that dies costs the chunk.

    Args:
        chunks: with the names of their clips, if an index gives them (`re10k_chunks.chunk_files`).

    Raises:
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    total = ImportResult()
    with writer.session():
        tasks = _assign_clips(_all_names(chunks, useful_workers(num_processes), total), writer)
        import_in_parallel(import_chunk, tasks, num_processes, _lose_rest, total)
    return total


@dataclass(frozen=True)
class Task:
    """A chunk, the names of the clips to be written from it, and why other names in it are not."""

    path: Path
    keys: list[str]
    refused: dict[str, str]
    writer: SceneWriter

    def __len__(self) -> int:
        return len(self.keys)


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


def _all_names(
    chunks: dict[Path, list[str] | None], workers: int, result: ImportResult
) -> dict[Path, list[str] | None]:
    """The names of each chunk's clips: those that the index says, or without one, those in it."""
    names = dict(chunks)

    def add(path: Path, found: Names | None) -> None:
        if found is not None and found.fault is None:
            names[path] = found.keys
        else:
            _lose_chunk(result, path, [], _died(path) if found is None else found.fault)
            del names[path]

    run_in_workers(names_in_chunk, [path for path, keys in chunks.items() if keys is None], workers, add)
    return names


def _died(path: Path) -> str:
    return f"{DIED}: {path.name} is too large, or not a sound chunk"


def _lose_chunk(result: ImportResult, path: Path, keys: Sequence[str], reason: object) -> None:
    """Add the clips of a chunk to what was lost, or the chunk itself where nobody says what it holds."""
    for name in [f"clip {key}" for key in keys] or [f"chunk {path.name}"]:
        result.lose(name, reason)


def _assign_clips(names: dict[Path, list[str] | None], writer: SceneWriter) -> list[Task]:
    """Say from which chunk each clip is written: the first that has its name."""
    fold = _folding(writer.root)
    first: dict[str, tuple[str, Path]] = {}
    tasks = []
    for path, keys in names.items():
        own: dict[str, None] = {}
        refused = {}
        for key in filter(writer.shard.holds, keys or []):
            other = first.setdefault(fold(key), (key, path))
            if other == (key, path):
                own[key] = None
            else:
                refused[key] = f"clip {key} is not written, since {other[1].name} has a clip {other[0]} before it"
        tasks.append(Task(path, list(own), refused, writer))
    return tasks


def _folding(root: Path) -> Callable[[str], str]:
    """What makes those names alike that are one to the file system of `root`, where `metadata` stands."""
    return str.casefold if (root / "METADATA").exists() else str


def _lose_rest(task: Task) -> ImportResult:
    """What a chunk costs that kills its process: the clips that are not there yet."""
    result = ImportResult()
    left = [key for key in task.keys if task.writer.find(key) is None]
    _lose_chunk(result, task.path, left, _died(task.path))
    return result


def import_chunk(task: Task) -> ImportResult:
    """Write every clip of a chunk that is not complete yet; one bad clip or frame costs only itself.

    Raises:
        OSError: the disk is full or not writable.
    """
    torch.set_num_threads(1)
    result = ImportResult()
    try:
        with open_chunk(task.path) as chunk:
            _ChunkImport(chunk, task, result).run()
    except InputError as error:
        _keep_all(task, error, result)
    return result


def _keep_all(task: Task, error: InputError, result: ImportResult) -> None:
    """Count the clips of a chunk that cannot be read if all of them are there; else they are lost."""
    found = {key: scene for key in task.keys if (scene := task.writer.find(key)) is not None}
    if not found or len(found) < len(task.keys):
        _lose_chunk(result, task.path, task.keys, error)
        return
    for key, scene in found.items():
        task.writer.keep(key, scene, None, result)


class _ChunkImport:
    """The import of one chunk that is open."""

    def __init__(self, chunk: TorchFile, task: Task, result: ImportResult) -> None:
        self._chunk = chunk
        self._task = task
        self._result = result
        self._left = set(task.keys)
        self._allowed_bytes = chunk.largest

    def run(self) -> None:
        """Write all clips; what is lost joins the result."""
        for number, record in enumerate(self._chunk.content):
            key = clip_key(record)
            if key is not None and not self._task.writer.shard.holds(key):
                continue
            name = f"{self._task.path.name}, clip {number}"
            try:
                if key is not None:
                    self._take(key)
                    name = f"clip {key}"
                self._write(key, record)
            except DamagedError as error:
                self._result.lose(name, f"{self._task.path.name} is damaged (fetch it again): {error}")
            except (InputError, MemoryError) as error:
                self._result.lose(name, loss_reason(error))
        for key in missing_keys(self._chunk.content, self._task.keys):
            self._result.lose(f"clip {key}", f"{self._task.path.name} does not hold it, though index.json says so")

    def _take(self, key: str) -> None:
        """Take a key from those that are left.

        Raises:
            InputError: it is not to be written from this chunk, or was already.
        """
        if key in self._left:
            self._left.remove(key)
        elif key in self._task.keys:
            raise InputError(f"clip {key} stands here for the second time; only the first is used")
        else:
            raise InputError(self._task.refused.get(key, f"index.json does not give clip {key} to this chunk"))

    def _write(self, key: str | None, record: Any) -> None:
        """Write a record's clip unless it is there.

        Raises:
            InputError, DamagedError, MemoryError: the clip cannot be used.
        """
        writer = self._task.writer
        if key is not None and (found := writer.find(key)) is not None:
            writer.keep(key, found, lambda: new_scene(parse_clip(record)), self._result)
            return
        clip = parse_clip(record)
        # Frames may share what is stored, so that a small file may hold more than any disk.
        if clip.nbytes() > self._allowed_bytes:
            raise InputError(
                f"its frames have {clip.nbytes()} bytes; those of all clips of the chunk may have {self._chunk.largest}"
            )
        self._allowed_bytes -= clip.nbytes()
        writer.write(new_scene(clip), self._result)


def new_scene(clip: Clip) -> NewScene:
    """A clip, to be written."""
    return NewScene(clip.key, clip.image, clip.cameras[:, :4], clip.w2c(), normalized=True)
