"""What a person brings: images with cameras, as another program left them, and the scene that is made of them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.image_paths import exists, is_path
from data.importers.images import Frame, plan_frame
from data.importers.lens import Lens
from data.transforms import IMAGE_SUFFIXES
from data.writing import NewScene, UnusableFrame
from geometry.camera_check import camera_faults
from utils.errors import InputError
from utils.files import is_inside
from utils.text import counted, printable, shown

_DIGITS = re.compile("([0-9]+)")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_\-.]+")


@dataclass(frozen=True)
class Options:
    """What a person says of a source.

    Attributes:
        images: the folder of its images, if it is not where it usually is.
        model: which of several models.
        allow_outside: read images outside the source's folder, too.
        fov: degrees that photographs without cameras show along their longer side.
        focal35: their focal length in millimetres, in 35 mm terms.
    """

    images: Path | None = None
    model: str | None = None
    allow_outside: bool = False
    fov: float | None = None
    focal35: float | None = None


@dataclass(frozen=True)
class Photo:
    """One image of a capture and its camera.

    Attributes:
        name: what the source calls it.
        w2c: world-to-camera matrix, OpenCV axes.
        path: the image; None if `fault` says why it cannot be used.
    """

    name: str
    w2c: Float[np.ndarray, "4 4"]
    path: Path | None = None
    lens: Lens | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Capture:
    """Images with cameras, as a source has them.

    Attributes:
        name: a plain one, for the scene.
        source: what was read, for people.
        photos: at least one.
        notes: what a person should know, of images that were not used among others.
    """

    name: str
    source: str
    photos: list[Photo]
    notes: list[str]


@dataclass(frozen=True)
class Prepared:
    """A scene to be written, and what is to be said of it."""

    scene: NewScene
    lines: list[str]


def plain_name(path: Path) -> str:
    """A scene's name from that of a folder."""
    return _NOT_PLAIN.sub("_", path.resolve().name).strip("._-")[:200] or "scene"


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key for sorting: frame 9 comes before frame 10."""
    parts = [part.lstrip("0") if number % 2 else part for number, part in enumerate(_DIGITS.split(name))]
    return [(len(part) if number % 2 else 0, part) for number, part in enumerate(parts)]


def find_image(folder: Path, name: str, root: Path | None) -> Path:
    """The image that a source names, relative to `folder`.

    Args:
        root: where it must lie once links are followed; None: anywhere.

    Raises:
        InputError: it is not there or lies elsewhere.
    """
    if not is_path(name):
        raise InputError(f"{shown(name)} is not the name of an image")
    path = folder / name.replace("\\", "/")
    if root is not None and not is_inside(path, root):
        raise InputError(
            f"image {shown(name, 300)} lies outside {printable(str(root))}: --allow_outside_images would read it"
        )
    if not (exists(path) and path.is_file()):
        raise InputError(f"image {shown(name, 300)} is not in {printable(str(folder))}")
    return path


def make_photo(name: str, w2c: Float[np.ndarray, "4 4"], find: Callable[[], tuple[Path, Lens]]) -> Photo:
    """A photo; if `find` raises InputError, one that cannot be used."""
    try:
        path, lens = find()
    except InputError as error:
        return Photo(name, w2c, fault=str(error))
    return Photo(name, w2c, path, lens)


def images_in(folder: Path) -> Iterator[Path]:
    """The images in a folder and those below it, hidden ones left out."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            yield path


def prepare(capture: Capture, name: str | None = None) -> Prepared:
    """The scene of a capture, its images in the order of their names.

    Args:
        name: the scene's, instead of the capture's.

    Raises:
        InputError: none of its images can be used.
    """
    photos = sorted(capture.photos, key=lambda photo: natural_order(photo.name))
    frames = [_plan(photo) for photo in photos]
    fxfycxcy = np.array([frame.fxfycxcy if isinstance(frame, Frame) else [np.nan] * 4 for frame in frames])
    w2c = np.stack([photo.w2c for photo in photos])
    _check_usable(capture, photos, frames, fxfycxcy, w2c)

    def read_image(number: int) -> bytes:
        frame = frames[number]
        if isinstance(frame, str):
            raise UnusableFrame(frame)
        return frame.read()

    scene = NewScene(name or capture.name, read_image, fxfycxcy, w2c)
    good = [frame for frame in frames if isinstance(frame, Frame)]
    return Prepared(scene, [f"{scene.key}: {capture.source}", *_describe(photos, good), *capture.notes])


def _plan(photo: Photo) -> Frame | str:
    """A photo as a frame, or why it cannot be one."""
    if photo.path is None or photo.lens is None:
        return photo.fault or "it has no image"
    try:
        return plan_frame(photo.path, photo.lens)
    except InputError as error:
        return f"image {shown(photo.name, 300)}: {error}"


def _check_usable(
    capture: Capture, photos: Sequence[Photo], frames: Sequence[Frame | str], fxfycxcy: np.ndarray, w2c: np.ndarray
) -> None:
    sizes = np.array([frame.size if isinstance(frame, Frame) else (1, 1) for frame in frames], dtype=np.float64)
    faults = camera_faults(fxfycxcy, w2c, sizes)
    if len(faults) < len(frames):
        return
    first = frames[0] if isinstance(frames[0], str) else f"image {shown(photos[0].name, 300)}: {faults[0]}"
    raise InputError(f"{capture.source}: none of {counted(len(photos), 'image')} can be used; the first: {first}")


def _describe(photos: Sequence[Photo], frames: Sequence[Frame]) -> Iterator[str]:
    """Lines on the cameras and on what happened to the images."""
    lenses = Counter(replace(frame.lens, size=frame.size) for frame in frames)
    for lens, count in lenses.most_common(3):
        frame = next(frame for frame in frames if frame.lens == lens)
        yield f"  {counted(count, 'image')}: {_describe_lens(frame)}"
    if len(lenses) > 3:
        yield f"  and {counted(len(lenses) - 3, 'other camera')}"
    for note, count in Counter(note for frame in frames for note in frame.notes).items():
        yield f"  {counted(count, 'image')} {note}"


def _describe_lens(frame: Frame) -> str:
    width, height = frame.size
    across, down = replace(frame.lens, fxfycxcy=frame.fxfycxcy).field_of_view()
    text = f"{frame.lens.model} {width}x{height}, field of view {across:.1f}° x {down:.1f}°"
    if frame.undistortion is not None:
        text += f", undistorted: {frame.undistortion.lost:.1%} of the image cut away"
    return text
