"""Which frames of a scene become inputs and targets: selections, and the samplers that draw them for training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from data.scene import Scene
from geometry.spreading import farthest_first
from utils.errors import InputError
from utils.fields import bounded, one_of
from utils.sections import check_fields
from utils.text import counted, printable

# Draws of frames before a clip with lost frames is given up.
_TRIES = 20
# Characters of a value that a message shows.
_SHOWN = 80
# Numbers of inputs that the published `dynamic_input_view_num` draws from.
_DYNAMIC = range(2, 5)

AnyViewConfig = TypeVar("AnyViewConfig", bound="ViewConfig")


@dataclass(frozen=True)
class Selection:
    """Frame numbers of one scene: the inputs (`context`) and the targets, which may be inputs as well.

    Attributes:
        context: the inputs.
        target: the targets.
        drawn: all frames of a training sample in the order in which they are read, the inputs first. Those that are
            neither input nor target are read, too, since their cameras help to set the sample's frame and scale.
            None: the inputs, then the targets.
    """

    context: list[int]
    target: list[int]
    drawn: list[int] | None = None

    @property
    def frames(self) -> list[int]:
        """The frames to read, the inputs first."""
        return [*self.context, *self.target] if self.drawn is None else self.drawn

    def target_positions(self) -> Int[np.ndarray, " t"]:
        """Where the targets stand among `frames`."""
        # A target that is an input may be read twice, and is the later one then.
        positions = {frame: position for position, frame in enumerate(self.frames)}
        return np.array([positions[frame] for frame in self.target], dtype=np.int64)


@dataclass(frozen=True)
class ViewSelectorConfig:
    """Bounds, in frames, on the distance of the first to the last view of a sample."""

    min_frame_dist: int = bounded(25, 1, 1_000_000)
    max_frame_dist: int = bounded(192, 1, 1_000_000)


@dataclass(frozen=True)
class ViewConfig:
    """Which views a training sample has; part of what a sample is.

    `num_input_views` is a number, or the fewest and the most, [2, 8] say: then the samples of each update have a number
    of inputs that is drawn evenly. `num_views` are those of a sample with the most inputs; one with fewer has as many
    views besides. `dynamic_input_view_num`, a published key, draws 2 to 4 inputs, and leaves `num_views` as it is.
    `view_sampler` names a row of `SAMPLERS`. With `target_has_input` the targets are drawn from all views, else they
    are the last ones.
    """

    num_views: int = bounded(8, 1, 1000)
    num_input_views: int | list[int] = bounded(2, 1, 1000)
    num_target_views: int = bounded(6, 1, 1000)
    target_has_input: bool = True
    view_sampler: str = one_of("window", lambda: SAMPLERS)
    view_selector: ViewSelectorConfig = field(default_factory=ViewSelectorConfig)
    dynamic_input_view_num: bool = False

    @property
    def input_counts(self) -> range:
        """The numbers of inputs that a sample may have."""
        if self.dynamic_input_view_num:
            return _DYNAMIC
        given = self.num_input_views
        fewest, most = given if isinstance(given, list) else (given, given)
        return range(fewest, most + 1)

    @property
    def most_inputs(self) -> int:
        """The number of inputs, the largest if it is drawn."""
        return self.input_counts[-1]

    def views_with(self, num_inputs: int) -> int:
        """The number of views of a sample with so many inputs."""
        return self.num_views if self.dynamic_input_view_num else self.num_views - self.most_inputs + num_inputs


def views_of_update(cfg: AnyViewConfig, seed: int, update: int) -> AnyViewConfig:
    """What views the samples of an update have: as `cfg` says, with one number of inputs.

    A pure function of its arguments, so that all processes have the same, also after a restart.
    """
    if isinstance(cfg.num_input_views, int) and not cfg.dynamic_input_view_num:
        return cfg
    counts = cfg.input_counts
    count = int(np.random.default_rng([seed, 2, update]).integers(counts[0], counts[-1] + 1))
    return with_inputs(cfg, count)


def with_inputs(cfg: AnyViewConfig, count: int) -> AnyViewConfig:
    """What views a sample with so many inputs has."""
    return replace(cfg, num_views=cfg.views_with(count), num_input_views=count, dynamic_input_view_num=False)


class LostFramesError(InputError):
    """A scene of enough frames, too many of which cannot be used."""


def sample_window(scene: Scene, cfg: ViewConfig, rng: np.random.Generator) -> Selection | None:
    """Frames of a random window of the clip (`choose_window`), its ends the first two inputs.

    Raises:
        LostFramesError: every window that was drawn has frames that cannot be used.
    """
    frames = draw_usable(lambda: choose_window(len(scene), cfg.num_views, cfg.view_selector, rng), scene.fault)
    return None if frames is None else _split(frames, cfg, rng)


def sample_spread(scene: Scene, cfg: ViewConfig, rng: np.random.Generator) -> Selection | None:
    """Inputs spread evenly over a random window of the clip, in their order; the other views are drawn from the rest.

    Raises:
        LostFramesError: every window that was drawn has frames that cannot be used.
    """
    frames = draw_usable(lambda: choose_spread(len(scene), cfg, rng), scene.fault)
    return None if frames is None else _split(frames, cfg, rng)


def choose_spread(num_frames: int, cfg: ViewConfig, rng: np.random.Generator) -> list[int] | None:
    """Inputs spread over a random window (`choose_window`), then frames of the window that are none.

    None: the clip is too short.
    """
    window = choose_window(num_frames, cfg.num_views, cfg.view_selector, rng)
    if window is None:
        return None
    first, last = window[:2]
    inputs = spread_over(first, last, cfg.most_inputs)
    rest = np.setdiff1d(np.arange(first, last + 1), inputs)
    return [*inputs, *rng.choice(rest, cfg.num_views - len(inputs), replace=False).tolist()]


def spread_over(first: int, last: int, count: int) -> list[int]:
    """`count` numbers from `first` to `last`, these two among them, as evenly as can be; one alone is `first`."""
    return np.linspace(first, last, count).round().astype(int).tolist()


def sample_any(scene: Scene, cfg: ViewConfig, rng: np.random.Generator) -> Selection | None:
    """Frames drawn from the whole clip, in random order.

    Raises:
        LostFramesError: too few of the scene's frames can be used.
    """
    usable = scene.usable_frames()
    if len(scene) < cfg.num_views:
        return None
    if len(usable) < cfg.num_views:
        raise LostFramesError(f"scene {scene.name} has {len(usable)} usable frames; num_views is {cfg.num_views}")
    return _split(rng.choice(usable, cfg.num_views, replace=False).tolist(), cfg, rng)


def check_window(cfg: ViewConfig) -> None:
    """Raises InputError, naming the key, for bounds within which there is no window."""
    shortest = cfg.view_selector.min_frame_dist
    longest = cfg.view_selector.max_frame_dist
    if not 1 <= shortest <= longest or longest < cfg.num_views - 1:
        raise InputError(
            f"view_selector: min_frame_dist ({shortest}) must be from 1 to max_frame_dist ({longest}), "
            f"which must be at least num_views - 1 ({cfg.num_views - 1})"
        )


def frames_of_window(cfg: ViewConfig) -> str:
    """The frames that a scene needs for its shortest window, for messages."""
    shortest = cfg.view_selector.min_frame_dist
    return (
        f"{max(shortest, cfg.num_views - 1) + 1} usable frames that training.view_selector.min_frame_dist={shortest} "
        f"and training.num_views={cfg.num_views} ask for"
    )


def frames_of_views(cfg: ViewConfig) -> str:
    """The frames that a scene needs to have as many as there are views, for messages."""
    return f"{cfg.num_views} usable frames that training.num_views={cfg.num_views} asks for"


def check_nothing(_cfg: ViewConfig) -> None:
    """The check of a sampler that draws by every configuration."""


@dataclass(frozen=True)
class ViewSampler:
    """A way of choosing the views of training samples.

    Attributes:
        draw: a selection, a function of the scene, the configuration, in which `num_input_views` is a number, and the
            generator; None: too few frames.
        check: raises InputError, naming the key, for a configuration by which it cannot draw.
        needs: what scenes must have for a sample, for messages.
    """

    draw: Callable[[Scene, ViewConfig, np.random.Generator], Selection | None]
    check: Callable[[ViewConfig], None] = check_nothing
    needs: Callable[[ViewConfig], str] = frames_of_views


# By the name that `training.view_sampler` holds.
SAMPLERS: dict[str, ViewSampler] = {
    "window": ViewSampler(sample_window, check_window, frames_of_window),
    "spread": ViewSampler(sample_spread, check_window, frames_of_window),
    "any": ViewSampler(sample_any),
}


def may_have_sample(scene: Scene, cfg: ViewConfig) -> bool:
    """Whether a training sample might be drawn from a scene; `cfg.num_input_views` is a number."""
    try:
        return SAMPLERS[cfg.view_sampler].draw(scene, cfg, np.random.default_rng(0)) is not None
    except LostFramesError:
        # Other draws may avoid the lost frames.
        return len(scene.usable_frames()) >= cfg.num_views


def spread_inputs(scene: Scene, count: int, among: Sequence[int] | None = None, ends: bool = False) -> list[int]:
    """Usable frames [count] whose cameras lie apart, in their order.

    The first is the one farthest from the middle of all and from the first one's direction, each further one that
    farthest from those before it. Distances are those of camera centres as shares of the scene's extent, plus angles
    between viewing directions as shares of half a turn.

    Args:
        among: usable frames to choose from; None: all.
        ends: the first and the last of these are chosen before all others.

    Raises:
        InputError: there are fewer usable frames.
    """
    usable = scene.usable_frames() if among is None else among
    if len(usable) < count:
        raise InputError(f"scene {scene.name} has {len(usable)} usable frames; {count} inputs are asked for")
    c2w = np.linalg.inv(scene.w2c[usable])
    centres = c2w[:, :3, 3]
    directions = c2w[:, :3, 2]
    extent = max(float(np.linalg.norm(centres - centres.mean(0), axis=1).max()), 1e-12)

    def distances(centre: np.ndarray, direction: np.ndarray) -> np.ndarray:
        angles = np.arccos(np.clip(directions @ direction / np.linalg.norm(direction), -1, 1))
        return np.linalg.norm(centres - centre, axis=1) / extent + angles / np.pi

    first = [0, len(usable) - 1] if ends else [int(distances(centres.mean(0), directions[0]).argmax())]
    chosen = farthest_first(lambda one: distances(centres[one], directions[one]), first[:count], count)
    return sorted(usable[position] for position in chosen)


def check_inputs(scene: Scene, frames: Sequence[int]) -> None:
    """Check frames that a person named as inputs.

    Raises:
        InputError: one cannot be used, or is named twice.
    """
    for position, frame in enumerate(frames):
        scene.image_path(frame)
        if frame in frames[:position]:
            raise InputError(f"scene {scene.name}: input frame {frame} is named twice: name it once")


def select_own(scene: Scene, count: int, inputs: Sequence[int] = ()) -> Selection:
    """Inputs of a scene for which there is no index, and all its other usable frames as targets.

    Args:
        count: how many inputs are spread over the cameras.
        inputs: frames that are inputs instead, in this order.

    Raises:
        InputError: a frame cannot be used, is named twice, or the scene has too few.
    """
    check_inputs(scene, inputs)
    context = list(inputs) or spread_inputs(scene, count)
    return Selection(context, [frame for frame in scene.usable_frames() if frame not in context])


def check_view_config(cfg: ViewConfig) -> None:
    """Raises InputError, naming the key, for views that no training sample can have."""
    check_fields(cfg)
    check_input_counts(cfg)
    fewest_views = cfg.views_with(cfg.input_counts[0])
    if cfg.most_inputs > cfg.num_views or fewest_views < 2:
        raise InputError(
            f"num_input_views ({_inputs_named(cfg)}) must be from 1 to num_views ({cfg.num_views}), "
            "and leave every sample at least 2 views"
        )
    free = fewest_views if cfg.target_has_input else cfg.num_views - cfg.most_inputs
    if cfg.num_target_views > free:
        inputs = cfg.input_counts[0] if cfg.target_has_input else cfg.most_inputs
        raise InputError(
            f"num_target_views is {cfg.num_target_views}, but num_views ({cfg.num_views}) leaves {free} for samples of "
            f"{counted(inputs, 'input')}: ask for fewer, or for num_views={cfg.num_views + cfg.num_target_views - free}"
        )
    SAMPLERS[cfg.view_sampler].check(cfg)


def check_input_counts(cfg: ViewConfig) -> None:
    """Raises InputError, naming the key, for a range of numbers of inputs that is none."""
    given = cfg.num_input_views
    if isinstance(given, list) and (len(given) != 2 or given[0] > given[1]):
        named = printable(str(given), _SHOWN)
        raise InputError(f"num_input_views is {named}; a range is the fewest and the most, such as [2, 8]")
    if isinstance(given, list) and cfg.dynamic_input_view_num:
        raise InputError(
            f"dynamic_input_view_num draws 2 to 4 inputs, num_input_views={given} others: leave one of them out"
        )


def _inputs_named(cfg: ViewConfig) -> str:
    """The number of inputs or its range, for messages."""
    return "2 to 4, by dynamic_input_view_num" if cfg.dynamic_input_view_num else str(cfg.num_input_views)


def draw_usable(draw: Callable[[], Sequence[int] | None], fault: Callable[[int], str | None]) -> list[int] | None:
    """The first of several draws of frames of which all can be used; None if `draw` gives None.

    Args:
        fault: why a frame cannot be used; None if it can.

    Raises:
        LostFramesError: every draw has a frame that cannot be used; the message says why one cannot.
    """
    found = None
    for _ in range(_TRIES):
        frames = draw()
        if frames is None:
            return None
        found = next(filter(None, map(fault, frames)), None)
        if found is None:
            return list(frames)
    raise LostFramesError(f"{found}; each of {_TRIES} windows of frames holds such a frame")


def choose_window(
    num_frames: int, num_views: int, cfg: ViewSelectorConfig, rng: np.random.Generator
) -> list[int] | None:
    """`num_views` frames: both ends of a random window, then frames drawn strictly between them.

    The frame distance is uniform over what the clip allows, the start uniform too. None: the clip is too short.
    """
    shortest = max(cfg.min_frame_dist, num_views - 1)
    longest = min(cfg.max_frame_dist, num_frames - 1)
    if longest < shortest:
        return None
    distance = int(rng.integers(shortest, longest + 1))
    start = int(rng.integers(0, num_frames - distance))
    between = start + 1 + rng.choice(distance - 1, size=num_views - 2, replace=False)
    return [start, start + distance, *between.tolist()]


def choose_targets(
    num_views: int, num_targets: int, target_has_input: bool, rng: np.random.Generator
) -> Int[np.ndarray, " t"]:
    """Positions of the targets among the views: drawn from all of them, or the last ones in order."""
    if target_has_input:
        return rng.choice(num_views, size=num_targets, replace=False)
    return np.arange(num_views - num_targets, num_views)


def _split(frames: list[int], cfg: ViewConfig, rng: np.random.Generator) -> Selection:
    """Inputs and targets among frames that were drawn."""
    targets = choose_targets(cfg.num_views, cfg.num_target_views, cfg.target_has_input, rng)
    return Selection(frames[: cfg.most_inputs], [frames[position] for position in targets], frames)
