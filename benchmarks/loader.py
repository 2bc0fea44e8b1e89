"""Images a second that one core reads: decoding, resizing, cutting, as training reads its views.

    python -m benchmarks.loader [--scene METADATA]

Without a scene, frames of 640 x 360 are drawn and stored as JPEG and as PNG.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import benchmark_parser, show, spread, timed
from data.dataset import DataConfig, ViewLoader
from data.scene import Scene, read_scene
from data.transforms import plan_crop, read_image, to_planes
from data.views import Selection
from utils.cli import path_argument, run_main

FRAMES = 48


def drawn_frames(folder: Path, suffix: str) -> Scene:
    """Smooth pictures with some noise, about as large as JPEG files as those of RealEstate10K."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(FRAMES):
        small = Image.fromarray(rng.integers(0, 256, (20, 36, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((640, 360), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (360, 640, 1))
        path = folder / f"{number:05d}{suffix}"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    fxfycxcy = np.tile([320.0, 320, 320, 180], (FRAMES, 1))
    w2c = np.tile(np.eye(4), (FRAMES, 1, 1))
    w2c[:, 0, 3] = np.linspace(0, 1, FRAMES)
    return Scene("drawn", list(paths), fxfycxcy, w2c, folder / "drawn.json")


def read_whole(scene: Scene) -> None:
    """The plain way: decode, resize all of it, cut."""
    for path in scene.image_paths:
        assert path is not None
        image = read_image(path, "benchmark")
        crop = plan_crop(*image.size, 256, 8, True)
        to_planes(image.resize(crop.resized, Image.Resampling.LANCZOS).crop(crop.box))


def main(argv: Sequence[str]) -> None:
    """Measure the plain way and both of ours."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scene", type=path_argument, help="metadata of a preprocessed scene of JPEG frames")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        png = drawn_frames(Path(folder), ".png")
        jpeg = read_scene(given.scene) if given.scene else drawn_frames(Path(folder), ".jpg")
        selection = Selection([0, 1], list(range(2, len(jpeg))))
        size = np.mean([path.stat().st_size for path in jpeg.image_paths if path is not None])
        exact, fast = (ViewLoader(DataConfig(), 256, 8, fast) for fast in (False, True))
        for name, count, work in (
            ("PNG, whole image resized", len(png), lambda: read_whole(png)),
            ("JPEG, whole image resized", len(jpeg), lambda: read_whole(jpeg)),
            ("JPEG, image_resize=exact", len(jpeg), lambda: exact(jpeg, selection)),
            ("JPEG, image_resize=fast", len(jpeg), lambda: fast(jpeg, selection)),
        ):
            seconds = timed(work, 1, 1, repeats=5)
            rows.append(
                {"way": name, "images/s a core": count / statistics.median(seconds), "spread": f"{spread(seconds):.0%}"}
            )
    rows[-1]["KB a JPEG"] = float(size) / 1000
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)
