"""A scene with chosen inputs, encoded: renders any camera, knows the truth where there is a frame."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from data.dataset import Batch, CameraTransform, ViewLoader
from data.scene import Scene, read_scene
from data.views import Selection, ViewConfig, check_inputs, spread_inputs
from evaluation.metrics import psnr
from evaluation.renderer import Renderer
from geometry.cameras import Cameras, Views
from geometry.orbit import Orbit, find_orbit
from model import Encoded
from utils.errors import InputError
from utils.media import to_uint8
from utils.text import shown
from viewer.geometry import with_size

# Inputs that a scene may have here: what a client asks for takes memory.
MAX_INPUTS = 32
# Encoded scenes that are kept for whoever comes back to them.
_KEPT = 3
# Seconds a picture beyond which smaller ones are worth a try while the camera moves.
_SLOW = 0.05
# How like the full picture, in dB, a smaller one must be.
_LIKE = 25.0

# Hears which share of the work is done, and what is done next.
Progress = Callable[[float, str], None]
# A camera [] as an image.
Render = Callable[[Cameras], UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Session:
    """An encoded scene.

    Attributes:
        inputs: frame numbers of the inputs.
        views: the inputs [v], uint8.
        transform: what turns cameras of the scene's file into those of the model.
        encoded: the scene [1] as the model keeps it.
        render: the picture of a camera [] at its full size.
        preview: a smaller and faster one; None where the model is fast enough, or paints other sizes badly.
        orbit: what the cameras of all frames stand around and look at, as around an object, in the model's frame; None
            where they do not.
    """

    scene: Scene
    inputs: tuple[int, ...]
    views: Views
    transform: CameraTransform
    encoded: Encoded
    render: Render
    preview: Render | None
    orbit: Orbit | None

    @property
    def lens(self) -> Cameras:
        """The camera [] of the first input, through whose lens the scene is seen."""
        return self.views.cameras[0]

    def camera_of(self, frame: int) -> Cameras:
        """The camera [] of a frame as it stands in the scene's file; no image of it is read."""
        w2c = self.scene.w2c[frame : frame + 1]
        return self.transform(w2c, self.scene.fxfycxcy[frame : frame + 1])[0]


class Sessions:
    """Opens scenes, one after another: reads and encodes them, and keeps the last ones.

    To be used by the one thread that runs the model.
    """

    def __init__(self, renderer: Renderer, load: ViewLoader) -> None:
        self.renderer = renderer
        self.load = load
        self._kept: OrderedDict[tuple[Path, tuple[int, ...]], Session] = OrderedDict()

    def open(self, path: Path, frames: Sequence[int] = (), progress: Progress = lambda share, what: None) -> Session:
        """The scene of a metadata file, encoded from `frames`, or from some that are spread over it.

        Raises:
            InputError: the scene or one of the frames cannot be used.
        """
        scene = read_scene(path, self.load.cfg.allow_outside_images)
        inputs = chosen_inputs(scene, frames) if frames else default_inputs(scene, self.load.cfg)
        session = self._kept.pop((path, inputs), None) or self._encode(scene, inputs, progress)
        self._kept[path, inputs] = session
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return session

    def truth(self, session: Session, frame: int) -> Views:
        """The frame [] of the scene as the model sees it, uint8.

        Raises:
            InputError: it cannot be used, or is of another size than the inputs.
        """
        own = self.load(session.scene, Selection([frame], [])).views[0]
        if own.images.shape != session.views.images.shape[1:]:
            raise InputError(f"scene {session.scene.name}, frame {frame}: it is of another size than the inputs")
        camera = session.camera_of(frame)
        # Intrinsics by the frame's own crop, as an evaluation has them.
        return Views(own.images, Cameras(camera.c2w, own.cameras.fxfycxcy, camera.height, camera.width))

    def _encode(self, scene: Scene, inputs: tuple[int, ...], progress: Progress) -> Session:
        progress(0.1, f"reading {len(inputs)} frames")
        # All frames that are read are inputs: they alone set frame and scale, whatever is looked at.
        batch = self.load(scene, Selection(list(inputs), []))
        progress(0.4, "encoding")
        encoded = self.renderer.encode(_as_scenes(batch, self.renderer.device))
        progress(0.7, "preparing to render")
        lens = batch.views.cameras[0]
        render = recorded(self.renderer, encoded, lens)
        preview = find_preview(self.renderer, encoded, lens, render)
        progress(1.0, "ready")
        transform = batch.camera_transforms[0]
        orbit = find_orbit(_poses(scene, transform))
        return Session(scene, inputs, batch.views, transform, encoded, render, preview, orbit)


