"""Clips a second that one core preprocesses, and bytes written for each byte read.

    python -m benchmarks.preprocess [--chunks FOLDER]

Without a folder of RealEstate10K chunks, drawn clips are stored as one. PNG is the way of re-encoding every frame;
packed is with `--pack`, checked with `--check_images`.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import preprocess_data
from benchmarks.common import REPEATS, benchmark_parser, show, spread, timed
from benchmarks.loader import drawn_frames
from data.importers.re10k_chunks import clip_record, write_split
from utils.cli import path_argument, run_main

CLIPS = 4


def drawn_chunks(folder: Path) -> Path:
    """A chunk of drawn clips; returns the folder that holds `train/`."""
    drawn_frames(folder, ".jpg")
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    cameras = np.zeros((len(images), 18), np.float32)
    cameras[:, :4] = [0.5, 0.9, 0.5, 0.5]
    cameras[:, 6:] = np.eye(4)[:3].flatten()
    write_split(folder / "chunks" / "train", (clip_record(f"{n:016x}", cameras, images) for n in range(CLIPS)), CLIPS)
    return folder / "chunks"


def size_of(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(name: str, options: Sequence[str], chunks: Path, folder: Path) -> dict[str, Any]:
    """A row of the table: the chunks preprocessed with these options, each time to another folder."""
    outputs = [folder / f"{name}{number}" for number in range(1 + REPEATS)]
    left = iter(outputs)

    def work() -> None:
        where = ["--base_path", str(chunks), "--output_dir", str(next(left)), "--mode", "train"]
        preprocess_data.main([*where, "--num_processes", "1", *options])

    seconds = timed(work, 1, 1)
    written = outputs[0] / "train"
    clips = len(list((written / "metadata").iterdir()))
    return {
        "format": name,
        "clips/s a core": clips / statistics.median(seconds),
        "spread": f"{spread(seconds):.0%}",
        "files a clip": sum(path.is_file() for path in written.rglob("*")) / clips,
        "MB a clip": size_of(written) / clips / 1e6,
        "bytes written per byte read": size_of(written) / size_of(chunks / "train"),
    }


def main(argv: Sequence[str]) -> None:
    """Measure both formats, and JPEG packed."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--chunks", type=path_argument, help="folder with train/*.torch and train/index.json")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chunks = given.chunks or drawn_chunks(folder)
        rows = [
            measure("png", ["--image_format", "png"], chunks, folder),
            measure("jpeg", [], chunks, folder),
            measure("jpeg packed", ["--pack"], chunks, folder),
            measure("jpeg checked", ["--check_images"], chunks, folder),
        ]
    for row in rows:
        row["times PNG"] = row["clips/s a core"] / rows[0]["clips/s a core"]
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)
