"""A scene on disk: `metadata/<key>.json` beside its frames, and the list files that name scenes.

Paths inside a file are relative to that file; absolute ones work too. A frame that was lost keeps its place in the
list with no image, so that frame numbers mean the same everywhere; if its camera was of no use, that is null, too.
Of a packed clip `image_path` is a tar, and every frame says its `member` there, with `offset` and `length` in bytes.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.image_paths import exists, find_images, is_led_out, outside
from data.packed import ImageFile, PackedImage, file_of, packed_image
from geometry.camera_check import camera_faults
from utils.errors import InputError
from utils.files import check_plain_name, read_json, read_text, write_json
from utils.text import printable, shown

log = logging.getLogger("lvsm")

_LOST = "its image was lost in preprocessing"
_NO_FIELD = object()  # stands for a field that a frame does not have, where null means something
_CAMERA_FIELDS = {"fxfycxcy": (4,), "w2c": (4, 4)}
_PACKED_FIELDS = ("member", "offset", "length")


@dataclass(frozen=True)
class Scene:
    """Frames of one clip with their cameras.

    Attributes:
        name: the scene's key.
        image_paths: where its image lies, one a frame; None for a frame that cannot be used.
        fxfycxcy: intrinsics [n, 4] in pixels of the stored image.
        w2c: world-to-camera matrices [n, 4, 4], OpenCV axes. Frames without an image may have NaN here and above.
        source: the metadata file, for messages.
        faults: by number, why frames cannot be used, but for those whose images were lost in preprocessing.
        root: the folder that images must lie in once links are followed; None: they may lie anywhere.
        notes: what a person should hear of once a run, by kind.
    """

    name: str
    image_paths: list[ImageFile | None]
    fxfycxcy: Float[np.ndarray, "n 4"]
    w2c: Float[np.ndarray, "n 4 4"]
    source: Path
    faults: dict[int, str] = field(default_factory=dict)
    root: Path | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_paths)

    def fault(self, frame: int) -> str | None:
        """Why a frame cannot be used; None if it can."""
        if not 0 <= frame < len(self):
            return f"there is no such frame, only 0 to {len(self) - 1}"
        return self.faults.get(frame, _LOST) if self.image_paths[frame] is None else None

    def usable_frames(self) -> list[int]:
        """The frames that can be used, as far as the metadata tell."""
        return [frame for frame in range(len(self)) if self.fault(frame) is None]

    def image_path(self, frame: int) -> ImageFile:
        """Where the image of a frame lies, a file of its own or a part of a tar; `open_image` takes either.

        Raises:
            InputError: the frame cannot be used, the system does not let its image be looked at, or a link leads the
                image to where it may not lie.
        """
        fault = self.fault(frame)
        image = None if fault else self.image_paths[frame]
        if image is None:
            raise InputError(f"scene {self.name}, frame {frame}: {fault} ({printable(str(self.source))})")
        path = file_of(image)
        if self.root is not None and self._is_led_out(path, frame, self.root):
            raise InputError(f"scene {self.name}, frame {frame}: {outside(path, self.root)}")
        return image

    def _is_led_out(self, path: Path, frame: int, root: Path) -> bool:
        try:
            return is_led_out(path, root)
        except OSError as error:
            raise InputError(
                f"scene {self.name}, frame {frame}: its image {shown(str(path), 300)} cannot be found: {error.strerror}"
            ) from None


def read_scene(path: Path, allow_outside: bool = False) -> Scene:
    """Read a metadata file. A frame that is not as it should be is lost, and `Scene.faults` says why.

    Args:
        allow_outside: images may lie outside the set's folder, the one that holds the folder of the metadata.

    Raises:
        InputError: the file is missing, not a scene or without a usable frame; the message names file and frame.
    """
    frames, record = _read_frames(path, "scene metadata")
    name = check_plain_name(record.get("scene_name"), f"{printable(str(path))}: scene_name")
    try:
        images = find_images([frame.get("image_path", _NO_FIELD) for frame in frames], path, allow_outside)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{printable(str(path))}: its images cannot be looked for: {error}") from None
    fxfycxcy, w2c, bad_cameras = _read_cameras(frames)
    located, bad_places = _locate(frames, images.paths)
    faults = {n: fault for n, fault in bad_cameras.items() if images.paths[n] is not None} | bad_places | images.faults
    paths = [None if n in faults else image for n, image in enumerate(located)]
    if not any(paths):
        reason = f"frame {min(faults)}: {faults[min(faults)]}" if faults else _LOST
        raise InputError(f"{printable(str(path))}: no frame of it can be used ({reason})")
    notes = {"layout": images.note} if images.note else {}
    if faults:
        first = min(faults)
        notes["faults"] = f"scene {name}, frame {first}: {faults[first]}; such frames are left out"
    return Scene(name, paths, fxfycxcy, w2c, path, faults, images.root, notes)


def _locate(
    frames: Sequence[dict[str, Any]], paths: Sequence[Path | None]
) -> tuple[list[ImageFile | None], dict[int, str]]:
    """Where images lie, given the files that hold them, and the frames that say it in a wrong way."""
    located: list[ImageFile | None] = list(paths)
    faults: dict[int, str] = {}
    for number, (frame, path) in enumerate(zip(frames, paths, strict=True)):
        if path is not None and "member" in frame:
            located[number] = packed_image(path, *map(frame.get, _PACKED_FIELDS))
            if located[number] is None:
                faults[number] = "its member, offset and length are not a name and two numbers that a tar can have"
    return located, faults


def read_named_scene(path: Path, allow_outside: bool = False) -> Scene:
    """Read a metadata file that is named as its scene is; raises InputError for any other, and as `read_scene` does."""
    scene = read_scene(path, allow_outside)
    if scene.name != path.stem:
        raise InputError(f"{printable(str(path))}: scene_name is {scene.name}, not the file's name")
    return scene


def read_cameras(
    path: Path, size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4"]]:
    """w2c and intrinsics of a list of cameras, `{"frames": [{"w2c": 4x4, "fxfycxcy": [4]}, ...]}`.

    That is scene metadata, of which nothing else is needed: any metadata file is a list of cameras. Frames that were
    lost with their cameras are left out.

    Args:
        size: width and height in pixels of the images that the intrinsics are for, if they are to be checked with that.

    Raises:
        InputError: the file is missing or not such a list; the message names file and frame.
    """
    frames, _ = _read_frames(path, "a list of cameras")
    fxfycxcy, w2c, faults = _read_cameras(frames, size)
    lost = [all(frame.get(key, _NO_FIELD) is None for key in _CAMERA_FIELDS) for frame in frames]
    for number, fault in sorted(faults.items()):
        if not lost[number]:
            images = f" (images of {size[0]}x{size[1]} pixels)" if size else ""
            raise InputError(f"{printable(str(path))}: frame {number}: {fault}{images}")
    if all(lost):
        raise InputError(f"{printable(str(path))} is not a list of cameras: none of its frames has one")
    return w2c[~np.array(lost)], fxfycxcy[~np.array(lost)]


def check_cameras_are_of(path: Path, scene: str) -> None:
    """Raises InputError for a list of cameras that names another scene as its own."""
    _, record = _read_frames(path, "a list of cameras")
    name = record.get("scene_name")
    if name is not None and name != scene:
        raise InputError(f"{printable(str(path))}: its scene_name is {shown(name)}, but cameras of {scene} are needed")


def _read_frames(path: Path, what: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The frames of a file and all that it holds; a frame of another kind has no fields."""
    record = read_json(path, what.removeprefix("a "))
    frames = record.get("frames") if isinstance(record, dict) else None
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{printable(str(path))} is not {what}: it has no frames")
    return [frame if isinstance(frame, dict) else {} for frame in frames], record


