"""Clips of walks through procedural rooms, and chunks of them."""

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, Int64, UInt8
from tqdm import tqdm

from data.synthetic.path import DEFAULT_SPEED, make_path, to_pixels
from data.synthetic.rendering import cast, render_faces
from data.synthetic.room import Room, make_scene
from utils.errors import InputError
from utils.files import write_json
from utils.parallel import exit_with_parent, usable_cores

SPLITS = ("train", "test")
DEFAULT_CONTEXT_DISTANCE = 45
_FRAMES_PER_SECOND = 30
_TEXELS = 1.6  # size of a texel in metres, times the image height: about two pixels at one metre


def render(
    room: Room,
    c2w: Float[np.ndarray, "4 4"],
    fxfycxcy: Float[np.ndarray, "4"],
    width: int,
    height: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB picture of the room from one camera; ``fxfycxcy`` is in pixels of the picture."""
    return render_faces(room.faces, c2w, fxfycxcy, width, height)


def cast_room(
    room: Room,
    c2w: Float[np.ndarray, "4 4"],
    fxfycxcy: Float[np.ndarray, "4"],
    width: int,
    height: int,
) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Face (its row in ``room.faces``) and depth along z at every pixel centre."""
    return cast(room.faces, c2w, fxfycxcy, width, height)


# ---------------------------------------------------------------- one clip


@dataclass(frozen=True)
class ClipSpec:
    """All that decides a clip: clip ``index`` of ``split`` under ``seed``, its length and its pictures."""

    seed: int
    split: str
    index: int
    frames: int
    width: int
    height: int
    speed: float = DEFAULT_SPEED
    jpeg_quality: int = 92

    @property
    def key(self) -> str:
        """The 16 hex digits that name the clip."""
        return hashlib.sha256(f"{self.seed}/{self.split}/{self.index}".encode()).hexdigest()[:16]

    def entropy(self, purpose: int) -> list[int]:
        """A seed of numpy's, another one for every purpose."""
        return [self.seed, SPLITS.index(self.split), self.index, purpose]


@dataclass(frozen=True)
class Clip:
    """A rendered clip, in arrays. Rows of ``cameras`` as in RealEstate10K: normalised fxfycxcy, 0, 0, w2c 3x4."""

    key: str
    url: str
    timestamps: Int64[np.ndarray, "n"]
    cameras: Float32[np.ndarray, "n 18"]
    jpegs: list[bytes]


def make_clip(spec: ClipSpec) -> Clip:
    """Build, walk and photograph the room of a clip: a pure function of the spec."""
    room = make_scene(spec.entropy(0), texel=_TEXELS / spec.height)
    aspect = spec.width / spec.height
    c2w, intrinsics = make_path(room, spec.entropy(1), spec.frames, speed=spec.speed, aspect=aspect)
    fxfycxcy = to_pixels(intrinsics, spec.width, spec.height)
    images = (render(room, pose, fxfycxcy, spec.width, spec.height) for pose in c2w)
    return Clip(
        key=spec.key,
        url=f"synthetic://seed{spec.seed}/{spec.split}/{spec.index}",
        timestamps=np.arange(spec.frames, dtype=np.int64) * 1_000_000 // _FRAMES_PER_SECOND,
        cameras=_camera_rows(c2w, intrinsics),
        jpegs=[_jpeg(image, spec.jpeg_quality) for image in images],
    )


def _camera_rows(c2w: Float[np.ndarray, "n 4 4"], intrinsics: Float[np.ndarray, "4"]) -> Float32[np.ndarray, "n 18"]:
    rows = np.zeros((len(c2w), 18), np.float32)
    rows[:, :4] = intrinsics
    rows[:, 6:] = np.linalg.inv(c2w)[:, :3].reshape(-1, 12)
    return rows


def _jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError("OpenCV could not encode a JPEG image")
    return data.tobytes()


# ---------------------------------------------------------------- chunks


def write_re10k(
    root: Path,
    *,
    train_scenes: int,
    test_scenes: int,
    frames: int,
    width: int,
    height: int,
    seed: int = 0,
    num_processes: int = 0,
    clips_per_chunk: int = 16,
    context_distance: int | None = None,
    targets: int = 3,
    jpeg_quality: int = 92,
    speed: float = DEFAULT_SPEED,
    overwrite: bool = False,
) -> None:
    """Write RealEstate10K chunks of synthetic clips, and an evaluation index for those of the test split.

    Args:
        root: folder to write {train,test}/NNNNNN.torch, their index.json and evaluation_index.json to.
        train_scenes, test_scenes: number of clips of each split.
        frames, width, height: length of every clip and size of its pictures.
        seed: clip i of a split depends on the seed, the split, i and the sizes, not on the number of clips.
        num_processes: 0 for one on every core; it changes nothing but the time.
        clips_per_chunk: clips in a file, all of which are in memory when it is written.
        context_distance: frames between the two context views of the evaluation index; by default 45, or less
            where a clip is shorter.
        targets: target views of the evaluation index, strictly between the context views.
        jpeg_quality: 1 to 100.
        speed: mean distance between neighbouring cameras in metres.
        overwrite: replace chunks that are there already.

    Raises:
        InputError: a value is out of range, or the folder holds chunks and ``overwrite`` is false.
    """
    if context_distance is None:
        context_distance = min(DEFAULT_CONTEXT_DISTANCE, frames - 1)
    counts = {"train": train_scenes, "test": test_scenes}
    _check_counts(counts, seed, num_processes, clips_per_chunk)
    _check_pictures(frames, width, height, jpeg_quality, speed)
    if test_scenes:
        _check_index(frames, context_distance, targets)
    root = Path(root)
    _clear(root, overwrite)
    specs = {
        split: [ClipSpec(seed, split, i, frames, width, height, speed, jpeg_quality) for i in range(count)]
        for split, count in counts.items()
    }
    clips = _make_clips([*specs["train"], *specs["test"]], num_processes)
    progress = iter(tqdm(clips, total=train_scenes + test_scenes, unit="clip", disable=None))
    for split in SPLITS:
        _write_split(root / split, islice(progress, counts[split]), clips_per_chunk)
    if test_scenes:
        index = {spec.key: _evaluation_views(spec, context_distance, targets) for spec in specs["test"]}
        write_json(root / "evaluation_index.json", index)


def _make_clips(specs: Sequence[ClipSpec], num_processes: int) -> Iterator[Clip]:
    """Clips in the order of their specs, made in parallel."""
    workers = min(num_processes or usable_cores(), len(specs))
    if workers == 1:
        yield from map(make_clip, specs)
        return
    # A forked child could hang on locks that threads of torch or OpenCV held, so children start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        yield from pool.map(make_clip, specs)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    exit_with_parent()


def _write_split(folder: Path, clips: Iterator[Clip], clips_per_chunk: int) -> None:
    """Write clips as chunks; the index comes last."""
    # Here, since it imports torch, which takes seconds, and the worker processes need none of it.
    from data.importers.re10k_chunks import clip_record, write_split

    records = (clip_record(clip.key, clip.cameras, clip.jpegs, clip.timestamps, clip.url) for clip in clips)
    write_split(folder, records, clips_per_chunk)


def _evaluation_views(spec: ClipSpec, context_distance: int, targets: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(spec.entropy(2))
    left = int(rng.integers(spec.frames - context_distance))
    between = rng.choice(np.arange(left + 1, left + context_distance), targets, replace=False)
    return {"context": [left, left + context_distance], "target": sorted(between.tolist())}


def _clear(root: Path, overwrite: bool) -> None:
    """Make sure that no chunks of an earlier run stay among the new ones."""
    old = [path for split in SPLITS for path in sorted((root / split).glob("*.torch"))]
    if old and not overwrite:
        first = old[0].relative_to(root)
        raise InputError(f"{root} already holds chunks such as {first}; pass --overwrite to replace them")
    for path in [*old, *(root / split / "index.json" for split in SPLITS), root / "evaluation_index.json"]:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- checks


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise InputError(f"{name} must be {rule}, not {value}")


def _check_counts(counts: dict[str, int], seed: int, num_processes: int, clips_per_chunk: int) -> None:
    for split, count in counts.items():
        _require(count >= 0, f"{split}_scenes", count, "0 or more")
    _require(sum(counts.values()) > 0, "train_scenes + test_scenes", 0, "at least 1")
    _require(seed >= 0, "seed", seed, "0 or more")
    _require(num_processes >= 0, "num_processes", num_processes, "0 (one on every core) or more")
    _require(clips_per_chunk >= 1, "clips_per_chunk", clips_per_chunk, "at least 1")


def _check_pictures(frames: int, width: int, height: int, jpeg_quality: int, speed: float) -> None:
    _require(frames >= 1, "frames", frames, "at least 1")
    _require(16 <= width <= 4096, "width", width, "between 16 and 4096")
    _require(16 <= height <= 4096, "height", height, "between 16 and 4096")
    _require(1 <= jpeg_quality <= 100, "jpeg_quality", jpeg_quality, "between 1 and 100")
    _require(0 < speed <= 1, "speed", speed, "above 0 and at most 1 metre a frame")


def _check_index(frames: int, context_distance: int, targets: int) -> None:
    _require(targets >= 1, "targets", targets, "at least 1")
    rule = f"between targets + 1 = {targets + 1} and frames - 1 = {frames - 1}"
    _require(targets < context_distance < frames, "context_distance", context_distance, rule)
