"""Scenes written to disk: each whole or not at all, so that a run goes on where another stopped, and losses named.

writer = SceneWriter(Path("preprocessed_data/mine"))
result = ImportResult()
with writer.session():
    writer.add("kitchen", lambda: NewScene("kitchen", read_image, fxfycxcy, w2c), result)
writer.write_lost(result)
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.packed import NewPack, PackedImage, first_name, holds, new_pack, read_image_file
from data.scene import Scene, read_scene, write_scene
from data.shards import Shard
from data.transforms import IMAGE_ERRORS, MAX_IMAGE_BYTES, open_image, to_8_bits
from geometry.camera_check import camera_faults
from utils.errors import DamagedError, InputError
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
from utils.text import printable, shown

# A disk that is asked to sync many files at once writes them in few goes.
_SYNCED_AT_ONCE = 16
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_FRAME_NAME = re.compile(r"\d{5,}\.(jpg|png)")


class UnusableFrame(ValueError):
    """Why a frame has no image, in words."""


@dataclass(frozen=True)
class NewScene:
    """A scene to be written, as its source gives it.

    Attributes:
        key: its name, a plain one.
        read_image: gives the content of a frame's image file, JPEG or PNG. It may raise `UnusableFrame` or another of
            `IMAGE_ERRORS` for a frame that has none, and `DamagedError` where the whole scene is damaged.
        fxfycxcy: intrinsics [n, 4].
        w2c: world-to-camera matrices [n, 4, 4], OpenCV axes.
        normalized: intrinsics are fractions of an image's width and height, not pixels.
    """

    key: str
    read_image: Callable[[int], bytes]
    fxfycxcy: Float[np.ndarray, "n 4"]
    w2c: Float[np.ndarray, "n 4 4"]
    normalized: bool = False


@dataclass
class ImportResult:
    """What became of clips: how many were written, how many were there before, and what was lost, by name.

    Of those that were there, `other_format` are not in the format that was asked for, and `other_packing` are packed
    where that was not asked for, or the other way round. A `table` counts what an importer wants told of all clips.
    """

    written: int = 0
    kept: int = 0
    other_format: int = 0
    other_packing: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    table: Counter[str] = field(default_factory=Counter)

    def lose(self, name: str, reason: object) -> None:
        """Add a loss; both texts may hold what stood in a file."""
        self.lost[printable(name, 250)] = printable(" ".join(str(reason).split()), 500)

    def add(self, other: "ImportResult") -> None:
        """Add up."""
        self.written += other.written
        self.kept += other.kept
        self.other_format += other.other_format
        self.other_packing += other.other_packing
        self.lost |= other.lost
        self.table.update(other.table)


@dataclass(frozen=True)
class SceneWriter:
    """Writes the scenes of a set to `root`, with a list of them (`full_list.txt`) and of losses (`lost.json`).

    Args:
        root: the folder of the set, with `metadata` and `images`.
        image_format: `jpeg` keeps the original bytes of all images, `png` makes PNG files of them.
        named: what named the folder, for messages.
        packed: the frames of a scene are written as one tar, not as files of their own.
        check_images: every frame is decoded, those of scenes that are there, too.
        shard: the scenes that are written; others are passed over.
    """

    root: Path
    image_format: str = "jpeg"
    named: str = "--output_dir"
    packed: bool = False
    check_images: bool = False
    shard: Shard = Shard()  # noqa: RUF009  a frozen one

    def metadata(self, key: str) -> Path:
        """A scene's metadata; written last, so it marks the scene as complete."""
        return self.root / "metadata" / f"{key}.json"

    def images(self, key: str) -> Path:
        """The folder of a scene's frames."""
        return self.root / "images" / key

    def pack(self, key: str) -> Path:
        """The tar of a scene's frames."""
        return self.root / "images" / f"{key}.tar"

    @contextmanager
    def session(self) -> Iterator[None]:
        """Enter it around all writing, in the process whose workers write; at its end all scenes are listed.

        Raises:
            InputError: another run writes to the folder.
            OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
        """
        with only_writer(self.root, self.named):
            for folder in (self.root / "metadata", self.root / "images"):
                folder.mkdir(parents=True, exist_ok=True)
            self.clear()
            try:
                yield
            finally:
                self.clear()
            scenes = sorted((self.root / "metadata").glob("[!.]*.json"))
            write_text(self.root / "full_list.txt", "".join(f"metadata/{path.name}\n" for path in scenes))

    def clear(self) -> None:
        """Remove what killed processes left; nobody may be writing."""
        for folder in (self.root / "metadata", self.root / "images"):
            remove_stale(folder)

    def find(self, key: str) -> Scene | InputError | None:
        """The scene that an earlier run wrote, or why its metadata cannot be read; None if not every frame is there."""
        if not (is_plain_name(key) and self.metadata(key).exists()):
            return None
        if not (self.images(key).is_dir() or self.pack(key).is_file()):
            return None
        try:
            scene = read_scene(self.metadata(key))
        except InputError as error:
            return error
        return scene if self._has_all_frames(key, scene) else None

    def _has_all_frames(self, key: str, scene: Scene) -> bool:
        images = [image for image in scene.image_paths if image is not None]
        packed = [image for image in images if isinstance(image, PackedImage)]
        if packed:
            return len(packed) == len(images) and holds(self.pack(key), packed)
        return self.images(key).is_dir() and {image.name for image in images} <= filled_files(self.images(key))

    def add(self, key: str, read: Callable[[], NewScene], result: ImportResult) -> None:
        """Write a scene unless it is there or of another shard; what is lost of it, or all of it, joins `result`.

        Raises:
            OSError: the disk is full or not writable; the scene is then not there.
        """
        if not self.shard.holds(key):
            return
        try:
            found = self.find(key)
            if found is None:
                self.write(read(), result)
            else:
                self.keep(key, found, read, result)
        except (InputError, DamagedError, MemoryError) as error:
            result.lose(f"clip {key}", loss_reason(error))

    def write(self, scene: NewScene, result: ImportResult) -> None:
        """Write a scene's frames, then its metadata; frames that cannot be used join `result`.

        Raises:
            InputError: no frame of the scene is usable, or its folder holds what is not ours.
            DamagedError: the source does not hold what was written.
            OSError: the disk is full or not writable; the scene is then not there.
        """
        with self._new_images(scene.key) as new:
            frames = _write_frames(scene, new, self.image_format, self.check_images)
            fxfycxcy, w2c = _cameras(scene, frames)
            for frame in frames:
                if frame.fault is not None and frame.name is not None:
                    new.remove(frame.name)
            lost = {number: frame.fault for number, frame in enumerate(frames) if frame.fault is not None}
            if len(lost) == len(frames):
                raise InputError(f"no frame of it can be used; frame 0: {lost[0]}")
        images = [None if frame.fault or frame.name is None else new.image(frame.name) for frame in frames]
        write_scene(Scene(scene.key, images, fxfycxcy, w2c, self.metadata(scene.key)))
        self._remove_other_images(scene.key)
        for number, fault in lost.items():
            result.lose(f"clip {scene.key}, frame {number}", fault)
        result.written += 1

    def _new_images(self, key: str) -> AbstractContextManager["_NewFolder | NewPack"]:
        """What a scene's frames are written to.

        Raises:
            InputError: what stands in their place is not ours.
        """
        if self.packed:
            _check_pack_replaceable(self.pack(key), self.root)
            return new_pack(self.pack(key))
        _check_replaceable(self.images(key), self.root)
        return _new_folder(self.images(key))

    def _remove_other_images(self, key: str) -> None:
        """Remove what an earlier run left of a scene that it packed, if this one does not, or the other way round."""
        with suppress(InputError):  # what is not ours stays
            if self.packed:
                _check_replaceable(self.images(key), self.root)
                shutil.rmtree(self.images(key), ignore_errors=True)
            else:
                _check_pack_replaceable(self.pack(key), self.root)
                self.pack(key).unlink(missing_ok=True)

    def keep(
        self, key: str, found: Scene | InputError, read: Callable[[], NewScene] | None, result: ImportResult
    ) -> None:
        """Count a scene that `find` gave; frames that it lost earlier are still lost.

        Metadata that cannot be read is named, and so is a source of other poses than the scene's.

        Args:
            read: gives the scene of that name as it is now; None where it cannot be had.
        """
        path = self.metadata(key)
        if isinstance(found, InputError):
            result.lose(f"clip {key}", f"{found}; delete the file and run again")
            return
        now = None if read is None else _read_if_sound(read)
        if now is not None and not _has_same_poses(found, now):
            result.lose(
                f"clip {key}", f"{path} was made of another clip of this name; delete it to have this one instead"
            )
            return
        result.kept += 1
        result.other_format += _is_of_other_format(found, now, self.image_format)
        result.other_packing += _is_packed(found) != self.packed
        for frame in range(len(found)):
            if fault := self._fault(found, frame):
                result.lose(f"clip {key}, frame {frame}", f"{fault}; delete {path} to try again")

    def _fault(self, scene: Scene, frame: int) -> str | None:
        """Why a frame of a scene that is there cannot be used."""
        fault = scene.fault(frame)
        if fault or not self.check_images:
            return fault
        try:
            encode(read_image_file(scene.image_path(frame), MAX_IMAGE_BYTES), "jpeg", check=True)
        except IMAGE_ERRORS as error:
            return _damage(error)
        return None

    def write_lost(self, result: ImportResult) -> Path | None:
        """Write `lost.json`, what was lost and why; None, and no such file, if nothing was."""
        path = self.root / "lost.json"
        if not result.lost:
            path.unlink(missing_ok=True)
            return None
        write_json(path, dict(sorted(result.lost.items())))
        return path


