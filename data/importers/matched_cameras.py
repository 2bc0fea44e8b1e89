"""Cameras of frames that have matches: how well they fit the images, and what is unusual about them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from data.matching import PairMatches, SceneMatches
from data.scene import Scene
from geometry.epipolar import CameraPair, relative_pose, symmetric_distance_in_front, triangulated_depths
from geometry.misreadings import MISREADINGS

# Degrees: lenses of 18 to 49 mm in 35 mm terms. A focal length outside that was most likely guessed, and guessed wrong.
_FIELDS_OF_VIEW = (40.0, 90.0)
# Degrees between the rays from the two farthest cameras: from less no mapping of photographs starts.
_SMALLEST_ANGLE = 2.0
# Degrees: a camera that is turned further about its axis is nearer to lying on its side than to standing.
_LARGEST_ROLL = 45.0


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


def median_error(cameras: MatchedCameras, matches: SceneMatches) -> float:
    return float(np.median([pair_error(cameras, pair) for pair in matches.pairs]))


def lens_figures(cameras: MatchedCameras) -> dict[str, float]:
    """Field of view (degrees), aspect and roll (degrees) of the cameras."""
    view = np.degrees(2 * np.arctan(cameras.sizes / (2 * cameras.fxfycxcy[:, :2])))
    return {
        "field_of_view_x": float(np.median(view[:, 0])),
        "field_of_view_y": float(np.median(view[:, 1])),
        "aspect": float(np.median(cameras.sizes[:, 0] / cameras.sizes[:, 1])),
        "largest_roll": float(_rolls(np.linalg.inv(cameras.w2c)).max()),
    }


def baseline_figures(cameras: MatchedCameras, matches: SceneMatches) -> dict[str, float]:
    """Distance of the two farthest cameras over the depth of triangulated matches, and as an angle in degrees."""
    centres = np.linalg.inv(cameras.w2c)[:, :3, 3]
    baseline = float(np.linalg.norm(centres[:, None] - centres, axis=-1).max()) / _median_depth(cameras, matches)
    return {"baseline_over_depth": baseline, "angle": float(np.degrees(2 * np.arctan(baseline / 2)))}


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


def lens_warnings(figures: dict[str, float]) -> Iterator[str]:
    """What is unusual about `lens_figures`, a sentence each."""
    narrow, wide = sorted((figures["field_of_view_x"], figures["field_of_view_y"]))
    low, high = _FIELDS_OF_VIEW
    if wide < low or narrow > high:
        yield f"the field of view is {narrow:.0f} by {wide:.0f} degrees; {low:g} to {high:g} are usual"
    if figures["aspect"] < 1:
        yield "the images are in portrait format: a square is cut from their middle, unless training.square_crop=false"
    if figures["largest_roll"] > _LARGEST_ROLL:
        yield f"a camera is turned by {figures['largest_roll']:.0f} degrees about its axis against the others"


def baseline_warnings(figures: dict[str, float]) -> Iterator[str]:
    """What is unusual about `baseline_figures`, in a sentence."""
    if figures["angle"] < _SMALLEST_ANGLE:
        yield (
            f"the cameras are {figures['baseline_over_depth']:.3f} of the scene's depth apart: "
            "move the camera, do not only turn it"
        )
