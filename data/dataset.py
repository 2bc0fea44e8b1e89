"""Samples: chosen frames of a scene as normalised views."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.scene import Scene, read_scene, read_scene_list
from data.transforms import (
    BACKGROUNDS,
    Color,
    Crop,
    fast_decoder,
    has_fast_lanczos,
    on_background,
    plan_crop,
    read_pixels,
    read_with_alpha,
    to_planes,
)
from data.views import (
    SAMPLERS,
    LostFramesError,
    Selection,
    ViewConfig,
    check_view_config,
    may_have_sample,
    views_of_update,
    with_inputs,
)
from geometry.camera_check import camera_faults
from geometry.cameras import Cameras, Views
from geometry.image_size import ImageSize
from geometry.normalization import (
    Normalization,
    PoseNormalization,
    median_normalization,
    no_normalization,
    pose_normalization,
)
from utils.errors import InputError
from utils.fields import all_bounded, bounded, file_path
from utils.text import printable

# Unreadable scenes in a row before a sample gives up: then it is not the scenes that are at fault.
_SCENE_TRIES = 10


@dataclass(frozen=True)
class DataConfig(ViewConfig):
    """What a sample is; part of the `training` section of a configuration file.

    `pose_normalization` names what sets a sample's frame and scale: `all_views`, inputs and targets, as the published
    weights were trained; `input_views`, so that a render cannot depend on the other targets; `median`, all views, by
    their median distance rather than the largest, so that one far camera does not shrink the others; or `none`: cameras
    are as they are, and nothing reads `scene_scale_factor`. `auto` evaluates weights as they were trained, and trains
    with `all_views`. With `none` camera positions are multiplied by `pose_scale`, which nothing else reads.
    `background` is the colour behind transparent parts of images: `white`, `black`, or in training `random`, one a
    sample. Images without alpha are untouched.
    `square_crop` cuts images to their middle, of the model's `image_size`; without it they keep their shape.
    Training takes one of the `image_sizes` for each update in its place, if there are any (`size_of_update`).
    `image_resize` is `exact` (Pillow's Lanczos, as published) or, for training alone, `fast` (within 2 of 255).
    `allow_outside_images` reads images outside the set's folder, too: by absolute paths, `..` or links.
    """

    dataset_path: str = file_path("./preprocessed_data/train/full_list.txt")
    square_crop: bool = True
    image_sizes: list[ImageSize] = all_bounded([], 1, 4096)
    scene_scale_factor: float = bounded(1.35, 0, 1_000_000, open_below=True)
    pose_normalization: Literal["auto", PoseNormalization] = "auto"
    pose_scale: float = bounded(1.0, 0, 1_000_000, open_below=True)
    background: Literal["white", "black", "random"] = "white"
    image_resize: Literal["exact", "fast"] = "exact"
    allow_outside_images: bool = False


@dataclass(frozen=True)
class CameraTransform:
    """What turns cameras of a scene's file into cameras of a sample: pose normalisation, and the crop of its images.

    `crop` is that of the first input image; `height` and `width` are those of the sample's images in pixels.
    """

    normalization: Normalization
    crop: Crop
    height: int
    width: int

    def __call__(self, w2c: Float[np.ndarray, "n 4 4"], fxfycxcy: Float[np.ndarray, "n 4"]) -> Cameras:
        """Cameras [n] given as scene metadata gives them, `fxfycxcy` in pixels of the stored images."""
        poses = self.normalization(np.linalg.inv(w2c))
        return Cameras(_float32(poses), _float32(self.crop.intrinsics(fxfycxcy)), self.height, self.width)

    def inverse(self, cameras: Cameras) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4"]]:
        """w2c and intrinsics, as scene metadata gives them, of cameras [n] of the sample."""
        c2w = self.normalization.inverse(cameras.c2w.double().cpu().numpy())
        return np.linalg.inv(c2w), self.crop.stored_intrinsics(cameras.fxfycxcy.double().cpu().numpy())


@dataclass(frozen=True)
class Batch:
    """Scenes with their chosen views; a single sample has no leading dimension.

    Attributes:
        views: uint8 images with cameras [b, v], poses normalised per scene, the inputs first.
        num_inputs: how many of the views are inputs.
        targets: positions [b, t] of the target views among `views`; a target may be an input as well.
        scenes: scene names, one a scene.
        frames: frame numbers [b, v] within the clips.
        camera_transforms: how further cameras of the scenes' files join the sample, one a scene.
        failures: what was unusable and gave its place to another scene, a line each.
        notes: what of the data is not used as a person may expect, to be said once a run: a line each kind.
        masks: uint8 alpha of the views [b, v], resized and cut as they are; None if it was not asked for, or if no
            image of the samples has alpha.
    """

    views: Views
    num_inputs: int
    targets: Int[Tensor, "*b t"]
    scenes: list[str]
    frames: Int[Tensor, "*b v"]
    camera_transforms: list[CameraTransform]
    failures: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    masks: UInt8[Tensor, "*b v h w"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """Move to a device without waiting, images turned to float in [0, 1] there."""
        views = self.views.to(device, non_blocking=True).to_float()
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return replace(self, views=views, targets=self.targets.to(device, non_blocking=True), masks=masks)

    def tensors(self) -> list[Tensor]:
        """All its tensors."""
        cameras = self.views.cameras
        masks = [] if self.masks is None else [self.masks]
        return [self.views.images, cameras.c2w, cameras.fxfycxcy, self.targets, self.frames, *masks]

    def pin_memory(self) -> "Batch":
        """Copy into page-locked memory."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return replace(self, views=self.views.pin_memory(), targets=self.targets.pin_memory(), masks=masks)

    def split(self) -> tuple[Views, Views]:
        """Inputs [b, num_inputs] and targets [b, t]."""
        return self.views[:, : self.num_inputs], self.views[self._rows(), self.targets]

    def target_masks(self) -> UInt8[Tensor, "b t h w"] | None:
        """The masks of the targets, on their device."""
        return None if self.masks is None else self.masks[self._rows(), self.targets]

    def _rows(self) -> Int[Tensor, "b 1"]:
        """The scenes' own numbers, to choose views of each."""
        return torch.arange(len(self.targets), device=self.targets.device)[:, None]


def collate(samples: list[Batch]) -> Batch:
    """Stack samples of equal shape and numbers of inputs and targets, all of them with masks or none.

    Raises:
        InputError: images of different sizes, as non-square crops of unlike clips give.
    """
    cameras = [sample.views.cameras for sample in samples]
    sizes = {(camera.width, camera.height): sample.scenes[0] for camera, sample in zip(cameras, samples, strict=True)}
    if len(sizes) > 1:
        named = ", ".join(f"{name} {width}x{height}" for (width, height), name in sizes.items())
        raise InputError(f"scenes of different sizes in one batch ({named}): set training.square_crop=true")
    masks = [sample.masks for sample in samples if sample.masks is not None]
    stacked = replace(
        cameras[0],
        c2w=torch.stack([camera.c2w for camera in cameras]),
        fxfycxcy=torch.stack([camera.fxfycxcy for camera in cameras]),
    )
    return Batch(
        Views(torch.stack([sample.views.images for sample in samples]), stacked),
        samples[0].num_inputs,
        torch.stack([sample.targets for sample in samples]),
        [name for sample in samples for name in sample.scenes],
        torch.stack([sample.frames for sample in samples]),
        [placement for sample in samples for placement in sample.camera_transforms],
        [failure for sample in samples for failure in sample.failures],
        {kind: note for sample in reversed(samples) for kind, note in sample.notes.items()},
        torch.stack(masks) if masks else None,
    )


def collate_by_shape(samples: list["Batch | Unusable"]) -> list["Batch | Unusable"]:
    """Group samples by image size, view counts and whether they have masks, and stack each group.

    Groups come in order of first appearance, and after them, as they are, scenes that cannot be read.
    """
    groups: dict[tuple[torch.Size, int, torch.Size, bool], list[Batch]] = {}
    unusable: list[Unusable] = []
    for sample in samples:
        if isinstance(sample, Unusable):
            unusable.append(sample)
        else:
            shape = (sample.views.images.shape, sample.num_inputs, sample.targets.shape, sample.masks is None)
            groups.setdefault(shape, []).append(sample)
    return [*(collate(group) for group in groups.values()), *unusable]


@dataclass(frozen=True)
class Unusable:
    """A scene of an evaluation that cannot be read, and why."""

    scene: str
    reason: str


class _Read(NamedTuple):
    """The pixels of a frame, how they were cut, (width, height) of the stored image, and its alpha as they were cut."""

    pixels: UInt8[np.ndarray, "3 h w"]
    crop: Crop
    size: tuple[int, int]
    alpha: Image.Image | None


@dataclass(frozen=True)
class ViewLoader:
    """Reads the selected frames of a scene as one sample.

    Args:
        image_size: what images are cut to; its shorter side alone where `square_crop` is off.
        patch_size: sides are multiples of this.
        fast: decode and resize faster, for pixels that differ by up to 2 of 255 (with a torch that can).
        with_masks: read masks, too; not with `fast`.
    """

    cfg: DataConfig
    image_size: ImageSize
    patch_size: int
    fast: bool = False
    with_masks: bool = False

    def __post_init__(self) -> None:
        if self.fast:
            fast_decoder()  # here, once, rather than in every loader process

    def __call__(self, scene: Scene, selection: Selection, background: Color | None = None) -> Batch:
        """Read the frames of a selection.

        Args:
            background: the colour behind transparent parts; None: the one that the configuration names.

        Raises:
            InputError: a frame is missing or unreadable, or the frames differ in size.
        """
        notes = dict(scene.notes)
        frames = np.array(selection.frames, dtype=np.int64)
        color = background or BACKGROUNDS[self.cfg.background]
        read = [self._read(scene, frame, notes, color) for frame in selection.frames]
        images, crops, sizes, masks = zip(*read, strict=True)
        _check_cameras(scene, frames, sizes)
        _check_sizes(scene, frames, sizes)
        if len({image.shape for image in images}) > 1:
            raise InputError(f"scene {scene.name}: frames of different sizes cannot be views of one sample")
        intrinsics = [crop.intrinsics(scene.fxfycxcy[frame]) for crop, frame in zip(crops, frames, strict=True)]
        c2w = np.linalg.inv(scene.w2c[frames])
        size = images[0].shape[1:]
        normalization = self._normalization(c2w, len(selection.context))
        cameras = Cameras(_float32(normalization(c2w)), _float32(np.stack(intrinsics)), *size)
        return Batch(
            views=Views(torch.from_numpy(np.stack(images)), cameras),
            num_inputs=len(selection.context),
            targets=torch.from_numpy(selection.target_positions()),
            scenes=[scene.name],
            frames=torch.from_numpy(frames),
            camera_transforms=[CameraTransform(normalization, crops[0], *size)],
            notes=notes,
            masks=_stack_masks(masks, size) if self.with_masks else None,
        )

    def _normalization(self, c2w: Float[np.ndarray, "v 4 4"], num_inputs: int) -> Normalization:
        name = self.cfg.pose_normalization
        if name == "none":
            return no_normalization(self.cfg.pose_scale)
        if name == "median":
            return median_normalization(c2w, self.cfg.scene_scale_factor)
        reference = c2w[:num_inputs] if name == "input_views" else c2w
        return pose_normalization(reference, self.cfg.scene_scale_factor)

    def _read(self, scene: Scene, frame: int, notes: dict[str, str], background: Color) -> _Read:
        """A frame as it joins a sample."""
        path = scene.image_path(frame)
        where = f"scene {scene.name}, frame {frame}"
        if self.fast and has_fast_lanczos():
            pixels = read_pixels(path, where, notes, background)
            crop = self._plan(pixels.shape[2], pixels.shape[1])
            return _Read(crop.pixels(pixels), crop, (pixels.shape[2], pixels.shape[1]), None)
        image = read_with_alpha(path, where, notes)
        crop = self._plan(*image.size)
        planes = to_planes(crop.image(on_background(image, background)))
        return _Read(planes, crop, image.size, crop.image(image.getchannel("A")) if image.mode == "RGBA" else None)

    def _plan(self, width: int, height: int) -> Crop:
        return plan_crop(width, height, self.image_size, self.patch_size, self.cfg.square_crop)


def _stack_masks(alphas: Sequence[Image.Image | None], size: tuple[int, int]) -> UInt8[Tensor, "v h w"] | None:
    """Masks of images of `size` (height, width), whole where an image has no alpha; None if none has."""
    if all(alpha is None for alpha in alphas):
        return None
    whole = np.full(size, 255, np.uint8)
    return torch.from_numpy(np.stack([whole if alpha is None else np.asarray(alpha) for alpha in alphas]))


def _check_cameras(scene: Scene, frames: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises InputError for a camera that cannot be meant for an image of its size (width, height)."""
    faults = camera_faults(scene.fxfycxcy[frames], scene.w2c[frames], np.array(sizes, dtype=np.float64))
    for position, fault in faults.items():
        width, height = sizes[position]
        raise InputError(f"scene {scene.name}, frame {frames[position]}, of {width}x{height} pixels: {fault}")


def _check_sizes(scene: Scene, frames: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises InputError for two images of different sizes with the same intrinsics, which are wrong for one of them."""
    if len(set(sizes)) == 1:
        return
    seen: dict[tuple[float, ...], int] = {}
    for position, frame in enumerate(frames):
        other = seen.setdefault(tuple(scene.fxfycxcy[frame]), position)
        if sizes[other] != sizes[position]:
            first, second = (f"frame {frames[n]} ({sizes[n][0]}x{sizes[n][1]} pixels)" for n in (other, position))
            raise InputError(
                f"scene {scene.name}: {first} and {second} have the same fxfycxcy, which is wrong for one of them "
                f"({printable(str(scene.source))})"
            )


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


class SampleOf(NamedTuple):
    """The number of a training sample, and that of the update which learns from it, counted from 0."""

    number: int
    update: int


def size_of_update(sizes: Sequence[ImageSize], seed: int, update: int) -> ImageSize:
    """The size of all images of an update.

    As many updates in a row as there are sizes have each of them once, in an order that is drawn anew: a pure function
    of its arguments, so that all processes have the same, also after a restart.
    """
    turn, place = divmod(update, len(sizes))
    return sizes[int(np.random.default_rng([seed, 4, turn]).permutation(len(sizes))[place])]


class TrainingDataset(Dataset[Batch]):
    """Random views of random scenes; a sample is a pure function of the seed, its number and that of its update.

    The update alone decides how many inputs its samples have and how large their images are, where that is drawn
    (`views_of_update`, `size_of_update`). Numbers run on over all epochs: epoch `number // len(scenes)` visits every
    scene once, in an order of its own.
    """

    def __init__(self, load: ViewLoader, seed: int) -> None:
        check_view_config(load.cfg)
        self.load = load
        self.seed = seed
        self.scenes = read_scene_list(Path(load.cfg.dataset_path))
        if isinstance(load.cfg.num_input_views, list):
            self._check_most_inputs()

    def __getitem__(self, which: int | SampleOf) -> Batch:
        """A sample; a scene that is too short or unreadable gives its place to another, always the same.

        Args:
            which: a number alone is that of a sample of update 0.

        Raises:
            InputError: no scene of the list is long enough, or `_SCENE_TRIES` scenes in a row are unreadable.
        """
        number, update = which if isinstance(which, tuple) else (which, 0)
        load = self._loader_of(update)
        epoch, position = divmod(number, len(self.scenes))
        rng = np.random.default_rng([self.seed, 1, number])
        background = self._background(number)
        first = int(_epoch_order(self.seed, epoch, len(self.scenes))[position])
        failures: list[str] = []
        for index in _first_then_others(first, len(self.scenes), rng):
            try:
                sample = self._sample(index, load, rng, background)
            except InputError as error:
                failures.append(str(error))
                if len(failures) == _SCENE_TRIES:
                    raise InputError(f"{_SCENE_TRIES} scenes in a row are unusable, the last: {error}") from None
                continue
            except Exception as error:
                # A loader process passes on the text of an error alone, notes included.
                error.add_note(f"sample {number}: scene {self.scenes[index]}")
                raise
            if sample is not None:
                return replace(sample, failures=failures)
        raise InputError(failures[-1] if failures else self._all_too_short())

    def _background(self, number: int) -> Color:
        """The colour behind all images of a sample; a random one has a generator of its own, so that views stay."""
        name = self.load.cfg.background
        if name != "random":
            return BACKGROUNDS[name]
        red, green, blue = np.random.default_rng([self.seed, 3, number]).integers(256, size=3).tolist()
        return red, green, blue

    def _loader_of(self, update: int) -> ViewLoader:
        """The loader of the samples of an update."""
        size = size_of_update(self.load.cfg.image_sizes or [self.load.image_size], self.seed, update)
        return replace(self.load, cfg=views_of_update(self.load.cfg, self.seed, update), image_size=size)

    def _sample(self, index: int, load: ViewLoader, rng: np.random.Generator, background: Color) -> Batch | None:
        """A sample of a scene; None if it is too short, or has lost too many frames in preprocessing."""
        scene = read_scene(self.scenes[index], load.cfg.allow_outside_images)
        try:
            selection = SAMPLERS[load.cfg.view_sampler].draw(scene, load.cfg, rng)
        except LostFramesError:
            if scene.faults:
                raise InputError(scene.notes["faults"]) from None
            return None
        return None if selection is None else load(scene, selection, background)

    def _check_most_inputs(self) -> None:
        """Read scenes until one has the frames for the most inputs of the range.

        Raises:
            InputError: none has; without this check, only the first update with so many would find out.
        """
        cfg = with_inputs(self.load.cfg, self.load.cfg.most_inputs)
        usable: dict[str, int] = {}
        for index in _epoch_order(self.seed, 0, len(self.scenes)):
            scene = self._scene_if_readable(int(index))
            if scene is None:
                continue
            if may_have_sample(scene, cfg):
                return
            usable[scene.name] = len(scene.usable_frames())
        if usable:
            longest = max(usable, key=usable.__getitem__)
            needed = SAMPLERS[cfg.view_sampler].needs(cfg)
            raise InputError(
                f"training.num_input_views is {self.load.cfg.num_input_views}, but samples of {cfg.num_input_views} "
                f"inputs need the {needed}, and the longest scene of {cfg.dataset_path}, {longest}, has "
                f"{usable[longest]}: ask for fewer"
            )

    def _scene_if_readable(self, index: int) -> Scene | None:
        try:
            return read_scene(self.scenes[index], self.load.cfg.allow_outside_images)
        except InputError:
            return None  # samples tell of it

    def _all_too_short(self) -> str:
        cfg = self.load.cfg
        return f"no scene in {cfg.dataset_path} has the {SAMPLERS[cfg.view_sampler].needs(cfg)}"


def _first_then_others(first: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """`first`, then all others in a random order that is drawn only if it is asked for."""
    yield first
    yield from (int(other) for other in rng.permutation(count) if other != first)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_scenes: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, 0, epoch]).permutation(num_scenes)


# What is to be said of a scene and its views once a run, by kind.
Remark = Callable[[Scene, Selection], dict[str, str]]


class EvaluationDataset(Dataset["Batch | Unusable"]):
    """The scenes of an evaluation index with the views that it selects.

    Args:
        remark: gives what is to be said of a scene and its views, for `Batch.notes`.
    """

    def __init__(self, load: ViewLoader, items: list[tuple[Path, Selection]], remark: Remark | None = None) -> None:
        self.load = load
        self.items = items
        self.remark = remark

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Batch | Unusable:
        """The views of a scene, or why they cannot be had: a scene or frame that is missing or unreadable."""
        path, selection = self.items[index]
        try:
            scene = read_scene(path, self.load.cfg.allow_outside_images)
            batch = self.load(scene, selection)
            remarks = self.remark(scene, selection) if self.remark else {}
        except InputError as error:
            return Unusable(path.stem, str(error))
        except Exception as error:
            error.add_note(f"scene {path}")
            raise
        return replace(batch, notes=batch.notes | remarks)
