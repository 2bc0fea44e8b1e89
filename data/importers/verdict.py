"""Whether a scene's cameras fit its images, and if not, how they were misread.

    verdict = check_scene(read_scene(path))
    print(verdict.line())

Points that two frames both show must lie on each other's epipolar lines, in front of both cameras. That is measured for
the cameras as given and for the usual misreadings of cameras (`geometry/misreadings.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data.importers.images import image_size
from data.importers.matched_cameras import (
    MatchedCameras,
    baseline_figures,
    baseline_warnings,
    lens_figures,
    lens_warnings,
    matched_cameras,
    median_error,
    pair_error,
)
from data.matching import PairMatches, SceneMatches, match_scene
from data.scene import Scene
from geometry.camera_check import camera_faults
from geometry.misreadings import MISREADINGS, corrected_cameras
from geometry.orbit import find_orbit
from utils.text import counted, printable

State = Literal["good", "bad", "cannot tell"]
AS_GIVEN = "as given"

# Shares of the images' longer side: errors that no exact cameras have, and errors that spoil a picture of 256 pixels.
_NO_ERROR = 2e-4
_IMPRECISE = 2e-3
_WRONG = 5e-3
# How many times smaller the error of another reading must be for the cameras to be refused.
_CLEARLY_SMALLER = 2.0
# Matches, over all pairs, that a verdict needs.
_FEWEST_MATCHES = 50


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of a scene's cameras.

    Attributes:
        scene: its name.
        state: whether the cameras fit the images.
        reason: why, in words.
        misreading: the misreading that explains the images, a key of `MISREADINGS`, if the cameras as given do not.
        errors: median symmetric epipolar distance in pixels of the stored image, to what lies in front of the cameras,
            by reading; infinite where nothing is in front.
        figures: field of view (degrees), aspect and more of the cameras, by name.
        warnings: what is unusual about the cameras, a sentence each.
        matches: what the verdict rests on.
        cameras: those of the frames with matches, as given.
    """

    scene: str
    state: State
    reason: str
    misreading: str | None = None
    errors: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    matches: SceneMatches | None = None
    cameras: MatchedCameras | None = None

    def line(self) -> str:
        """The verdict in one line."""
        text = f"{self.scene}: {self.state}: {self.reason}"
        return printable("; ".join([text, *self.warnings]))

    def as_json(self) -> dict[str, Any]:
        """All but the matches, as JSON values; what is not finite becomes None."""
        return {
            "scene": self.scene,
            "state": self.state,
            "reason": self.reason,
            "misreading": self.misreading,
            "errors": {name: _finite(value) for name, value in self.errors.items()},
            "figures": {name: _finite(value) for name, value in self.figures.items()},
            "warnings": self.warnings,
            "pairs": [list(pair.frames) for pair in self._pairs()],
            "matches": sum(len(pair.first) for pair in self._pairs()),
        }

    def _pairs(self) -> list[PairMatches]:
        return [] if self.matches is None else self.matches.pairs


