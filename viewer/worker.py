"""A thread that does the work of many clients: the latest wish of each, and jobs in between."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

log = logging.getLogger("lvsm")

T = TypeVar("T")
Work = Callable[[], object]
# Seconds after which work in the background gets its turn, however busy the clients are.
_PATIENCE = 1.0


class Stopped(Exception):
    """The thread has ended: nothing more is done."""


@dataclass(frozen=True)
class _Wish:
    work: Work
    due: float


@dataclass(frozen=True)
class _Job:
    work: Work
    future: "Future[Any]"
    since: float


class Worker:
    """One thread. What has a key waits in a slot of size one: a newer wish replaces it, and none is done twice.

    Jobs are all done: `run` before any wish, `run_later` when nobody wishes anything, or after a while.
    """

    def __init__(self, name: str) -> None:
        self._wishes: dict[Hashable, _Wish] = {}
        self._jobs: deque[_Job] = deque()
        self._later: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def wish(self, key: Hashable, work: Work, after: float = 0.0) -> None:
        """Have `work` done, in `after` seconds at the earliest, instead of what waits under this key."""
        with self._changed:
            due = time.monotonic() + after
            waiting = self._wishes.get(key)
            # A replaced wish keeps its turn, and is due no later than it was.
            self._wishes[key] = _Wish(work, due if waiting is None else min(due, waiting.due))
            self._changed.notify()

    def forget(self, key: Hashable) -> None:
        """Drop what waits under a key."""
        with self._changed:
            self._wishes.pop(key, None)

    def run(self, work: Callable[[], T]) -> T:
        """Have `work` done soon, and wait for its result.

        Raises:
            Stopped: the thread has ended; or whatever `work` raises.
        """
        return self._submit(self._jobs, work).result()

    def run_later(self, work: Callable[[], T]) -> T:
        """Have `work` done when there is time, and wait for its result; raises as `run` does."""
        return self._submit(self._later, work).result()

    def stop(self) -> None:
        """End the thread after what it does now; what waits is not done."""
        with self._changed:
            self._stopped = True
            self._wishes.clear()
            jobs = [*self._jobs, *self._later]
            self._jobs.clear()
            self._later.clear()
            self._changed.notify()
        for job in jobs:
            job.future.set_exception(Stopped())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _submit(self, queue: deque[_Job], work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        with self._changed:
            if self._stopped:
                raise Stopped
            queue.append(_Job(work, future, time.monotonic()))
            self._changed.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                while (task := self._next()) is None and not self._stopped:
                    self._changed.wait(self._until_due())
            if task is None or self._stopped:
                if isinstance(task, _Job):
                    task.future.set_exception(Stopped())
                return
            _do(task)

    def _next(self) -> "_Wish | _Job | None":
        """What is to be done now, taken from where it waited."""
        now = time.monotonic()
        if self._jobs:
            return self._jobs.popleft()
        if self._later and now - self._later[0].since > _PATIENCE:
            return self._later.popleft()
        key = next((key for key, wish in self._wishes.items() if wish.due <= now), None)
        if key is not None:
            return self._wishes.pop(key)
        return self._later.popleft() if self._later else None

    def _until_due(self) -> float | None:
        """Seconds until a wish is due; None if nobody wishes anything."""
        due = [wish.due for wish in self._wishes.values()]
        return max(0.0, min(due) - time.monotonic()) if due else None


def _do(task: "_Wish | _Job") -> None:
    """Do some work; its failure is told to whoever waits for it, or in the log."""
    try:
        result = task.work()
    except Exception as error:
        if isinstance(task, _Job):
            task.future.set_exception(error)
        else:
            log.exception("a picture could not be made")
    else:
        if isinstance(task, _Job):
            task.future.set_result(result)
