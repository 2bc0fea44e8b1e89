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
from jaxtyping import Float, Float32, Int64, UInt8
from tqdm import tqdm

from data.synthetic.path import DEFAULT_SPEED, make_path, to_pixels
from data.synthetic.rendering import Pinhole, render
from data.synthetic.room import make_scene
from utils.errors import InputError
from utils.fields import bounded
from utils.files import write_json
from utils.parallel import exit_with_parent, usable_cores
from utils.sections import check_fields

SPLITS = ("train", "test")
INDEX_NAME = "evaluation_index.json"
# What a folder of objects has, whose index is of theirs.
OBJECTS_RECORD = "objects.json"
DEFAULT_CONTEXT_DISTANCE = 45
_FRAMES_PER_SECOND = 30
_TEXELS = 1.6  # size of a texel in metres, times the image height: about two pixels at one metre


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
    images = (render(room.faces, Pinhole(pose, fxfycxcy, spec.width, spec.height)) for pose in c2w)
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


@dataclass(frozen=True)
class SetConfig:
    """A set of clips as RealEstate10K chunks.

    Clip i of a split depends on the seed, the split, i, and the clips' length, size, speed and quality alone: neither
    the number of clips nor that of processes (0: one on every core) changes it. All clips of a chunk are in memory when
    it is written.

    The evaluation index of the test split has two context views `context_distance` frames apart (by default 45, or less
    where a clip is shorter) and `targets` target views strictly between them. `speed` is the mean distance between
    neighbouring cameras in metres.
    """

    train_scenes: int = bounded(64, 0, 100_000_000)
    test_scenes: int = bounded(8, 0, 100_000_000)
    frames: int = bounded(60, 1, 1_000_000)
    width: int = bounded(640, 16, 4096)
    height: int = bounded(360, 16, 4096)
    seed: int = bounded(0, 0, 2**63 - 1)
    speed: float = bounded(DEFAULT_SPEED, 0, 1, open_below=True)
    jpeg_quality: int = bounded(92, 1, 100)
    num_processes: int = bounded(0, 0, 4096)
    clips_per_chunk: int = bounded(16, 1, 1_000_000)
    context_distance: int | None = None
    targets: int = bounded(3, 1, 1_000_000)

    def distance(self) -> int:
        """Frames between the context views of the evaluation index."""
        if self.context_distance is None:
            return min(DEFAULT_CONTEXT_DISTANCE, self.frames - 1)
        return self.context_distance

    def specs(self, split: str) -> list[ClipSpec]:
        """The clips of a split."""
        count = self.train_scenes if split == "train" else self.test_scenes
        same = (self.frames, self.width, self.height, self.speed, self.jpeg_quality)
        return [ClipSpec(self.seed, split, i, *same) for i in range(count)]


def write_re10k(root: Path, cfg: SetConfig, *, overwrite: bool = False) -> None:
    """Write RealEstate10K chunks of synthetic clips, and an evaluation index for those of the test split.

    Args:
        root: gets {train,test}/NNNNNN.torch, their index.json, and evaluation_index.json.
        overwrite: replace chunks that are there already.

    Raises:
        InputError: a value is out of range, or the folder holds objects, or chunks and ``overwrite`` is false.
    """
    _check(cfg)
    _clear(root, overwrite)
    specs = {split: cfg.specs(split) for split in SPLITS}
    wanted = [spec for split in SPLITS for spec in specs[split]]
    clips = iter(tqdm(_make_clips(wanted, cfg.num_processes), total=len(wanted), unit="clip", disable=None))
    for split in SPLITS:
        _write_split(root / split, islice(clips, len(specs[split])), cfg.clips_per_chunk)
    if specs["test"]:
        index = {spec.key: _evaluation_views(spec, cfg.distance(), cfg.targets) for spec in specs["test"]}
        write_json(root / INDEX_NAME, index)


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
    """Make sure that no chunks of an earlier run stay among the new ones, and that the index is not of objects."""
    if (root / OBJECTS_RECORD).exists():
        raise InputError(f"{root / OBJECTS_RECORD} says that objects lie there: name another --output_dir")
    old = [path for split in SPLITS for path in sorted((root / split).glob("*.torch"))]
    if old and not overwrite:
        first = old[0].relative_to(root)
        raise InputError(f"{root} already holds chunks such as {first}; pass --overwrite to replace them")
    for path in [*old, *(root / split / "index.json" for split in SPLITS), root / INDEX_NAME]:
        path.unlink(missing_ok=True)


def _check(cfg: SetConfig) -> None:
    """Raises InputError, naming the option, for values that no set can have."""
    check_fields(cfg)
    if not cfg.train_scenes + cfg.test_scenes:
        raise InputError("train_scenes and test_scenes are 0: at least 1 clip is needed")
    if cfg.test_scenes and not cfg.targets < cfg.distance() < cfg.frames:
        raise InputError(
            f"context_distance is {cfg.distance()}; it must be from targets + 1 = {cfg.targets + 1} "
            f"to frames - 1 = {cfg.frames - 1}"
        )
