"""Which frames of a clip become inputs and targets (spec section 4)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from utils.fields import bounded


@dataclass(frozen=True)
class ViewSelectorConfig:
    """Bounds, in frames, on the distance of the first to the last view of a sample."""

    min_frame_dist: int = bounded(25, 1, 1_000_000)
    max_frame_dist: int = bounded(192, 1, 1_000_000)


def choose_window(
    num_frames: int, num_views: int, cfg: ViewSelectorConfig, rng: np.random.Generator
) -> Int[np.ndarray, " v"] | None:
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
    return np.concatenate([[start, start + distance], between]).astype(np.int64)


def choose_targets(
    num_views: int, num_targets: int, target_has_input: bool, rng: np.random.Generator
) -> Int[np.ndarray, " t"]:
    """Positions of the targets among the views: drawn from all of them, or the last ones in order."""
    if target_has_input:
        return rng.choice(num_views, size=num_targets, replace=False)
    return np.arange(num_views - num_targets, num_views)
