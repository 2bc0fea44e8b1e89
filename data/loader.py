"""Loaders: training batches that know their position, and evaluation that covers every scene once."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset import Batch, EvaluationDataset, TrainingDataset, Unusable, collate, collate_by_shape
from utils.errors import InputError
from utils.fields import bounded
from utils.interruption import shield_worker, signals_blocked

log = logging.getLogger("lvsm")

# Kinds of notes on the data that this process has said.
_said: set[str] = set()


@dataclass(frozen=True)
class LoaderConfig:
    """Loader processes; part of the `training` section of a configuration file."""

    num_workers: int = bounded(4, 0, 1000)
    prefetch_factor: int = bounded(32, 1, 10_000)


class _SampleNumbers(Sampler[list[int]]):
    """Numbers of one rank's samples, batch by batch: batch k of rank r starts at start + (k·world + r)·batch."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in count():
            first = self.start + (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class TrainingLoader:
    """An endless stream of batches, the same whatever the number of workers.

    Together the ranks read samples 0, 1, 2, ... of the dataset once each, so that k ranks with batch m see what one
    rank with batch k·m sees.

    Attributes:
        position: samples handed out so far by all ranks together; start a new loader there to go on.
    """

    def __init__(
        self, dataset: TrainingDataset, cfg: LoaderConfig, batch_size: int, rank: int, world_size: int, position: int
    ) -> None:
        self.position, self._per_step = position, batch_size * world_size
        sampler = _SampleNumbers(position, batch_size, rank, world_size)
        with signals_blocked():
            self._batches = iter(_data_loader(dataset, cfg, batch_sampler=sampler, collate_fn=collate))

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            InputError: a scene cannot be used, wherever the loading process met it.
        """
        batch = _next(self._batches)
        say_once(batch.notes)
        self.position += self._per_step
        return batch


def evaluation_batches(
    dataset: EvaluationDataset, cfg: LoaderConfig, batch_size: int, rank: int, world_size: int
) -> Iterator[Batch | Unusable]:
    """This rank's share of the scenes, each once, no padding; scenes of unlike shape come in batches of their own.

    A scene that cannot be read comes by itself, as what is wrong with it.
    """
    share = torch.utils.data.Subset(dataset, range(rank, len(dataset), world_size))
    with signals_blocked():
        loader = iter(_data_loader(share, cfg, batch_size=batch_size, collate_fn=collate_by_shape))
    try:
        while True:
            for batch in _next(loader):
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


def _data_loader(dataset: Dataset[Any], cfg: LoaderConfig, **kwargs: Any) -> DataLoader[Any]:
    # More processes than cores only wait for one another.
    workers = min(cfg.num_workers, len(os.sched_getaffinity(0)))
    return DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=cfg.prefetch_factor if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=shield_worker,
        **kwargs,
    )


def _next(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except InputError as error:
        # A loader process wraps the message in its traceback; the last line is the message itself.
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from None
