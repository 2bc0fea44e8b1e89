"""Whether a scene's cameras fit its images, and if not, how they were misread.

    verdict = check_scene(read_scene(path))
    print(verdict.line())

Points that two frames both show must lie on each other's epipolar lines, in front of both cameras. That is measured for
the cameras as given and for the usual misreadings of cameras (`geometry/misreadings.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from data.matching import PairMatches, SceneMatches, match_scene
from data.scene import Scene
from geometry.camera_check import camera_faults
from geometry.epipolar import CameraPair, relative_pose, symmetric_distance_in_front, triangulated_depths
from geometry.misreadings import MISREADINGS, corrected_cameras
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
# Degrees: lenses of 18 to 49 mm in 35 mm terms. A focal length outside that was most likely guessed, and guessed wrong.
_FIELDS_OF_VIEW = (40.0, 90.0)
# Degrees between the rays from the two farthest cameras: from less no mapping of photographs starts.
_SMALLEST_ANGLE = 2.0
# Degrees: a camera that is turned further about its axis is nearer to lying on its side than to standing.
_LARGEST_ROLL = 45.0


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
    cameras: "MatchedCameras | None" = None

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


@dataclass(frozen=True)
class MatchedCameras:
    """The cameras [n] of those frames of a scene that have matches, and the images' sizes."""

    frames: list[int]
    fxfycxcy: Float[np.ndarray, "n 4"]
    w2c: Float[np.ndarray, "n 4 4"]
    sizes: Float[np.ndarray, "n 2"]

    def read_as(self, misreading: str | None) -> "MatchedCameras":
        """The cameras that were meant if these are a misreading."""
        if misreading is None:
            return self
        fxfycxcy, w2c = MISREADINGS[misreading].correct(self.fxfycxcy, self.w2c, self.sizes)
        return replace(self, fxfycxcy=fxfycxcy, w2c=w2c)

    def of_pair(self, pair: PairMatches) -> CameraPair:
        """The cameras of two frames."""
        first, second = (self.frames.index(frame) for frame in pair.frames)
        relative = relative_pose(self.w2c[first], self.w2c[second])
        return CameraPair(relative, self.fxfycxcy[first], self.fxfycxcy[second])


def matched_cameras(scene: Scene, matches: SceneMatches) -> MatchedCameras:
    """The cameras of a scene that can be judged by matches."""
    sizes = matches.sizes()
    frames = sorted(sizes)
    return MatchedCameras(
        frames, scene.fxfycxcy[frames], scene.w2c[frames], np.array([sizes[frame] for frame in frames], np.float64)
    )


def pair_error(cameras: MatchedCameras, pair: PairMatches) -> float:
    """Median of `symmetric_distance_in_front` over the matches of a pair, in pixels of the stored images."""
    return float(np.median(symmetric_distance_in_front(cameras.of_pair(pair), pair.first, pair.second)))


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
    errors = {name or AS_GIVEN: _error(cameras.read_as(name), matches) for name in (None, *names)}
    longest = float(np.median(cameras.sizes.max(1)))
    state, reason, misreading = _decide(errors, longest, _lens_fault(cameras))
    if state == "good":
        warnings += [*_warn_of_pairs(cameras, matches, longest), *_warn_of_rivals(errors, longest)]
    explained = state == "good" or misreading is not None
    figures = _figures(cameras.read_as(misreading), matches) if explained else {}
    warnings += _warn_of_figures(figures)
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


def _error(cameras: MatchedCameras, matches: SceneMatches) -> float:
    return float(np.median([pair_error(cameras, pair) for pair in matches.pairs]))


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


def _figures(cameras: MatchedCameras, matches: SceneMatches) -> dict[str, float]:
    """Figures of the cameras; depths are those of triangulated matches."""
    view = np.degrees(2 * np.arctan(cameras.sizes / (2 * cameras.fxfycxcy[:, :2])))
    depth = _median_depth(cameras, matches)
    c2w = np.linalg.inv(cameras.w2c)
    baseline = float(np.linalg.norm(c2w[:, None, :3, 3] - c2w[None, :, :3, 3], axis=-1).max())
    return {
        "field_of_view_x": float(np.median(view[:, 0])),
        "field_of_view_y": float(np.median(view[:, 1])),
        "aspect": float(np.median(cameras.sizes[:, 0] / cameras.sizes[:, 1])),
        "baseline_over_depth": baseline / depth,
        "angle": float(np.degrees(2 * np.arctan(baseline / depth / 2))),
        "largest_roll": float(_rolls(c2w).max()),
    }


def _median_depth(cameras: MatchedCameras, matches: SceneMatches) -> float:
    """Median depth of matches that lie in front of both cameras; infinite if none does."""
    depths = [triangulated_depths(cameras.of_pair(pair), pair.first, pair.second) for pair in matches.pairs]
    both = np.concatenate(depths)
    in_front = both[np.isfinite(both).all(1) & (both > 0).all(1)]
    return float(np.median(in_front)) if len(in_front) else np.inf


def _rolls(c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n"]:
    """Degrees by which cameras are turned about their optical axis against the mean of all y axes."""
    down = c2w[:, :3, 1].mean(0)
    across = c2w[:, :3, 0] @ down
    along = c2w[:, :3, 1] @ down
    return np.abs(np.degrees(np.arctan2(across, along)))


def _warn_of_figures(figures: dict[str, float]) -> Iterator[str]:
    if not figures:
        return
    narrow, wide = sorted((figures["field_of_view_x"], figures["field_of_view_y"]))
    low, high = _FIELDS_OF_VIEW
    if wide < low or narrow > high:
        yield f"the field of view is {narrow:.0f} by {wide:.0f} degrees; {low:g} to {high:g} are usual"
    if figures["angle"] < _SMALLEST_ANGLE:
        yield (
            f"the cameras are {figures['baseline_over_depth']:.3f} of the scene's depth apart: "
            "move the camera, do not only turn it"
        )
    if figures["aspect"] < 1:
        yield "the images are in portrait format: a square is cut from their middle, unless training.square_crop=false"
    if figures["largest_roll"] > _LARGEST_ROLL:
        yield f"a camera is turned by {figures['largest_roll']:.0f} degrees about its axis against the others"
