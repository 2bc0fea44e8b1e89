"""transforms.json as nerfstudio, instant-ngp, Polycam and DL3DV write it: OpenGL camera-to-world, y up, z backwards."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from data.image_paths import exists, is_path
from data.importers.capture import Capture, Options, Photo, find_image, natural_order, plain_name
from data.importers.json_frames import Values, finds_file, make_photos, matrix_of, number_of, size_of, the_file
from data.importers.lens import MODELS, Lens, lens_of_values
from data.transforms import IMAGE_SUFFIXES
from utils.errors import InputError
from utils.text import counted, printable, shown

_NAMES = ("transforms.json", "nerfstudio/transforms.json", "transforms_train.json")
_COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")
# Fields with which instant-ngp says that its cameras are of a kind that is not read here.
_OTHER_KINDS = ("equirectangular", "latlong", "ftheta_p0", "orthographic")


def finds(source: Path) -> bool:
    """Whether a folder holds such a file, or a file is one."""
    return finds_file(source, _NAMES, "transform_matrix")


def read(source: Path, options: Options) -> Capture:
    """Read the file.

    Raises:
        InputError: it is missing, or holds no frames.
    """
    path = the_file(source, _NAMES)
    photos = make_photos(path, options, _lens, _w2c, _find_image)
    folder = path.parent.parent if path.parent.name == "nerfstudio" else path.parent
    return Capture(
        plain_name(folder), f"{printable(path.name)}, {counted(len(photos), 'frame')}", photos, _notes(photos)
    )


def _w2c(values: Values) -> Float[np.ndarray, "4 4"]:
    c2w = matrix_of(values, "transform_matrix")
    c2w[:, 1:3] *= -1
    try:
        return np.linalg.inv(c2w)
    except np.linalg.LinAlgError:
        raise InputError("its transform_matrix has no inverse") from None


def _lens(values: Values, image: Path) -> Lens:
    model = _model(values)
    width, height = size_of(values, image)
    fx, fy = _focal_lengths(values, width, height)
    coefficients = {name: number_of(values, name, 0.0) for name in _COEFFICIENTS}
    fisheye = "FISHEYE" in model
    if not fisheye and coefficients.pop("k4"):
        raise InputError("its k4 is not 0, which only fisheye lenses have here: undistort the images first")
    centre = {"cx": number_of(values, "cx", width / 2), "cy": number_of(values, "cy", height / 2)}
    return lens_of_values(model, (width, height), {"fx": fx, "fy": fy} | centre | coefficients, fisheye)


def _model(values: Values) -> str:
    """The camera model, which the older files do not name."""
    for kind in _OTHER_KINDS:
        if values.get(kind):
            raise InputError(
                f"its cameras are of the kind {kind}, which is not read: make pinhole images of them first"
            )
    distorted = any(values.get(name) for name in _COEFFICIENTS)
    guess = "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV" if distorted else "PINHOLE"
    model = values.get("camera_model") or guess
    if not isinstance(model, str) or model not in MODELS:
        raise InputError(f"its camera_model {shown(model)} cannot be undistorted here; known: {', '.join(MODELS)}")
    return model


def _focal_lengths(values: Values, width: int, height: int) -> tuple[float, float]:
    """In pixels; from a field of view (`camera_angle_x` in radians) where the file has nothing better."""
    if values.get("fl_x") is not None:
        fx = number_of(values, "fl_x")
        return fx, number_of(values, "fl_y", fx)
    if values.get("camera_angle_x") is None:
        raise InputError("it has neither fl_x nor camera_angle_x, so its focal length is unknown")
    fx = _focal_length(values, "camera_angle_x", width)
    return fx, fx if values.get("camera_angle_y") is None else _focal_length(values, "camera_angle_y", height)


def _focal_length(values: Values, key: str, size: int) -> float:
    angle = number_of(values, key)
    if not 0 < angle < math.pi:
        raise InputError(f"its {key} is {angle:g}: a field of view in radians lies between 0 and pi")
    return size / (2 * math.tan(angle / 2))


def _find_image(folder: Path, name: str, root: Path | None) -> Path:
    """The image of that name; with a suffix if it has none, and else a smaller copy (images_4 for images)."""
    try:
        return find_image(folder, name, root)
    except InputError:
        for other in _other_names(folder, name):
            if is_path(other) and exists(folder / other):
                return find_image(folder, other, root)
        raise


def _other_names(folder: Path, name: str) -> Iterator[str]:
    suffixes = ("",) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES else IMAGE_SUFFIXES
    yield from (name + suffix for suffix in suffixes)
    before, _, after = name.removeprefix("./").partition("/")
    if before == "images" and after:
        for copy in sorted(folder.glob("images_*"), key=lambda path: natural_order(path.name)):
            yield from (f"{copy.name}/{after}{suffix}" for suffix in suffixes)


def _notes(photos: Sequence[Photo]) -> list[str]:
    used = [(photo.path, PurePosixPath(photo.name.replace("\\", "/"))) for photo in photos if photo.path is not None]
    elsewhere = Counter(path.parent.name for path, name in used if name.parent.name not in ("", path.parent.name))
    return [f"  {counted(count, 'image')} taken from {printable(name)}" for name, count in elsewhere.items()]
