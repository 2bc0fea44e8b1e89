"""RealEstate10K chunks -> scenes on disk.

    python preprocess_data.py --base_path re10k --output_dir preprocessed_data --mode train

Frames keep their original JPEG bytes and their numbers. Run it again to go on where it stopped: scenes that are
complete are left alone. What could not be used is named at the end and in OUTPUT_DIR/MODE/lost.json, and the exit
code is then 1.
"""

import argparse
import shutil
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from io import BytesIO
from os import cpu_count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.re10k import Clip, chunk_files, image_size, missing_keys, parse_clip, read_chunk
from data.scene import Scene, check_cameras, read_scene, write_scene
from data.transforms import IMAGE_ERRORS
from utils.cli import run_main
from utils.errors import InputError
from utils.files import errors_name, is_plain_name, remove_stale, write_json, write_text
from utils.parallel import exit_with_parent

_SHOWN = 20


@dataclass(frozen=True)
class Output:
    """Where scenes go: `root` is OUT/MODE."""

    root: Path
    image_format: str

    def metadata(self, key: str) -> Path:
        """A scene's metadata; written last, so it marks the scene as complete."""
        return self.root / "metadata" / f"{key}.json"

    def images(self, key: str) -> Path:
        """The folder of a scene's frames."""
        return self.root / "images" / key

    def is_complete(self, key: str) -> bool:
        """Whether an earlier run wrote this scene."""
        return is_plain_name(key) and self.metadata(key).exists() and self.images(key).is_dir()


@dataclass
class Report:
    """What became of clips: how many were written, how many were there before, and what was lost, by name."""

    written: int = 0
    kept: int = 0
    lost: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Add up."""
        self.written += other.written
        self.kept += other.kept
        self.lost |= other.lost


def process_chunk(path: Path, promised: list[str] | None, out: Output) -> Report:
    """Write every clip of a chunk that is not complete yet; one bad clip or frame costs only itself.

    Args:
        promised: the keys that the index gives this chunk; None without an index.

    Raises:
        OSError: the disk is full or not writable.
    """
    torch.set_num_threads(1)
    report = Report()
    if promised and all(out.is_complete(key) for key in promised):
        for key in promised:
            _keep(key, out, report)
        return report
    try:
        records = read_chunk(path)
    except InputError as error:
        report.lost |= {f"clip {key}": str(error) for key in promised or []} or {f"chunk {path.name}": str(error)}
        return report
    left = None if promised is None else set(promised)
    for number, record in enumerate(records):
        try:
            _process_record(record, f"{path.name}, clip {number}", out, report, left)
        except InputError as error:
            report.lost[f"{path.name}, clip {number}"] = str(error)
    absent = missing_keys(records, promised or [])
    report.lost |= {f"clip {key}": f"{path.name} does not hold it, though index.json says so" for key in absent}
    return report


def _process_record(record: object, where: str, out: Output, report: Report, left: set[str] | None) -> None:
    """Write one clip; `left` holds the keys that the index gives this chunk and that have not come yet."""
    clip = parse_clip(record, where)
    if left is not None and clip.key not in left:
        raise InputError(f"{where}: clip {clip.key} comes twice, or index.json does not give it to this chunk")
    if left is not None:
        left.remove(clip.key)
    if out.is_complete(clip.key):
        _keep(clip.key, out, report)
    else:
        report.lost |= write_clip(clip, out)
        report.written += 1


def _keep(key: str, out: Output, report: Report) -> None:
    """Count a scene that is there already; frames that it lost earlier are still lost."""
    report.kept += 1
    try:
        paths = read_scene(out.metadata(key)).image_paths
    except InputError as error:
        report.lost[f"clip {key}"] = f"{error}; delete the file and run again"
        return
    reason = f"lost in an earlier run; delete {out.metadata(key)} to try again"
    report.lost |= {f"clip {key}, frame {frame}": reason for frame, image in enumerate(paths) if image is None}


def write_clip(clip: Clip, out: Output) -> dict[str, str]:
    """Write a clip's frames, then its metadata; return the frames that were lost and why.

    Raises:
        InputError: no frame of the clip is usable, or one of its cameras is not.
        OSError: the disk is full or not writable; the scene is then not there.
    """
    frames, lost = _encode_frames(clip, out.image_format)
    sizes = [frame[1] for frame in frames if frame is not None]
    if not sizes:
        raise InputError(f"clip {clip.key}: none of its {len(frames)} frames can be decoded")
    # A lost frame keeps its camera, in pixels of the first good frame.
    per_frame = [sizes[0] if frame is None else frame[1] for frame in frames]
    fxfycxcy = clip.cameras[:, :4] * np.array(per_frame)[:, [0, 1, 0, 1]]
    check_cameras(fxfycxcy, clip.w2c(), f"clip {clip.key}")
    suffix = "png" if out.image_format == "png" else "jpg"
    names = [f"{number:05d}.{suffix}" for number in range(len(frames))]
    folder = out.images(clip.key)
    _write_folder(folder, {name: frame[0] for name, frame in zip(names, frames, strict=True) if frame is not None})
    paths = [None if frame is None else folder / name for name, frame in zip(names, frames, strict=True)]
    write_scene(Scene(clip.key, paths, fxfycxcy, clip.w2c(), out.metadata(clip.key)))
    return lost


def _encode_frames(clip: Clip, image_format: str) -> tuple[list[tuple[bytes, tuple[int, int]] | None], dict[str, str]]:
    """File content and (width, height) of every frame; None for the lost ones, which are named with the reason."""
    frames: list[tuple[bytes, tuple[int, int]] | None] = []
    lost = {}
    for number, data in enumerate(clip.images):
        try:
            size = image_size(data)
            frames.append((_as_png(data) if image_format == "png" else data, size))
        except IMAGE_ERRORS as error:
            frames.append(None)
            lost[f"clip {clip.key}, frame {number}"] = f"cannot be decoded: {str(error).split(' <')[0]}"
    return frames, lost


def _as_png(data: bytes) -> bytes:
    buffer = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.convert("RGB").save(buffer, format="png")
    return buffer.getvalue()


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files under a temporary name, then rename it."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with errors_name(folder):
            temporary.mkdir(parents=True)
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def preprocess(chunks: dict[Path, list[str] | None], out: Output, num_processes: int) -> Report:
    """Process all chunks in parallel, then write the scene list.

    Raises:
        InputError: a worker died.
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    total = Report()
    for folder in (out.root / "metadata", out.root / "images"):
        remove_stale(folder)
    with (
        ProcessPoolExecutor(num_processes, initializer=exit_with_parent) as pool,
        tqdm(total=sum(len(keys or []) for keys in chunks.values()), desc="clips", unit="clip", disable=None) as bar,
    ):
        futures = [pool.submit(process_chunk, path, promised, out) for path, promised in chunks.items()]
        try:
            for future in as_completed(futures):
                report = future.result()
                total.add(report)
                bar.update(report.written + report.kept)
        except BrokenProcessPool:
            raise InputError("a worker died (out of memory?): run again with a smaller --num_processes") from None
        finally:
            pool.shutdown(cancel_futures=True)
    _write_list(out.root)
    return total