def _finite(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def check_scene(scene: Scene) -> Verdict:
    """Judge the cameras of a scene by matches between at most `data.matching.MOST_PAIRS` pairs of its frames.

    Frames that cannot be used are left out, and the warnings tell of them; nothing is raised for them.
    """
    usable = [frame for frame, image in enumerate(scene.image_paths) if image is not None]
    implausible = camera_faults(scene.fxfycxcy[usable], scene.w2c[usable])
    faults = scene.faults | {usable[number]: fault for number, fault in implausible.items()}
    sound = [frame for frame in usable if frame not in faults]
    if not sound:
        return Verdict(scene.name, "bad", _first_fault(faults) if faults else "no frame of it can be used")
    return judge_cameras(scene, match_scene(scene, sound), faults)


def _first_fault(faults: dict[int, str]) -> str:
    return f"frame {min(faults)}: {faults[min(faults)]}"


def judge_cameras(scene: Scene, matches: SceneMatches, faults: dict[int, str]) -> Verdict:
    """Judge the cameras of a scene by matches of its frames.

    Args:
        faults: why frames that are not matched cannot be used, for the warnings.
    """
    warnings = _warn_of_faults(scene, faults | matches.unread)
    count = sum(len(pair.first) for pair in matches.pairs)
    if count < _FEWEST_MATCHES:
        return Verdict(scene.name, "cannot tell", _too_few(matches, count), warnings=warnings, matches=matches)
    cameras = matched_cameras(scene, matches)
    names = corrected_cameras(cameras.fxfycxcy, cameras.w2c, cameras.sizes)
    errors = {name or AS_GIVEN: median_error(cameras.read_as(name), matches) for name in (None, *names)}
    longest = float(np.median(cameras.sizes.max(1)))
    state, reason, misreading = _decide(errors, longest, _lens_fault(cameras))
    if state == "good":
        warnings += [*_warn_of_pairs(cameras, matches, longest), *_warn_of_rivals(errors, longest)]
    explained = state == "good" or misreading is not None
    figures: dict[str, float] = {}
    if explained:
        meant = cameras.read_as(misreading)
        figures = lens_figures(meant) | baseline_figures(meant, matches)
        warnings += [*lens_warnings(figures), *baseline_warnings(figures)]
    return Verdict(scene.name, state, reason, misreading, errors, figures, warnings, matches, cameras)


def _warn_of_faults(scene: Scene, faults: dict[int, str]) -> list[str]:
    if not faults:
        return []
    return [f"{len(faults)} of {counted(len(scene), 'frame')} cannot be used ({_first_fault(faults)})"]


def _too_few(matches: SceneMatches, count: int) -> str:
    if not matches.tried:
        return "it has one usable frame, and two are needed"
    if matches.still:
        return f"the images hardly differ in {matches.still} of {counted(matches.tried, 'pair')}: move the camera"
    return f"{counted(matches.tried, 'pair')} of images have {count} points in common, {_FEWEST_MATCHES} are needed"


def _lens_fault(cameras: MatchedCameras) -> str | None:
    faults = camera_faults(cameras.fxfycxcy, cameras.w2c, cameras.sizes)
    return _first_fault({cameras.frames[number]: fault for number, fault in faults.items()}) if faults else None


def _decide(errors: dict[str, float], longest: float, fault: str | None) -> tuple[State, str, str | None]:
    """State, reason and the misreading that explains the images."""
    given = errors[AS_GIVEN]
    best = min(errors, key=errors.__getitem__)
    if given > _CLEARLY_SMALLER * max(errors[best], _NO_ERROR * longest) and errors[best] <= _WRONG * longest:
        reason = f"{best}, it seems: {MISREADINGS[best].advice} (error {_pixels(given)}, then {_pixels(errors[best])})"
        return "bad", reason, best
    if fault is not None:
        return "bad", fault, None
    if given > _WRONG * longest:
        return "bad", f"the cameras do not fit the images, nor does a usual misreading (error {_pixels(given)})", None
    return "good", f"the cameras fit the images (error {_pixels(given)})", None


def _pixels(error: float) -> str:
    return f"{error:.2f} pixels" if np.isfinite(error) else "all points are behind a camera"


def _warn_of_rivals(errors: dict[str, float], longest: float) -> Iterator[str]:
    """Readings that the images do not tell from the cameras as given."""
    enough = _CLEARLY_SMALLER * max(errors[AS_GIVEN], _NO_ERROR * longest)
    rivals = [name for name, error in errors.items() if name != AS_GIVEN and error <= enough]
    if rivals:
        yield f"they would fit as well if this were wrong with them: {', '.join(rivals)}"


def _warn_of_pairs(cameras: MatchedCameras, matches: SceneMatches, longest: float) -> Iterator[str]:
    errors = {pair.frames: pair_error(cameras, pair) for pair in matches.pairs}
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > _WRONG * longest:
        first, second = worst
        yield f"frames {first} and {second} do not fit each other (error {_pixels(errors[worst])})"
    elif np.median(list(errors.values())) > _IMPRECISE * longest:
        yield "the cameras are imprecise"


def remarks_on_inputs(scene: Scene, inputs: Sequence[int], shape: tuple[int, int] | None) -> dict[str, str]:
    """What of a scene's inputs is cut away, or unlike what weights have seen: a sentence each, by kind.

    Args:
        shape: the model sees the middle of the images, as high to as wide as these two numbers; None: all of them.

    Raises:
        InputError: an input cannot be read.
    """
    sizes = np.array([image_size(scene.image_path(frame)) for frame in inputs], np.float64)
    seen = _middle(sizes, *shape) if shape else sizes
    cameras = MatchedCameras(list(inputs), scene.fxfycxcy[inputs], scene.w2c[inputs], seen)
    matches = match_scene(scene, inputs)
    remarks = {
        "crop": _remark_on_crop(sizes, seen, shape),
        "lens": "; ".join(lens_warnings(lens_figures(cameras))),
        "baseline": _remark_on_baseline(cameras, matches, float(sizes.max())),
    }
    return {kind: f"scene {scene.name}: {remark}" for kind, remark in remarks.items() if remark}


def _middle(sizes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest part of images (width, height) [n 2] that is as high to as wide as `height` to `width`."""
    shape = np.array([width, height])
    return shape * (sizes / shape).min(1, keepdims=True)


def _remark_on_crop(sizes: np.ndarray, seen: np.ndarray, shape: tuple[int, int] | None) -> str:
    cut = np.flatnonzero(np.abs(sizes - seen).max(1) >= 1)
    if not len(cut) or shape is None:
        return ""
    width, height = sizes[cut[0]]
    image = f"of an image of {width:.0f}x{height:.0f} pixels the model sees"
    if shape[0] == shape[1]:
        return f"{image} the square in the middle; training.square_crop=false shows it the whole image"
    across, down = seen[cut[0]]
    return f"{image} {across:.0f}x{down:.0f} in the middle, the shape that model.image_tokenizer.image_size says"


def _remark_on_baseline(cameras: MatchedCameras, matches: SceneMatches, longest: float) -> str:
    count = sum(len(pair.first) for pair in matches.pairs)
    if count < _FEWEST_MATCHES:
        return _remark_on_few(matches, find_orbit(np.linalg.inv(cameras.w2c)) is not None)
    error = median_error(cameras, matches)
    if error > _WRONG * longest:
        return f"its cameras do not fit its images (error {_pixels(error)}): python -m data.importers.check says more"
    return "; ".join(baseline_warnings(baseline_figures(cameras, matches)))


def _remark_on_few(matches: SceneMatches, around: bool) -> str:
    """What is to be said of inputs with few matches, whose cameras may stand around one thing."""
    if matches.tried == 0:
        return ""
    if matches.still:
        return "the inputs hardly differ: other frames (inference.input_frames) show more of the scene"
    few = "hardly a point was found in two of the inputs"
    if around:
        return f"{few}, as is usual around an object: more inputs (training.num_input_views) leave less to guess"
    return (
        f"{few}: nearer frames (inference.input_frames) or more of them (training.num_input_views) show better how far "
        "away things are"
    )
