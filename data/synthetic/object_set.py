"""Sets of procedural objects, written as scenes: RGBA pictures from all around with exact cameras."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data.outcome import tell
from data.parallel import DIED, import_in_parallel
from data.synthetic.clips import INDEX_NAME, OBJECTS_RECORD, SPLITS
from data.synthetic.object_rendering import BakedObject, bake, draw_light, render_object
from data.synthetic.objects import make_object
from data.synthetic.rendering import Pinhole
from data.writing import ImportResult, NewScene, SceneWriter
from geometry.cameras import orient
from geometry.spreading import farthest_first
from utils.errors import InputError
from utils.fields import bounded
from utils.files import read_json, write_json
from utils.parallel import usable_cores
from utils.sections import check_fields
from utils.text import printable

# Distance of the cameras from the origin, in whose units objects have a radius of about 1, and the focal length in
# widths of a picture: a field of view of 50 degrees.
CAMERA_DISTANCE = 2.7
FOCAL_LENGTH = 0.5 / float(np.tan(np.radians(25)))
# Cameras nearer to straight above or below than this (1 - |sin of the elevation|) have no clear way up.
_POLE = 1e-3
# Size of a texel, times the width of a picture: half a pixel at the origin.
_TEXELS = CAMERA_DISTANCE / FOCAL_LENGTH / 2
_PNG_EFFORT = 3


@dataclass(frozen=True)
class ObjectSpec:
    """All that decides the pictures of an object: object `index` of `split` under `seed`, their number and size."""

    seed: int
    split: str
    index: int
    frames: int
    size: int

    @property
    def key(self) -> str:
        """The 16 hex digits that name the object."""
        return hashlib.sha256(f"objects/{self.seed}/{self.split}/{self.index}".encode()).hexdigest()[:16]

    def generator(self, purpose: int) -> np.random.Generator:
        """Random numbers, others for every purpose."""
        return np.random.default_rng(self.entropy(purpose))

    def entropy(self, purpose: int) -> list[int]:
        """A seed of numpy's, another one for every purpose."""
        return [self.seed, SPLITS.index(self.split), self.index, purpose]


class PhotographedObject:
    """An object and the cameras around it: a pure function of the spec."""

    def __init__(self, spec: ObjectSpec) -> None:
        self.spec = spec
        self.c2w = sphere_cameras(spec.generator(1), spec.frames)
        focal = FOCAL_LENGTH * spec.size
        self.fxfycxcy = np.array([focal, focal, spec.size / 2, spec.size / 2])

    @cached_property
    def baked(self) -> BakedObject:
        """The object, made when it is first needed."""
        rng = self.spec.generator(2)
        return bake(make_object(self.spec.entropy(0)), draw_light(rng), rng, _TEXELS / self.spec.size)

    def picture(self, frame: int) -> UInt8[np.ndarray, "h w 4"]:
        """The RGBA picture of a frame."""
        return render_object(self.baked, Pinhole(self.c2w[frame], self.fxfycxcy, self.spec.size, self.spec.size))

    def scene(self) -> NewScene:
        """The scene to be written; its pictures are rendered as they are read."""
        fxfycxcy = np.tile(self.fxfycxcy, (self.spec.frames, 1))
        return NewScene(self.spec.key, lambda frame: _png(self.picture(frame)), fxfycxcy, np.linalg.inv(self.c2w))


def sphere_cameras(rng: np.random.Generator, count: int) -> Float[np.ndarray, "n 4 4"]:
    """c2w of cameras that look at the origin from random directions, upright (z is up)."""
    height = rng.uniform(_POLE - 1, 1 - _POLE, count)
    azimuth = rng.uniform(0, 2 * np.pi, count)
    across = np.sqrt(1 - height**2)
    direction = np.stack([across * np.cos(azimuth), across * np.sin(azimuth), height], axis=1)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = orient(-direction, np.broadcast_to([0.0, 0.0, -1.0], direction.shape))
    c2w[:, :3, 3] = CAMERA_DISTANCE * direction
    return c2w


def _png(image: UInt8[np.ndarray, "h w 4"]) -> bytes:
    options = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_EFFORT]
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA), options)
    if not ok:
        raise RuntimeError("OpenCV could not encode a PNG image")
    return data.tobytes()


# ---------------------------------------------------------------- sets


