"""A pool of processes that outlives the death of a worker."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from utils.parallel import LOOK_AROUND, exit_with_parent

log = logging.getLogger("lvsm")

Task = TypeVar("Task")
Result = TypeVar("Result")

# Windows waits for no more processes at once.
_MOST_ON_WINDOWS = 61


def run_in_workers(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    finished: Callable[[Task, Result | None], None],
) -> None:
    """Call `finished(task, work(task))` for every task, in the order in which they end.

    If a worker dies (out of memory, a crash), the tasks that it may have died of are tried again one by one, and the
    one that kills its worker then, too, gets None for its result. An error in `work` ends everything and is raised;
    whatever ends it, no worker is left.
    """
    left = list(tasks)
    while left:
        left = _until_death(work, left, workers, finished)
        if not left:
            return
        # Tasks are begun in order, so that the dead worker had one of the first that are not finished.
        suspects = left[:workers]
        log.warning("a worker process died (out of memory?): trying its work again, one piece at a time")
        for task in suspects:
            if _until_death(work, [task], 1, finished):
                finished(task, None)
        left = left[workers:]


def _until_death(
    work: Callable[[Task], Result], tasks: list[Task], workers: int, finished: Callable[[Task, Result | None], None]
) -> list[Task]:
    """Work until all is finished or a worker dies; the tasks that are left, in order."""
    count = min(workers, len(tasks), _MOST_ON_WINDOWS if os.name == "nt" else workers)
    pool = ProcessPoolExecutor(count, initializer=_start_worker)
    futures: dict[Future[Result], int] = {}
    done: set[int] = set()
    whole = False
    try:
        try:
            for number, task in enumerate(tasks):
                futures[pool.submit(work, task)] = number
        except BrokenProcessPool:
            pass  # the first have begun already, and told below
        for future in _completed(futures):
            number = futures[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            done.add(number)
            finished(tasks[number], result)
        whole = True
    finally:
        if not whole:
            _end_workers()
        pool.shutdown(cancel_futures=True)
    return [task for number, task in enumerate(tasks) if number not in done]


def _completed(futures: Iterable[Future[Result]]) -> Iterator[Future[Result]]:
    """The futures as they end. The wait looks around: a signal may reach another thread, and is answered only then."""
    left = set(futures)
    while left:
        try:
            for future in as_completed(set(left), timeout=LOOK_AROUND):
                left.discard(future)
                yield future
        except TimeoutError:
            continue


def _start_worker() -> None:
    """Ctrl-C reaches every process of a terminal; the parent alone answers it, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exit_with_parent()


def _end_workers() -> None:
    for child in multiprocessing.active_children():
        child.terminate()
