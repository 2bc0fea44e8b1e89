"""Garbage collection, where a pause of one process is a pause of all."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# More frozen objects than Python itself begins with, which is hundreds in 3.12.
_FROZEN_BY_OTHERS = 10_000


@contextmanager
def collection_spares() -> Iterator[Callable[[], None]]:
    """Yields a function: what lives when it is first called, garbage collection passes over until the end.

    To look through what a compiler leaves takes Python half a second, at a moment of its own in every process. Where a
    program around this one has frozen its objects, they are left to it.
    """
    frozen = False

    def spare() -> None:
        nonlocal frozen
        if not frozen and gc.get_freeze_count() < _FROZEN_BY_OTHERS:
            gc.collect()
            gc.freeze()
            frozen = True

    try:
        yield spare
    finally:
        if frozen:
            gc.unfreeze()
