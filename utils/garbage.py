"""Garbage collection, where it must not come at a moment of its own."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# More frozen objects than Python itself begins with, which is hundreds in 3.12.
_FROZEN_BY_OTHERS = 10_000


@contextmanager
def collection_spares() -> Iterator[Callable[[], None]]:
    """Yields a function; from its first call to the end, garbage collection passes over what lived at that call.

    Python needs some tenths of a second to look through what a compiler leaves, at a moment of its own in every
    process. Nothing is done inside a program that has frozen objects itself.
    """
    by_others = spared = gc.get_freeze_count() >= _FROZEN_BY_OTHERS

    def spare() -> None:
        nonlocal spared
        if not spared:
            gc.collect()
            gc.freeze()
            spared = True

    try:
        yield spare
    finally:
        if spared and not by_others:
            gc.unfreeze()


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage waits until the end; not for two threads at a time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
