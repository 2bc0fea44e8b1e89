"""Cameras from photographs alone, by COLMAP (pycolmap): the only place that imports it.

Two photographs: two-view geometry with known focal lengths. Three or more: incremental mapping (Schönberger and Frahm,
Structure-from-Motion Revisited, CVPR 2016), whose first pair must show points at a wide angle; if none does, a smaller
one is tried.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from data.importers.lens import Lens, lens_of_values
from utils.errors import InputError

# Degrees between rays of the first pair.
_FIRST_ANGLES = (16.0, 8.0, 4.0, 2.0)
_SEED = 0
_LENS_PARAMETERS = ("f", "cx", "cy", "k1")


@dataclass(frozen=True)
class Placed:
    """A photograph's camera: its number among the photographs, w2c, and the lens for its working copy."""

    number: int
    w2c: Float[np.ndarray, "4 4"]
    lens: Lens


@dataclass(frozen=True)
class Structure:
    """What was found out of photographs.

    Attributes:
        placed: those whose cameras are known.
        reprojection_error: mean, in pixels of the working copies; None for two photographs.
        angle: median of the angles in degrees at which points are seen from two cameras.
    """

    placed: list[Placed]
    reprojection_error: float | None
    angle: float


def load_pycolmap() -> ModuleType:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pycolmap
    except ImportError:
        raise InputError(
            "photographs without cameras need pycolmap: pip install -r requirements-photos.txt, or run COLMAP yourself"
        ) from None
    return pycolmap


def find_structure(images: Sequence[Image.Image], focal_lengths: Sequence[float | None]) -> Structure | None:
    """Cameras of photographs; None if they show nothing in common from different places.

    Args:
        images: RGB.
        focal_lengths: in pixels of these images; all of two photographs must be known.
    """
    colmap = load_pycolmap()
    colmap.logging.minloglevel = colmap.logging.Level.FATAL.value
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "database.db"
        for number, image in enumerate(images):
            image.save(_path(folder, number), quality=97)
        _find_features(colmap, database, folder, images, focal_lengths)
        options = colmap.TwoViewGeometryOptions(ransac={"random_seed": _SEED})
        colmap.match_exhaustive(database, verification_options=options)
        if len(images) == 2:
            return _of_two(colmap, database, options)
        return _of_several(colmap, database, Path(folder))


def _path(folder: str, number: int) -> Path:
    return Path(folder) / f"{number:05d}.jpg"


def _find_features(
    colmap: ModuleType,
    database: Path,
    folder: str,
    images: Sequence[Image.Image],
    focal_lengths: Sequence[float | None],
) -> None:
    """Features of all images; those of one size and focal length share a camera."""
    groups: dict[Any, list[str]] = {}
    for number, (image, focal) in enumerate(zip(images, focal_lengths, strict=True)):
        groups.setdefault((image.size, focal), []).append(_path(folder, number).name)
    for ((width, height), focal), names in groups.items():
        reader = {"camera_model": "SIMPLE_RADIAL"}
        if focal is not None:
            reader["camera_params"] = f"{focal},{width / 2},{height / 2},0"
        mode = colmap.CameraMode.SINGLE
        colmap.extract_features(database, folder, names, mode, colmap.ImageReaderOptions(**reader))


def _of_two(colmap: ModuleType, database: Path, options: Any) -> Structure | None:
    with _opened(colmap, database) as stored:
        images = sorted(stored.read_all_images(), key=lambda image: image.name)
        cameras = [stored.read_camera(image.camera_id) for image in images]
        points = [stored.read_keypoints(image.image_id)[:, :2].astype(np.float64) for image in images]
        matches = stored.read_matches(images[0].image_id, images[1].image_id)
    options.compute_relative_pose = True
    found = colmap.estimate_calibrated_two_view_geometry(cameras[0], points[0], cameras[1], points[1], matches, options)
    if found.cam2_from_cam1 is None or len(found.inlier_matches) < options.min_num_inliers:
        return None
    second = np.eye(4)
    second[:3] = found.cam2_from_cam1.matrix()
    if np.linalg.norm(second[:3, 3]) == 0:
        return None
    placed = [Placed(n, w2c, _lens(cameras[n])) for n, w2c in enumerate((np.eye(4), second))]
    return Structure(placed, None, float(np.degrees(found.tri_angle)))


@contextmanager
def _opened(colmap: ModuleType, path: Path) -> Iterator[Any]:
    database = colmap.Database.open(path)
    try:
        yield database
    finally:
        database.close()


def _of_several(colmap: ModuleType, database: Path, folder: Path) -> Structure | None:
    best = None
    for angle in _FIRST_ANGLES:
        options = colmap.IncrementalPipelineOptions(min_model_size=2, random_seed=_SEED, extract_colors=False)
        options.mapper.init_min_tri_angle = angle
        models = colmap.incremental_mapping(database, folder, folder, options)
        for model in models.values():
            if best is None or model.num_reg_images() > best.num_reg_images():
                best = model
        if best is not None and best.num_reg_images() == len(list(folder.glob("*.jpg"))):
            break
    return None if best is None else _structure(best)


def _structure(model: Any) -> Structure:
    placed = []
    for image in model.images.values():
        if image.has_pose:
            w2c = np.eye(4)
            w2c[:3] = image.cam_from_world().matrix()
            placed.append(Placed(int(Path(image.name).stem), w2c, _lens(model.cameras[image.camera_id])))
    return Structure(placed, model.compute_mean_reprojection_error(), _angle(model))


def _angle(model: Any) -> float:
    """The median over points of the widest angle at which two cameras see one."""
    centres = {number: image.projection_center() for number, image in model.images.items() if image.has_pose}
    angles = []
    for point in model.points3D.values():
        rays = np.array([centres[element.image_id] - point.xyz for element in point.track.elements])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        angles.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1))))
    return float(np.median(angles)) if angles else 0.0


def _lens(camera: Any) -> Lens:
    values = dict(zip(_LENS_PARAMETERS, map(float, camera.params), strict=True))
    return lens_of_values("SIMPLE_RADIAL", (int(camera.width), int(camera.height)), values, fisheye=False)
