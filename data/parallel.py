"""Clips imported by a pool of processes: the bar, what becomes of all of them, and what a process that dies costs."""

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

from tqdm import tqdm

from data.writing import ImportResult
from utils.parallel import cores_of_process
from utils.pool import run_in_workers

DIED = "the process that read it died twice (out of memory?)"

# Beyond that many processes (or the cores, if they are more) nothing gets faster.
_MOST_PROCESSES = 64

Task = TypeVar("Task", bound=Sized)


def useful_workers(num_processes: int) -> int:
    """How many of the processes that a person asks for are of use."""
    return min(num_processes, max(_MOST_PROCESSES, cores_of_process()))


def import_in_parallel(
    work: Callable[[Task], ImportResult],
    tasks: Sequence[Task],
    num_processes: int,
    died: Callable[[Task], ImportResult],
    total: ImportResult,
) -> None:
    """Add what becomes of every task to `total`.

    Args:
        work: writes the clips of a task, in another process.
        tasks: as long as they have clips.
        died: what is lost with a task whose process died.

    Raises:
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    with tqdm(total=sum(map(len, tasks)), desc="clips", unit="clip", disable=None) as bar:

        def add(task: Task, result: ImportResult | None) -> None:
            total.add(died(task) if result is None else result)
            bar.update(len(task))

        run_in_workers(work, tasks, useful_workers(num_processes), add)
