"""Where the time of a process goes."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Timer:
    """Seconds by what they were spent on.

    A GPU works on after its work was ordered; the time counts where a result is first read.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Add the time inside to `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    def waiting(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time until each of them comes is added to `what`."""
        iterator = iter(items)
        while True:
            with self(what):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