def _poses(scene: Scene, transform: CameraTransform) -> Float[np.ndarray, "n 4 4"]:
    """c2w of all frames that can be used, in the model's frame."""
    usable = scene.usable_frames()
    return transform(scene.w2c[usable], scene.fxfycxcy[usable]).c2w.double().numpy()


def _as_scenes(batch: Batch, device: torch.device) -> Views:
    """The views of a sample as those of a batch of one scene."""
    return batch.views[None].to(device).to_float()


def recorded(renderer: Renderer, encoded: Encoded, like: Cameras) -> Render:
    """A function that renders single cameras [] of the size of `like` []."""
    play = renderer.record(encoded, like[None, None].to(renderer.device))

    def render(camera: Cameras) -> UInt8[np.ndarray, "h w 3"]:
        return to_uint8(play(camera[None, None].to(renderer.device)))[0, 0]

    return render


def find_preview(renderer: Renderer, encoded: Encoded, lens: Cameras, render: Render) -> Render | None:
    """A function that renders at half the size, where that is of use.

    A model has learned one size. Whether it paints the half as well is tried, on the camera `lens` [].
    """
    patch = renderer.model.cfg.image_tokenizer.patch_size
    if lens.height % (2 * patch) or lens.width % (2 * patch) or _seconds(render, lens) < _SLOW:
        return None
    half = with_size(lens, lens.height // 2, lens.width // 2)
    small = recorded(renderer, encoded, half)
    full = _as_image(render(lens))
    if psnr(_as_image(small(half)), F.avg_pool2d(full, 2)).item() < _LIKE:
        return None
    return lambda camera: small(with_size(camera, half.height, half.width))


def _seconds(render: Render, camera: Cameras) -> float:
    """How long a picture takes once everything is warm."""
    render(camera)
    start = time.perf_counter()
    render(camera)
    return time.perf_counter() - start


def _as_image(pixels: UInt8[np.ndarray, "h w 3"]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def default_inputs(scene: Scene, cfg: ViewConfig) -> tuple[int, ...]:
    """As many inputs as a training sample has, spread over the first frames of the clip that such a sample may span.

    Raises:
        InputError: the scene has no frame that can be used.
    """
    among = usable_between(scene, 0, min(len(scene) - 1, cfg.view_selector.max_frame_dist))
    return tuple(spread_inputs(scene, min(cfg.most_inputs, len(among), MAX_INPUTS), among))


def inputs_between(scene: Scene, count: int, first: int, last: int) -> tuple[int, ...]:
    """`count` usable frames, or as many as there are, from `first` to `last`, these two among them.

    Raises:
        InputError: there is none.
    """
    among = usable_between(scene, first, last)
    return tuple(spread_inputs(scene, min(count, len(among), MAX_INPUTS), among, ends=True))


def usable_between(scene: Scene, first: int, last: int) -> list[int]:
    """The frames from `first` to `last` that can be used.

    Raises:
        InputError: there is none.
    """
    usable = [frame for frame in scene.usable_frames() if first <= frame <= last]
    if not usable:
        raise InputError(f"scene {scene.name}: none of the frames {first} to {last} can be used: name others")
    return usable


def chosen_inputs(scene: Scene, frames: Sequence[int]) -> tuple[int, ...]:
    """The frames as inputs.

    Raises:
        InputError: a frame cannot be used or is named twice, or there are too many.
    """
    if len(frames) > MAX_INPUTS:
        raise InputError(f"{len(frames)} inputs are more than the {MAX_INPUTS} that the viewer takes: name fewer")
    check_inputs(scene, frames)
    return tuple(frames)


def parse_frames(text: str) -> list[int]:
    """Frame numbers as a person writes them: `0, 15 30`.

    Raises:
        InputError: something else stands there.
    """
    words = text[:1000].replace(",", " ").strip("[] ").split()
    if not words or not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
        raise InputError(f"the frames are {shown(text)}: write numbers, such as 0, 30")
    return [int(word) for word in words]
