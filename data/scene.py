"""A scene on disk: `metadata/<key>.json` beside its frames, and the list files that name scenes.

Paths inside a file are relative to that file; absolute ones work too. A frame that was lost keeps its place in the
list with no image, so that frame numbers mean the same everywhere; if its camera was of no use, that is null, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from utils.errors import InputError
from utils.files import check_plain_name, read_json, write_json


@dataclass(frozen=True)
class Scene:
    """Frames of one clip with their cameras.

    Attributes:
        name: the scene's key.
        image_paths: one a frame; None for a frame whose image was lost.
        fxfycxcy: intrinsics [n, 4] in pixels of the stored image; NaN for a lost frame without a camera.
        w2c: world-to-camera matrices [n, 4, 4], OpenCV axes; likewise.
        source: the metadata file, for messages.
    """

    name: str
    image_paths: list[Path | None]
    fxfycxcy: Float[np.ndarray, "n 4"]
    w2c: Float[np.ndarray, "n 4 4"]
    source: Path

    def __len__(self) -> int:
        return len(self.image_paths)

    def image_path(self, frame: int) -> Path:
        """The image of a frame.

        Raises:
            InputError: there is no such frame, or its image was lost.
        """
        if not 0 <= frame < len(self):
            raise InputError(f"scene {self.name} has frames 0 to {len(self) - 1}, not {frame} ({self.source})")
        path = self.image_paths[frame]
        if path is None:
            raise InputError(f"scene {self.name}: the image of frame {frame} was lost in preprocessing ({self.source})")
        return path


def read_scene(path: Path) -> Scene:
    """Read a metadata file.

    Raises:
        InputError: the file is missing or not a scene; the message names file and frame.
    """
    record = read_json(path, "scene metadata")
    with _errors_say(path, "scene metadata"):
        name, frames = record["scene_name"], record["frames"]
        images = [_image_path(frame, path.parent) for frame in frames]
    check_plain_name(name, f"{path}: scene_name")
    w2c, fxfycxcy = _read_frames(record, path, "scene metadata", [image is None for image in images])
    return Scene(name, images, fxfycxcy, w2c, path)


def read_cameras(path: Path) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4"]]:
    """w2c and intrinsics of a list of cameras, `{"frames": [{"w2c": 4x4, "fxfycxcy": [4]}, ...]}`.

    That is scene metadata, of which nothing else is needed: any metadata file is a list of cameras.

    Raises:
        InputError: the file is missing or not such a list; the message names file and frame.
    """
    return _read_frames(read_json(path, "list of cameras"), path, "a list of cameras", [])


def _read_frames(record: Any, path: Path, what: str, lost: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """w2c and intrinsics; frames that are `lost` need not have any."""
    with _errors_say(path, what):
        numbers = [_frame_numbers(frame) for frame in record["frames"]]
    if not numbers:
        raise InputError(f"{path} is not {what}: it has no frames")
    fxfycxcy, w2c = (np.stack(columns) for columns in zip(*numbers, strict=True))
    known = np.array([not (any(lost[n : n + 1]) and _has_no_camera(frame)) for n, frame in enumerate(record["frames"])])
    check_cameras(fxfycxcy, w2c, path, known)
    return w2c, fxfycxcy


@contextmanager
def _errors_say(path: Path, what: str) -> Iterator[None]:
    """Turn what a record of another form raises into InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not {what}: {type(error).__name__}: {error}") from None


def _has_no_camera(frame: dict[str, Any]) -> bool:
    return frame["fxfycxcy"] is None and frame["w2c"] is None


def _frame_numbers(frame: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    if _has_no_camera(frame):
        return np.full(4, np.nan), np.full((4, 4), np.nan)
    fxfycxcy = np.asarray(frame["fxfycxcy"], dtype=np.float64)
    w2c = np.asarray(frame["w2c"], dtype=np.float64)
    return fxfycxcy.reshape(4), w2c.reshape(4, 4)


def _image_path(frame: dict[str, Any], folder: Path) -> Path | None:
    return None if frame["image_path"] is None else folder / frame["image_path"]


def check_cameras(
    fxfycxcy: Float[np.ndarray, "n 4"],
    w2c: Float[np.ndarray, "n 4 4"],
    source: object,
    known: Bool[np.ndarray, " n"] | None = None,
) -> None:
    """Raises InputError, naming `source` and the frame, for a camera that is infinite, flat or singular.

    Args:
        known: the frames that must have a camera; None for all.
    """
    usable = np.isfinite(fxfycxcy).all(1) & np.isfinite(w2c).all((1, 2)) & (fxfycxcy[:, :2] > 0).all(1)
    usable[usable] = np.abs(np.linalg.det(w2c[usable])) > 1e-9
    if known is not None:
        usable |= ~known
    if not usable.all():
        raise InputError(f"{source}: frame {int(np.argmin(usable))} has no usable camera (zero, infinite or singular)")


def write_scene(scene: Scene) -> None:
    """Write `scene.source`, image paths relative to it; a camera that is not finite becomes null."""
    folder = scene.source.parent
    frames = [
        {
            "image_path": None if image is None else Path(relpath(image, folder)).as_posix(),
            "fxfycxcy": fxfycxcy.tolist() if np.isfinite(fxfycxcy).all() else None,
            "w2c": w2c.tolist() if np.isfinite(w2c).all() else None,
        }
        for image, fxfycxcy, w2c in zip(scene.image_paths, scene.fxfycxcy, scene.w2c, strict=True)
    ]
    write_json(scene.source, {"scene_name": scene.name, "frames": frames})


def read_scene_list(path: Path) -> list[Path]:
    """The metadata files that a list names, one a line.

    Raises:
        InputError: the list is missing, unreadable or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the scene list {path} ({type(error).__name__}): "
            "preprocess_data.py makes it; training.dataset_path names it"
        ) from None
    scenes = [path.parent / line.strip() for line in lines if line.strip()]
    if not scenes:
        raise InputError(f"the scene list {path} is empty: preprocess_data.py makes it anew from the chunks")
    return scenes
