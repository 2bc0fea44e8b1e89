"""Clips a second that one core preprocesses, and bytes written for each byte read.

    python -m benchmarks.preprocess [--chunks FOLDER]

Without a folder of RealEstate10K chunks, drawn clips are stored as one. PNG is the way of re-encoding every frame.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import preprocess_data
from benchmarks.common import benchmark_parser, show, spread, timed
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


def main(argv: Sequence[str]) -> None:
    """Measure both formats."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--chunks", type=path_argument, help="folder with train/*.torch and train/index.json")
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chunks = given.chunks or drawn_chunks(folder)
        for image_format in ("png", "jpeg"):
            outputs = iter(folder / f"{image_format}{number}" for number in range(9))

            def work(image_format: str = image_format) -> None:
                where = ["--base_path", str(chunks), "--output_dir", str(next(outputs)), "--mode", "train"]  # noqa: B023
                preprocess_data.main([*where, "--num_processes", "1", "--image_format", image_format])

            seconds = timed(work, 1, 1)
            clips = len(list((folder / f"{image_format}0" / "train" / "metadata").iterdir()))
            written = size_of(folder / f"{image_format}0") / size_of(chunks / "train")
            row = {"format": image_format, "clips/s a core": clips / statistics.median(seconds)}
            rows.append(row | {"spread": f"{spread(seconds):.0%}", "bytes written per byte read": written})
    rows[-1]["times PNG"] = rows[1]["clips/s a core"] / rows[0]["clips/s a core"]
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)
