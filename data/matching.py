"""Points that two frames of a scene both show: SIFT features, matched and held to one epipolar geometry.

Features are those of D. Lowe, Distinctive Image Features from Scale-Invariant Keypoints (2004), with his ratio test,
compared by the square roots of their entries (Arandjelović and Zisserman, Three Things Everyone Should Know to Improve
Object Retrieval, 2012).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from data.scene import Scene
from data.transforms import read_image
from utils.errors import InputError

LONGEST_SIDE = 1000
MOST_PAIRS = 20
# Pairs that are enough to judge by.
_WANTED_PAIRS = 6
_FRAMES_SPREAD = 8
_MOST_FEATURES = 2000
_RATIO = 0.8
# Matches that no wrong pair of images has, and the share of all that must agree.
_FEWEST_MATCHES = 20
_SMALLEST_SHARE = 0.4
# Pixels that a match may lie off the epipolar geometry of its pair; shares of the longer side that matches must move.
_TOLERANCE = 1.0
_SMALLEST_SHIFT = 0.01


@dataclass(frozen=True)
class Features:
    """Features of one frame.

    Attributes:
        points: in pixels of the reduced image, the first pixel's centre being (0.5, 0.5).
        descriptors: of unit length.
        size: width and height of the stored image.
        picture: the reduced image.
    """

    points: Float[np.ndarray, "m 2"]
    descriptors: Float[np.ndarray, "m 128"]
    size: tuple[int, int]
    picture: UInt8[np.ndarray, "h w 3"]

    def stored(self, points: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
        """Pixels of the reduced image as those of the stored one."""
        return points * self.size / self.picture.shape[1::-1]

    def reduced(self, points: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
        """Pixels of the stored image as those of the reduced one."""
        return points * self.picture.shape[1::-1] / self.size


@dataclass(frozen=True)
class PairMatches:
    """Two frames and the points that both show, in pixels of the stored images."""

    frames: tuple[int, int]
    features: tuple[Features, Features]
    first: Float[np.ndarray, "m 2"]
    second: Float[np.ndarray, "m 2"]


@dataclass(frozen=True)
class SceneMatches:
    """What two frames of a scene both show.

    Attributes:
        pairs: pairs of frames with enough matches.
        tried: pairs that were looked at.
        still: pairs among those whose images hardly differ.
        unread: frames whose images cannot be read, and why.
    """

    pairs: list[PairMatches]
    tried: int
    still: int
    unread: dict[int, str]

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height of the stored image of every frame that is in a pair."""
        return {
            frame: features.size
            for pair in self.pairs
            for frame, features in zip(pair.frames, pair.features, strict=True)
        }


def match_scene(scene: Scene, frames: Sequence[int]) -> SceneMatches:
    """Match frames spread over a scene with their neighbours: far ones first, then others where those fail.

    Args:
        frames: those to choose from, in order.
    """
    return _Matcher(scene, frames).run()


class _Matcher:
    """The matching of one scene; features are found once a frame."""

    def __init__(self, scene: Scene, frames: Sequence[int]) -> None:
        self._scene = scene
        self._frames = frames
        self._features: dict[int, Features | None] = {}
        self._unread: dict[int, str] = {}
        self._still = 0

    def run(self) -> SceneMatches:
        pairs: list[PairMatches] = []
        tried = 0
        for first, second in islice(candidate_pairs(len(self._frames)), MOST_PAIRS):
            tried += 1
            pair = self._match(self._frames[first], self._frames[second])
            if pair is not None:
                pairs.append(pair)
            if len(pairs) == _WANTED_PAIRS:
                break
        return SceneMatches(pairs, tried, self._still, self._unread)

    def _match(self, first: int, second: int) -> PairMatches | None:
        ours = self._features_of(first)
        theirs = self._features_of(second)
        points = None if ours is None or theirs is None else match(ours, theirs)
        if ours is None or theirs is None or points is None:
            return None
        if np.median(np.linalg.norm(points[0] - points[1], axis=1)) < _SMALLEST_SHIFT * max(ours.picture.shape):
            self._still += 1
            return None
        return PairMatches((first, second), (ours, theirs), ours.stored(points[0]), theirs.stored(points[1]))

    def _features_of(self, frame: int) -> Features | None:
        if frame not in self._features:
            self._features[frame] = self._find_features(frame)
        return self._features[frame]

    def _find_features(self, frame: int) -> Features | None:
        where = f"scene {self._scene.name}, frame {frame}"
        try:
            return find_features(read_image(self._scene.image_path(frame), where))
        except InputError as error:
            self._unread[frame] = str(error)
            return None


def candidate_pairs(frames: int) -> Iterator[tuple[int, int]]:
    """Pairs of frames to try: neighbours among frames spread evenly, then nearer ones, then farther ones."""
    seen: set[tuple[int, int]] = set()
    starts = np.unique(np.linspace(0, frames - 1, min(frames, _FRAMES_SPREAD)).round().astype(int)).tolist()
    gap = max(1, round((frames - 1) / (_FRAMES_SPREAD - 1)))
    for distance in [gap, gap // 3, gap // 9, 2 * gap, 4 * gap, gap // 27]:
        for start in starts:
            pair = (start, start + distance)
            if distance and pair[1] < frames and pair not in seen:
                seen.add(pair)
                yield pair


def find_features(image: Image.Image) -> Features:
    """SIFT features of an RGB image, reduced to `LONGEST_SIDE` pixels if it is larger."""
    reduced = image.copy()
    reduced.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    picture = np.asarray(reduced)
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    keypoints, descriptors = cv2.SIFT.create(nfeatures=_MOST_FEATURES).detectAndCompute(gray, None)
    points = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64).reshape(-1, 2) + 0.5
    return Features(points, _rooted(descriptors), image.size, picture)


def _rooted(descriptors: Float[np.ndarray, "m 128"] | None) -> Float[np.ndarray, "m 128"]:
    if descriptors is None:
        return np.zeros((0, 128), np.float32)
    return np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-12))


def match(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray] | None:
    """Points [m, 2] in both images; None if there are too few, or they agree on no epipolar geometry."""
    ours, theirs = _nearest(first.descriptors, second.descriptors)
    if len(ours) < _FEWEST_MATCHES:
        return None
    points = first.points[ours]
    partners = second.points[theirs]
    agreeing = agree(points, partners)
    if agreeing.sum() < max(_FEWEST_MATCHES, _SMALLEST_SHARE * len(ours)):
        return None
    return points[agreeing], partners[agreeing]


def agree(first: Float[np.ndarray, "m 2"], second: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, "m"]:
    """Which matches lie on the lines of the one epipolar geometry that most of them have; none where there is none."""
    # OpenCV's newer methods (USAC) fail on an assertion for some points.
    _, inlier = cv2.findFundamentalMat(first, second, cv2.FM_RANSAC, _TOLERANCE, 0.999, 2000)
    return np.zeros(len(first), bool) if inlier is None else inlier.ravel() > 0


def _nearest(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of features that are each other's nearest, and much nearer than the next."""
    if min(len(first), len(second)) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    similarity = first @ second.T
    nearest = similarity.argmax(1)
    best, next_best = -np.partition(-similarity, 1, axis=1)[:, :2].T
    mutual = similarity.argmax(0)[nearest] == np.arange(len(first))
    # Distances of unit vectors: |a - b|^2 = 2 - 2 a.b.
    clear = 1 - best < _RATIO**2 * (1 - next_best)
    kept = np.flatnonzero(mutual & clear)
    return kept, nearest[kept]