def _read_cameras(
    frames: Sequence[dict[str, Any]], size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Intrinsics [n, 4] and w2c [n, 4, 4], and the frames where they cannot be used, with the reason."""
    arrays: dict[str, np.ndarray] = {}
    faults: dict[int, str] = {}
    for key, shape in _CAMERA_FIELDS.items():
        arrays[key], unread = _read_column(frames, key, shape)
        faults |= unread
    fxfycxcy, w2c = arrays.values()
    sizes = None if size is None else np.array([size], dtype=np.float64)
    return fxfycxcy, w2c, camera_faults(fxfycxcy, w2c, sizes) | faults


def _read_column(
    frames: Sequence[dict[str, Any]], key: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, dict[int, str]]:
    """The numbers of one field of all frames, NaN where a frame has none, and why it has none."""
    blank = np.full(shape, np.nan)
    values = [frame.get(key) for frame in frames]
    try:
        filled = [blank if value is None else value for value in values]
        array = np.array(filled, dtype=np.float64).reshape(-1, *shape)
        if len(array) == len(frames):
            return array, {n: f"it has no {key}" for n, value in enumerate(values) if value is None}
    except (TypeError, ValueError, OverflowError):
        pass  # which frame it is, is found below
    array = np.tile(blank, (len(frames), *(1 for _ in shape)))
    faults = {}
    for number, value in enumerate(values):
        try:
            array[number] = np.array(value, dtype=np.float64).reshape(shape)
        except (TypeError, ValueError, OverflowError):
            faults[number] = f"its {key} is not {' x '.join(map(str, shape))} numbers"
    return array, faults


def write_scene(scene: Scene) -> None:
    """Write `scene.source`, image paths relative to it; a camera that is not finite becomes null."""
    folder = scene.source.parent
    frames = [
        {
            **_image_record(image, folder),
            "fxfycxcy": fxfycxcy.tolist() if np.isfinite(fxfycxcy).all() else None,
            "w2c": w2c.tolist() if np.isfinite(w2c).all() else None,
        }
        for image, fxfycxcy, w2c in zip(scene.image_paths, scene.fxfycxcy, scene.w2c, strict=True)
    ]
    write_json(scene.source, {"scene_name": scene.name, "frames": frames})


def _image_record(image: ImageFile | None, folder: Path) -> dict[str, Any]:
    """What a metadata file in `folder` says of where an image lies."""
    if image is None:
        return {"image_path": None}
    path = {"image_path": Path(os.path.relpath(file_of(image), folder)).as_posix()}
    if not isinstance(image, PackedImage):
        return path
    return path | {"member": image.name, "offset": image.offset, "length": image.length}


def read_scene_list(path: Path, key: str = "training.dataset_path") -> list[Path]:
    """The metadata files that a list names, one a line; empty lines and those that begin with # are left out.

    Args:
        key: what named the path, for messages.

    Raises:
        InputError: the list is missing, unreadable or empty, or names a file twice.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the scene list {printable(str(path))} ({type(error).__name__}): "
            f"preprocess_data.py makes it; {key} names it"
        ) from None
    numbers: dict[Path, int] = {}
    folder = None
    for number, line in enumerate(lines, 1):
        text = line.strip().replace("\\", "/")
        if not text or text.startswith("#"):
            continue
        folder = folder or _folder_of_list(path, text)
        scene = Path(os.path.normpath(folder / text))
        if scene in numbers:
            raise InputError(
                f"the scene list {printable(str(path))} names {shown(text, 200)} twice, "
                f"in lines {numbers[scene]} and {number}: remove one"
            )
        numbers[scene] = number
    if not numbers:
        raise InputError(f"the scene list {printable(str(path))} is empty: preprocess_data.py makes it from the chunks")
    return list(numbers)


def _folder_of_list(path: Path, first: str) -> Path:
    """What the lines of a list are relative to: its folder, or where it is only there, the working directory."""
    if exists(path.parent / first) or not exists(Path(first)):
        return path.parent
    log.warning("%s: its lines are read as relative to the working directory, where the first one leads to", path)
    return Path.cwd()
