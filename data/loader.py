"""Loaders: training batches that know their position, and evaluation that covers every scene once."""

import errno
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset import Batch, EvaluationDataset, SampleOf, TrainingDataset, Unusable, collate, collate_by_shape
from data.handover import hand_over
from utils.errors import InputError
from utils.fields import bounded
from utils.parallel import LOOK_AROUND, usable_cores
from utils.stop_signal import shield_worker, signals_blocked

# Iterators that something ended (or the error that ended the making of one, which holds it): kept, since their
# destructors would wait for loader processes that may hang.
_ABANDONED: list[Any] = []
# Seconds that a batch may take, unless the run says otherwise.
_PATIENCE = 600.0
# How torch tells of a loader process that died, wherever the main process is just then.
_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\) ([^.]*)")
_TIMED_OUT = "DataLoader timed out after"

log = logging.getLogger("lvsm")

# Kinds of notes on the data that this process has said.
_said: set[str] = set()


@dataclass(frozen=True)
class LoaderConfig:
    """Loader processes, and the scenes of a batch."""

    num_workers: int = bounded(4, 0, 1000)
    prefetch_factor: int = bounded(32, 1, 10_000)
    batch_size_per_gpu: int = bounded(8, 1, 65_536)


class _SampleNumbers(Sampler[list[SampleOf]]):
    """One rank's samples, batch by batch: the numbers of batch k of rank r start at start + (k·world + r)·batch."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int, updates: Iterator[int]) -> None:
        self.start = start
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.updates = updates

    def __iter__(self) -> Iterator[list[SampleOf]]:
        for step, update in enumerate(self.updates):
            first = self.start + (step * self.world_size + self.rank) * self.batch_size
            yield [SampleOf(number, update) for number in range(first, first + self.batch_size)]


class TrainingLoader:
    """An endless stream of batches, the same whatever the number of workers.

    Together the ranks read samples 0, 1, 2, ... of the dataset once each, so that k ranks with batch m see what one
    rank with batch k·m sees.

    Args:
        patience: seconds after which a batch that does not come is an error.
        update: updates done before.
        batches_per_update: batches of this process that an update learns from.

    Attributes:
        position: samples handed out so far by all ranks together; start a new loader there to go on.
    """

    def __init__(
        self,
        dataset: TrainingDataset,
        cfg: LoaderConfig,
        batch_size: int,
        rank: int,
        world_size: int,
        position: int,
        patience: float = _PATIENCE,
        update: int = 0,
        batches_per_update: int = 1,
    ) -> None:
        self.position = position
        self._per_step = batch_size * world_size
        self._patience = patience
        updates = (update + batch // batches_per_update for batch in count())
        sampler = _SampleNumbers(position, batch_size, rank, world_size, updates)
        self._batches = _start(dataset, cfg, batch_sampler=sampler, collate_fn=collate)

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            InputError: a scene cannot be used, wherever the loading process met it.
            OSError: a loader process died, or no batch came.
        """
        batch = _next(self._batches, self._patience)
        say_once(batch.notes)
        self.position += self._per_step
        return batch

    def take(self, number: int) -> list[Batch]:
        """The next batches; if something ends the wait for one of them, the loader stands where it stood before."""
        before = self.position
        try:
            return [next(self) for _ in range(number)]
        except BaseException:
            self.position = before
            raise


def evaluation_batches(
    dataset: EvaluationDataset,
    cfg: LoaderConfig,
    batch_size: int,
    rank: int,
    world_size: int,
    patience: float = _PATIENCE,
) -> Iterator[Batch | Unusable]:
    """This rank's share of the scenes, each once, no padding; scenes of unlike shape come in batches of their own.

    A scene that cannot be read comes by itself, as what is wrong with it.
    """
    share = torch.utils.data.Subset(dataset, range(rank, len(dataset), world_size))
    batches = _start(share, cfg, batch_size=batch_size, collate_fn=collate_by_shape)
    try:
        while True:
            for batch in _next(batches, patience):
                if isinstance(batch, Batch):
                    say_once(batch.notes)
                yield batch
    except StopIteration:
        return


def say_once(notes: Mapping[str, str]) -> None:
    """Log what of the data is not used as a person may expect, a line each kind in the life of this process."""
    for kind, note in notes.items():
        if kind not in _said:
            _said.add(kind)
            log.warning("%s (said once)", note)


def _start(dataset: Dataset[Any], cfg: LoaderConfig, collate_fn: Callable[..., Any], **kwargs: Any) -> Iterator[Any]:
    # More processes than cores only wait for one another.
    workers = min(cfg.num_workers, usable_cores())
    loader = DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=cfg.prefetch_factor if workers else None,
        timeout=LOOK_AROUND if workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=shield_worker,
        collate_fn=functools.partial(hand_over, collate_fn) if workers else collate_fn,
        **kwargs,
    )
    try:
        with signals_blocked():
            return iter(loader)
    except OSError as error:
        _ABANDONED.append(error)
        if workers and error.errno == errno.ENOSPC:
            raise InputError(
                "/dev/shm is full, so that no loader process can be started: give the container more (docker run "
                "--shm-size=8g), or read without such processes (training.num_workers=0)"
            ) from None
        raise


def _next(batches: Iterator[Any], patience: float) -> Any:
    try:
        with failures_told():
            return _await(batches, patience)
    except StopIteration:
        raise
    except InputError as error:
        # A loader process wraps the message in its traceback; the last line is the message itself.
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from None
    except BaseException:
        _ABANDONED.append(batches)
        raise


def _await(batches: Iterator[Any], patience: float) -> Any:
    """The next batch; after a look around torch's iterator waits on for the same one."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            if not str(error).startswith(_TIMED_OUT):
                raise
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no data has come for {patience:g} seconds: the loader processes hang, most likely in a file "
                    "system that does not answer (training.distributed_timeout_minutes: how long to wait)"
                ) from None


@contextmanager
def failures_told() -> Iterator[None]:
    """Have the failures of loader processes told in one line; to be entered around all that happens while they run.

    Raises:
        OSError: a loader process died, which torch tells at any moment.
    """
    try:
        yield
    except RuntimeError as error:
        if died := _DIED.search(str(error)):
            raise ChildProcessError(
                f"loader process {died[1]} {died[2].strip()}: if the machine ran out of memory, lower "
                "training.num_workers or training.prefetch_factor; training.num_workers=0 reads without such processes"
            ) from None
        raise
