"""Scenes whose cameras are known, and the ways to misread them, for the check of cameras."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from data.scene import Scene
from data.synthetic import Pinhole, make_path, make_scene, render, to_pixels

WIDTH = 320
HEIGHT = 180
X = np.diag([-1.0, 1, 1, 1])
Y = np.diag([1.0, -1, 1, 1])
OPENGL = np.diag([1.0, -1, -1, 1])
SWAPPED = np.eye(4)[[1, 0, 2, 3]]

# Not a part of the project; where they are missing, rooms take their place.
PHOTOGRAPHS = Path(os.environ.get("LVSM_REFERENCE", Path(__file__).parents[2] / "shared")) / "photos" / "lund_door"

# What each misreading makes of right cameras.
MISREAD = {
    "c2w for w2c": lambda lens, w2c: (lens, np.linalg.inv(w2c)),
    "OpenGL for OpenCV": lambda lens, w2c: (lens, np.linalg.inv(np.linalg.inv(w2c) @ OPENGL)),
    "c2w for w2c, OpenGL for OpenCV": lambda lens, w2c: (lens, np.linalg.inv(w2c) @ OPENGL),
    "intrinsics of another size": lambda lens, w2c: (lens * 0.5, w2c),
    "intrinsics with x and y swapped": lambda lens, w2c: (lens[:, [1, 0, 3, 2]], w2c),
    "poses with x and y swapped": lambda lens, w2c: (lens, SWAPPED @ w2c @ SWAPPED),
    "x and y swapped": lambda lens, w2c: (lens[:, [1, 0, 3, 2]], SWAPPED @ w2c @ SWAPPED),
    "mirrored left to right": lambda lens, w2c: (lens, X @ w2c @ X),
    "mirrored top to bottom": lambda lens, w2c: (lens, Y @ w2c @ Y),
}


def misread(scene: Scene, how: str) -> Scene:
    """The scene with cameras that were misread."""
    lens, w2c = MISREAD[how](scene.fxfycxcy, scene.w2c)
    return replace(scene, fxfycxcy=lens, w2c=w2c)


def photograph_room(
    folder: Path, seed: int, frames: int = 7, speed: float = 0.12, zoom: float = 1.0, turn: float | None = None
) -> Scene:
    """A walk through a procedural room, its frames in `folder/images/room` and its metadata not yet written.

    Args:
        zoom: makes the focal length longer.
        turn: degrees from frame to frame of a camera that turns in one place instead of walking.
    """
    room = make_scene([seed, 0], texel=1.6 / HEIGHT)
    c2w, intrinsics = make_path(room, [seed, 1], frames, speed=speed, aspect=WIDTH / HEIGHT)
    if turn is not None:
        c2w = np.tile(c2w[0], (frames, 1, 1))
        angles = np.radians(turn) * np.arange(frames)
        c2w[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * [0, 1, 0]).as_matrix() @ c2w[:, :3, :3]
    lens = to_pixels(intrinsics, WIDTH, HEIGHT) * [zoom, zoom, 1, 1]
    images = [render(room.faces, Pinhole(pose, lens, WIDTH, HEIGHT)) for pose in c2w]
    paths = _save([Image.fromarray(image) for image in images], folder / "images" / "room")
    source = folder / "metadata" / "room.json"
    return Scene("room", paths, np.tile(lens, (frames, 1)), np.linalg.inv(c2w), source)


def _save(images: list[Image.Image], folder: Path) -> list[Path | None]:
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path | None] = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number:05d}.jpg")
        image.save(paths[-1], quality=95)
    return paths


def lund_door(folder: Path) -> Scene:
    """The twelve photographs of a door, undistorted, with the cameras of their COLMAP model."""
    source = PHOTOGRAPHS
    focal, cx, cy, k = map(float, _rows(source / "sparse" / "0" / "cameras.txt")[0].split()[4:])
    rows = sorted((row.split() for row in _rows(source / "sparse" / "0" / "images.txt")[::2]), key=lambda row: row[9])
    w2c = np.tile(np.eye(4), (len(rows), 1, 1))
    w2c[:, :3, :3] = Rotation.from_quat([[float(row[n]) for n in (2, 3, 4, 1)] for row in rows]).as_matrix()
    w2c[:, :3, 3] = [[float(number) for number in row[5:8]] for row in rows]
    matrix = np.array([[focal, 0, cx - 0.5], [0, focal, cy - 0.5], [0, 0, 1]])
    images = [
        cv2.undistort(cv2.imread(str(source / "images" / row[9])), matrix, np.array([k, 0, 0, 0])) for row in rows
    ]
    paths = _save([Image.fromarray(image[..., ::-1]) for image in images], folder / "images" / "door")
    lens = np.tile([focal, focal, cx, cy], (len(rows), 1))
    return Scene("door", paths, lens, w2c, folder / "metadata" / "door.json")


def _rows(path: Path) -> list[str]:
    return [row for row in path.read_text().splitlines() if row and not row.startswith("#")]


def part(scene: Scene, frames: list[int]) -> Scene:
    """A scene of some of its frames."""
    paths = [scene.image_paths[frame] for frame in frames]
    return replace(scene, image_paths=paths, fxfycxcy=scene.fxfycxcy[frames], w2c=scene.w2c[frames])
