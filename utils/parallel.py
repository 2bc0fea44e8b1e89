"""Helpers for pools of worker processes and for work in background threads."""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from types import TracebackType
from typing import Any

from utils.cli import leave_at_once
from utils.launcher import read_place

# Seconds between two looks around while something is waited for. A signal may reach another thread than the one that
# waits, which hears of it only then.
LOOK_AROUND = 2.0


def usable_cores() -> int:
    """Cores that this process may use; where the system does not say, all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_process() -> int:
    """This process's share of the cores that the processes of its machine may use, at least 1.

    Raises:
        InputError: the launcher's environment variables contradict each other.
    """
    return max(1, usable_cores() // read_place().local_world_size)


def exit_with_parent(last_words: str = "") -> None:
    """Make this process end when its parent is gone; pass it to a pool as `initializer`.

    Without it, workers of a killed run go on with the queued work beside the restarted one, and then wait for ever.
    """
    parent = os.getppid()
    # The process that started this one, also where a fork server is its parent; None in a program's main process.
    starter = multiprocessing.parent_process()

    def end_with_parent() -> None:
        while os.getppid() == parent and (starter is None or starter.is_alive()):
            time.sleep(0.5)
        if last_words:
            leave_at_once(last_words, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class Background:
    """Threads that write while the caller goes on; at most `ahead` pieces of work wait or run at any time.

    Leaving `with background:` waits for all of it. An error in a thread is raised by the next call, or at the end.
    """

    def __init__(self, threads: int = 2, ahead: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = ahead
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def finish(self) -> None:
        """Wait for all work."""
        while self._pending:
            self._pending.popleft().result()

    def feed(self, consume: Callable[[Iterator[Any]], None], items: Iterable[Any], buffered: int = 4) -> None:
        """Have `consume` work through `items`, which are made here, with a few of them in between.

        Once `consume` has ended no more are made; its error is raised then.
        """
        self._make_room()
        queue: Queue[Any] = Queue(buffered)
        future = self._pool.submit(lambda: consume(_until_end(queue)))
        self._pending.append(future)
        last = _BROKEN
        try:
            for item in items:
                if future.done():
                    future.result()
                    return
                _put(queue, item, future)
            last = _END
        finally:
            _put(queue, last, future)

    def _make_room(self) -> None:
        while len(self._pending) >= self._ahead or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()


_END = object()
_BROKEN = object()


def _put(queue: Queue[Any], item: Any, consumer: "Future[None]") -> None:
    """Wait for room in the queue, unless its consumer has ended."""
    while not consumer.done():
        try:
            return queue.put(item, timeout=0.2)
        except Full:
            continue


def _until_end(queue: Queue[Any]) -> Iterator[Any]:
    while (item := queue.get()) is not _END:
        if item is _BROKEN:
            raise RuntimeError("what was to be written could not be made")
        yield item