def loss_reason(error: Exception) -> str:
    """Why a scene is lost, in words."""
    if isinstance(error, MemoryError):
        return str(error) or "there is not enough memory for it"
    return str(error)


def _read_if_sound(read: Callable[[], NewScene]) -> NewScene | None:
    try:
        return read()
    except (InputError, DamagedError):
        return None


def _has_same_poses(scene: Scene, now: NewScene) -> bool:
    known = [frame for frame, image in enumerate(scene.image_paths) if image is not None]
    if len(now.w2c) != len(scene):
        return False
    return np.allclose(now.w2c[known], scene.w2c[known], rtol=1e-5, atol=1e-7)


def _is_of_other_format(scene: Scene, now: NewScene | None, image_format: str) -> bool:
    """Whether a run that asks for `image_format` would have written a scene's first frame in another."""
    first = _first_frame(scene)
    is_png = scene.image_path(first).suffix == ".png"
    if image_format == "png" or not is_png:
        return image_format == "png" and not is_png
    try:
        return now is not None and now.read_image(first).startswith(_JPEG_START)
    except (*IMAGE_ERRORS, DamagedError):
        return False


def _is_packed(scene: Scene) -> bool:
    return isinstance(scene.image_path(_first_frame(scene)), PackedImage)


def _first_frame(scene: Scene) -> int:
    """The first frame that has an image."""
    return next(frame for frame, image in enumerate(scene.image_paths) if image is not None)