@dataclass(frozen=True)
class ObjectSetConfig:
    """A set of objects as scenes.

    Object i of a split depends on the seed, the split, i, and the number and size of its pictures alone: neither the
    number of objects nor that of processes (0: one on every core) changes it.

    The evaluation index of the test split has `inputs` context views far apart, and `targets` of the others.
    """

    train_scenes: int = bounded(64, 0, 100_000_000)
    test_scenes: int = bounded(8, 0, 100_000_000)
    frames: int = bounded(32, 1, 1_000_000)
    size: int = bounded(128, 16, 512)
    seed: int = bounded(0, 0, 2**63 - 1)
    num_processes: int = bounded(0, 0, 4096)
    inputs: int = bounded(4, 1, 1000)
    targets: int = bounded(8, 1, 1_000_000)
    pack: bool = False

    def specs(self, split: str) -> list[ObjectSpec]:
        """The objects of a split."""
        count = self.train_scenes if split == "train" else self.test_scenes
        return [ObjectSpec(self.seed, split, index, self.frames, self.size) for index in range(count)]

    def deciding(self) -> dict[str, int]:
        """What decides the pictures of an object of a given split and number."""
        return {name: value for name, value in asdict(self).items() if name in ("frames", "size", "seed")}


@dataclass(frozen=True)
class _Task:
    specs: Sequence[ObjectSpec]
    writer: SceneWriter

    def __len__(self) -> int:
        return len(self.specs)


def write_objects(root: Path, cfg: ObjectSetConfig) -> None:
    """Write sets of objects, and an evaluation index for those of the test split; objects that are there stay.

    Args:
        root: gets {train,test} with metadata, images and full_list.txt, and evaluation_index.json.

    Raises:
        InputError: a value is out of range, or the folder holds objects of another seed, number or size of pictures.
        OSError: the disk is full or not writable; objects that are whole stay, so that a later run goes on.
    """
    _check(cfg)
    _claim(root, cfg)
    for split in SPLITS:
        if specs := cfg.specs(split):
            _write_split(root / split, specs, cfg)
    if specs := cfg.specs("test"):
        index = {spec.key: _evaluation_views(spec, cfg.inputs, cfg.targets) for spec in specs}
        write_json(root / INDEX_NAME, index)


def _claim(root: Path, cfg: ObjectSetConfig) -> None:
    """Note in the folder what decides the pictures.

    Raises:
        InputError: others lie there, or something else that has an evaluation index, such as rooms.
    """
    path = root / OBJECTS_RECORD
    if path.exists():
        found = read_json(path, "record of a set of objects")
        if found != cfg.deciding():
            raise InputError(
                f"{printable(str(path))} says {printable(str(found))}, but {cfg.deciding()} is asked for: "
                "name another --output_dir"
            )
        return
    if (root / INDEX_NAME).exists():
        raise InputError(f"{printable(str(root / INDEX_NAME))} is not of objects: name another --output_dir")
    root.mkdir(parents=True, exist_ok=True)
    write_json(path, cfg.deciding())


def _write_split(folder: Path, specs: Sequence[ObjectSpec], cfg: ObjectSetConfig) -> None:
    writer = SceneWriter(folder, packed=cfg.pack)
    total = ImportResult()
    with writer.session(), _one_thread():
        tasks = [_Task([spec], writer) for spec in specs]
        import_in_parallel(_write, tasks, min(cfg.num_processes or usable_cores(), len(tasks)), _lose, total)
    tell(total, writer, "object")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have OpenCV work in one thread: a forked process could hang on locks that its threads held."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _write(task: _Task) -> ImportResult:
    result = ImportResult()
    for spec in task.specs:
        found = task.writer.find(spec.key)
        if found is None:
            task.writer.add(spec.key, PhotographedObject(spec).scene, result)
        else:
            task.writer.keep(spec.key, found, None, result)
    return result


def _lose(task: _Task) -> ImportResult:
    result = ImportResult()
    for spec in task.specs:
        result.lose(f"clip {spec.key}", DIED)
    return result


def _evaluation_views(spec: ObjectSpec, inputs: int, targets: int) -> dict[str, list[int]]:
    centres = PhotographedObject(spec).c2w[:, :3, 3]
    context = farthest_first(lambda one: np.linalg.norm(centres - centres[one], axis=1), [0], inputs)
    others = np.setdiff1d(np.arange(spec.frames), context)
    target = spec.generator(3).choice(others, targets, replace=False)
    return {"context": sorted(context), "target": sorted(target.tolist())}


def _check(cfg: ObjectSetConfig) -> None:
    """Raises InputError, naming the option, for values that no set can have."""
    check_fields(cfg)
    if not cfg.train_scenes + cfg.test_scenes:
        raise InputError("train_scenes and test_scenes are 0: at least 1 object is needed")
    if cfg.test_scenes and cfg.inputs + cfg.targets > cfg.frames:
        raise InputError(
            f"inputs {cfg.inputs} and targets {cfg.targets} are more views than frames, of which there are {cfg.frames}"
        )