def _write_list(root: Path) -> None:
    """List every complete scene of the split, whichever run wrote it."""
    scenes = sorted((root / "metadata").glob("[!.]*.json"))
    write_text(root / "full_list.txt", "".join(f"metadata/{path.name}\n" for path in scenes))


def _say(report: Report, out: Output) -> None:
    """Print the outcome; write what was lost to a file, and exit with 1 if anything was."""
    print(f"{report.written} clips written, {report.kept} already there: {out.root / 'full_list.txt'}")
    lost_path = out.root / "lost.json"
    if not report.lost:
        lost_path.unlink(missing_ok=True)
        return
    write_json(lost_path, report.lost)
    for name, reason in list(report.lost.items())[:_SHOWN]:
        print(f"lost: {name}: {reason}", file=sys.stderr)
    raise InputError(f"{len(report.lost)} clips or frames were lost; {lost_path} names them all")


def main(argv: Sequence[str]) -> None:
    """Parse arguments, process one split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_path", type=Path, required=True, help="folder with train/ and test/ chunk folders")
    parser.add_argument("--output_dir", type=Path, required=True, help="scenes go to OUTPUT_DIR/MODE")
    parser.add_argument("--mode", choices=["train", "test"], required=True, help="which split")
    parser.add_argument("--num_processes", type=int, default=cpu_count(), help="default: all cores")
    parser.add_argument(
        "--image_format",
        choices=["jpeg", "png"],
        default="jpeg",
        help="jpeg keeps the original bytes; png re-encodes them (the same pixels in 6.6 times the space)",
    )
    arguments = parser.parse_args(argv)
    if arguments.num_processes < 1:
        raise InputError(f"--num_processes is {arguments.num_processes}; at least 1 is needed")
    out = Output(arguments.output_dir / arguments.mode, arguments.image_format)
    chunks = chunk_files(arguments.base_path / arguments.mode)
    _say(preprocess(chunks, out, arguments.num_processes), out)


if __name__ == "__main__":
    run_main(main)
