"""Images a second that one core reads: decoding, resizing, cutting, as training reads its views.

    python -m benchmarks.loader [--scene METADATA]

Without a scene, frames of 640 x 360 are drawn and stored as JPEG and as PNG. Packed is the same in one tar. Cold is
after the system has dropped what it keeps of the files' content (not of their names), as Linux can.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import benchmark_parser, show, spread, timed
from data.dataset import DataConfig, TrainingDataset, ViewLoader
from data.packed import file_of, new_pack, read_image_file
from data.scene import Scene, read_scene
from data.transforms import MAX_IMAGE_BYTES, plan_crop, read_image, to_planes
from data.views import Selection
from utils.cli import path_argument, run_main

FRAMES = 48
REPEATS = 5
# Clips of the list that is opened.
LISTED = 10_000


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
    for number in range(len(scene)):
        image = read_image(scene.image_path(number), "benchmark")
        crop = plan_crop(*image.size, 256, 8, True)
        to_planes(image.resize(crop.resized, Image.Resampling.LANCZOS).crop(crop.box))


def packed(scene: Scene, folder: Path) -> Scene:
    """The scene with its frames in one tar."""
    names = [f"{number:05d}.jpg" for number in range(len(scene))]
    with new_pack(folder / "packed.tar") as pack:
        for number, name in enumerate(names):
            pack.write(name, read_image_file(scene.image_path(number), MAX_IMAGE_BYTES))
    return replace(scene, image_paths=[pack.image(name) for name in names], root=None)


def read_bytes_alone(scene: Scene) -> None:
    """What comes before decoding."""
    for number in range(len(scene)):
        read_image_file(scene.image_path(number), MAX_IMAGE_BYTES)


def forget(scene: Scene) -> None:
    """Have the system drop the content of a scene's files."""
    for path in {file_of(scene.image_path(number)) for number in range(len(scene))}:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_seconds(scene: Scene, work: Callable[[], object]) -> list[float]:
    """Seconds that `work` takes when the content of the scene's files must come from the disk."""
    seconds = []
    for _ in range(REPEATS):
        forget(scene)
        seconds += timed(work, 1, 0, repeats=1)
    return seconds


def seconds_to_open(folder: Path) -> list[float]:
    """Seconds until training has opened a list of many clips."""
    path = folder / "full_list.txt"
    path.write_text("".join(f"metadata/{number:016x}.json\n" for number in range(LISTED)))
    load = ViewLoader(DataConfig(dataset_path=str(path)), 256, 8)
    return timed(lambda: TrainingDataset(load, seed=0), 1, 1)


def measure(name: str, scene: Scene, work: Callable[[], object]) -> dict[str, Any]:
    """A row of the table; `work` reads all frames of the scene."""
    seconds = timed(work, 1, 1, repeats=REPEATS)
    row = {"way": name, "images/s a core": len(scene) / statistics.median(seconds), "spread": f"{spread(seconds):.0%}"}
    if hasattr(os, "posix_fadvise"):
        row["images/s cold"] = len(scene) / statistics.median(cold_seconds(scene, work))
    return row


def main(argv: Sequence[str]) -> None:
    """Measure the plain way and both of ours, of loose files and of packed ones."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scene", type=path_argument, help="metadata of a preprocessed scene of JPEG frames")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        png = drawn_frames(Path(folder), ".png")
        jpeg = read_scene(given.scene) if given.scene else drawn_frames(Path(folder), ".jpg")
        tar = packed(jpeg, Path(folder))
        selection = Selection([0, 1], list(range(2, len(jpeg))))
        size = np.mean([len(read_image_file(jpeg.image_path(number), MAX_IMAGE_BYTES)) for number in range(len(jpeg))])
        exact, fast = (ViewLoader(DataConfig(), 256, 8, fast) for fast in (False, True))
        rows = [
            measure("PNG, whole image resized", png, lambda: read_whole(png)),
            measure("JPEG, whole image resized", jpeg, lambda: read_whole(jpeg)),
            measure("JPEG, image_resize=exact", jpeg, lambda: exact(jpeg, selection)),
            measure("JPEG, image_resize=exact, packed", tar, lambda: exact(tar, selection)),
            measure("JPEG, image_resize=fast", jpeg, lambda: fast(jpeg, selection)),
            measure("JPEG, image_resize=fast, packed", tar, lambda: fast(tar, selection)),
            measure("JPEG, bytes alone", jpeg, lambda: read_bytes_alone(jpeg)),
            measure("JPEG, bytes alone, packed", tar, lambda: read_bytes_alone(tar)),
        ]
        rows[-1]["ms to open 10,000 clips"] = 1000 * statistics.median(seconds_to_open(Path(folder)))
    rows[-1]["KB a JPEG"] = float(size) / 1000
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)