@dataclass
class _Frame:
    """What became of a frame: its file and that image's (width, height), and why it cannot be used."""

    name: str | None = None
    size: tuple[int, int] | None = None
    fault: str | None = None


def _write_frames(scene: NewScene, new: "_NewFolder | NewPack", image_format: str, check: bool) -> list[_Frame]:
    """Write every frame that is an image."""
    frames = []
    for number in range(len(scene.w2c)):
        try:
            data, suffix, size = encode(scene.read_image(number), image_format, check)
        except UnusableFrame as error:
            frames.append(_Frame(fault=str(error)))
            continue
        except IMAGE_ERRORS as error:
            frames.append(_Frame(fault=_damage(error)))
            continue
        name = f"{number:05d}.{suffix}"
        new.write(name, data)
        frames.append(_Frame(name, size))
    return frames


def _damage(error: Exception) -> str:
    """What is wrong with an image."""
    return f"cannot be decoded: {str(error).split(' <')[0]}"


def encode(data: bytes, image_format: str, check: bool = False) -> tuple[bytes, str, tuple[int, int]]:
    """File content, suffix and (width, height) of a frame.

    The header is read and the end marker of a JPEG looked for; pixels are decoded only if that is not the end, or to
    `check` them.

    Raises:
        IMAGE_ERRORS: the bytes are not an image that is read, or one cut short.
    """
    with open_image(data) as image:
        size = image.size
        if image_format == "png":
            buffer = BytesIO()
            to_8_bits(image).save(buffer, format="png")
            return buffer.getvalue(), "png", size
        if check or image.format != "JPEG" or not data.rstrip(b"\0").endswith(_JPEG_END):
            image.load()
        return data, "png" if image.format == "PNG" else "jpg", size


