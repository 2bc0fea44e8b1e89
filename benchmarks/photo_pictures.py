"""The pictures of docs/own_photos.md, of a procedural room.

    python -m benchmarks.photo_pictures --output_dir docs

`moving.jpg` shows what a camera sees that moves, and below what one sees that only turns; `epipolar.jpg` what the check
of cameras draws, for right cameras and below for OpenGL's axes taken for OpenCV's.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from data.importers.check_page import draw_pair
from data.importers.matched_cameras import MatchedCameras
from data.matching import PairMatches, find_features, match
from data.synthetic import Pinhole, make_path, make_scene, render, to_pixels
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.files import atomic_path

_GAP = 6
_QUALITY = 82
_WIDEST = 1000
# Metres from the cameras to what they walk round, degrees of the arc between two of them, metres that each rises.
_AHEAD = 2.5
_ARC = 14.0
_RISE = 0.15
# Degrees between the cameras that only turn.
_TURN = 9.0
_OPENGL = np.diag([1.0, -1, -1, 1])


def walking_round(middle: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 4 4"]:
    """Cameras (c2w) on an arc about what the middle one looks at, rising a little."""
    centre = middle[:3, 3] + _AHEAD * middle[:3, 2]
    cameras = turning(middle, -_ARC)
    cameras[:, :3, 3] = centre - _AHEAD * cameras[:, :3, 2]
    cameras[:, 1, 3] -= _RISE * np.arange(-1, 2)
    return cameras


def turning(middle: Float[np.ndarray, "4 4"], degrees: float) -> Float[np.ndarray, "3 4 4"]:
    """Cameras (c2w) that turn about the upright axis where the middle one stands."""
    angles = np.radians(degrees) * np.arange(-1, 2)
    cameras = np.tile(middle, (3, 1, 1))
    cameras[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * [0, 1, 0]).as_matrix() @ middle[:3, :3]
    return cameras


def rows(pictures: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]]) -> Image.Image:
    """Rows of pictures of one size."""
    height, width = pictures[0][0].shape[:2]
    canvas = Image.new(
        "RGB", ((width + _GAP) * len(pictures[0]) - _GAP, (height + _GAP) * len(pictures) - _GAP), "white"
    )
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            canvas.paste(Image.fromarray(picture), ((width + _GAP) * column, (height + _GAP) * row))
    return canvas


def epipolar_pictures(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], lens: Float[np.ndarray, "4"], c2w: Float[np.ndarray, "2 4 4"]
) -> list[list[UInt8[np.ndarray, "h2 w2 3"]]]:
    """What the check draws of two images: for their cameras, and for these misread.

    Raises:
        InputError: the images have too little in common.
    """
    first, second = (find_features(Image.fromarray(image)) for image in images)
    points = match(first, second)
    if points is None:
        raise InputError("these two images have too little in common: choose another --seed")
    pair = PairMatches((0, 1), (first, second), first.stored(points[0]), second.stored(points[1]))
    sizes = np.array([first.size, second.size], np.float64)
    right = MatchedCameras([0, 1], np.tile(lens, (2, 1)), np.linalg.inv(c2w), sizes)
    wrong = replace(right, w2c=np.linalg.inv(c2w @ _OPENGL))
    return [[draw_pair(pair, cameras)] for cameras in (right, wrong)]


def main(argv: Sequence[str]) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=path_argument, required=True, help="folder that gets the pictures")
    parser.add_argument("--seed", type=int, default=6, help="of the room")
    parser.add_argument("--width", type=int, default=640, help="pixels of a photograph; its height is 9/16 of that")
    given = parser.parse_args(argv)
    size = (given.width, given.width * 9 // 16)
    room = make_scene([given.seed, 0], texel=1.6 / size[1])
    path, intrinsics = make_path(room, [given.seed, 1], 3, speed=0.1, aspect=size[0] / size[1])
    lens = to_pixels(intrinsics, *size)
    c2w = walking_round(path[1])
    moved, turned = (
        [render(room.faces, Pinhole(pose, lens, *size)) for pose in poses] for poses in (c2w, turning(path[1], _TURN))
    )
    pictures = {"moving.jpg": [moved, turned], "epipolar.jpg": epipolar_pictures(moved[:2], lens, c2w[:2])}
    for name, lines in pictures.items():
        picture = rows(lines)
        picture.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
        with atomic_path(given.output_dir / name) as temporary:
            picture.save(temporary, quality=_QUALITY)


if __name__ == "__main__":
    run_main(main)
