"""Choosing things that lie apart."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float


def farthest_first(distances: Callable[[int], Float[np.ndarray, "n"]], first: Sequence[int], count: int) -> list[int]:
    """Numbers [count] of things, `first` first, then each the one farthest from those before it (Gonzalez, 1985).

    Args:
        distances: from one to all n of them.
        first: one or more, at most `count`.
        count: at most n.
    """
    chosen = list(first)
    nearest = np.min([distances(one) for one in chosen], axis=0)
    while len(chosen) < count:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances(chosen[-1]))
    return chosen