def _cameras(scene: NewScene, frames: list[_Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics in pixels and w2c; frames whose camera is of no use get a fault, and NaN for a camera.

    A frame lost for its image keeps its camera, in pixels of the first good frame.
    """
    first = next((frame.size for frame in frames if frame.size is not None), (1, 1))
    sizes = np.array([frame.size or first for frame in frames], dtype=np.float64)
    fxfycxcy = scene.fxfycxcy * sizes[:, [0, 1, 0, 1]] if scene.normalized else scene.fxfycxcy.copy()
    w2c = scene.w2c.copy()
    faults = camera_faults(fxfycxcy, w2c, sizes)
    for number, reason in faults.items():
        frames[number].fault = frames[number].fault or f"it has no usable camera: {reason}"
    fxfycxcy[list(faults)] = np.nan
    w2c[list(faults)] = np.nan
    return fxfycxcy, w2c


class _NewFolder:
    """Files that are synced in the background while more are written."""

    def __init__(self, path: Path, final: Path, pool: ThreadPoolExecutor) -> None:
        self._path = path
        self._final = final
        self._pool = pool
        self._syncs: dict[str, Future[None]] = {}

    def write(self, name: str, data: bytes) -> None:
        path = self._path / name
        path.write_bytes(data)
        self._syncs[name] = self._pool.submit(_sync, path)

    def image(self, name: str) -> Path:
        """Where an image lies, once the folder has taken its place."""
        return self._final / name

    def remove(self, name: str) -> None:
        self._syncs.pop(name).result()
        (self._path / name).unlink()

    def sync(self) -> None:
        """Wait until everything is on disk."""
        for done in self._syncs.values():
            done.result()
        sync_folder(self._path)


@contextmanager
def _new_folder(folder: Path) -> Iterator[_NewFolder]:
    """A folder to write files to, which takes the place of `folder` once they are on disk."""
    temporary = temporary_path(folder)
    try:
        with errors_name(folder):
            temporary.mkdir(parents=True)
            with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
                new = _NewFolder(temporary, folder, pool)
                yield new
                new.sync()
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
    """Raises InputError unless what stands at `folder` without metadata looks like frames of a run that was killed."""
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not folder.is_dir() or not is_inside(folder, root):
        raise InputError(f"{folder} stands in its place, and is not a folder of this set: move it away")
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file() or not _FRAME_NAME.fullmatch(path.name):
            raise InputError(f"{folder} holds {shown(path.name)}, which is not a frame: move it away")


def _check_pack_replaceable(pack: Path, root: Path) -> None:
    """Raises InputError unless what stands at `pack` without metadata looks like frames of a run that was killed."""
    if not pack.is_symlink() and not pack.exists():
        return
    if pack.is_symlink() or not pack.is_file() or not is_inside(pack, root):
        raise InputError(f"{pack} stands in its place, and is not a tar of this set: move it away")
    name = first_name(pack)
    if pack.stat().st_size and (name is None or not _FRAME_NAME.fullmatch(name)):
        raise InputError(f"{pack} does not begin with a frame: move it away")
