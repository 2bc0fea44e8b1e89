"""How a loader process hands its batches to the main process: through shared memory, or where that is short, a pipe.

A container's shared memory is often small (docker gives 64 MB). torch notices that too late: the batch is lost in a
background thread of the loader process, and the main process waits for it for ever.
"""

import functools
import logging
import os
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data.dataset import Batch

log = logging.getLogger("lvsm")

# Where Linux keeps shared memory.
_SHARED = Path("/dev/shm")
_PAGE = 4096


def hand_over(collate: Callable[[list[Batch]], Any], samples: list[Batch]) -> Any:
    """What `collate` makes of the samples, in a form that reaches the main process."""
    collated = collate(samples)
    # Among an evaluation's batches are scenes that cannot be read, which have no tensors.
    batches = [part for part in (collated if isinstance(collated, list) else [collated]) if isinstance(part, Batch)]
    if get_worker_info() is None or _share([tensor for batch in batches for tensor in batch.tensors()]):
        return collated
    return _ThroughPipe(collated)


def _share(tensors: list[Tensor]) -> bool:
    """Move tensors to shared memory, as torch would later; False if there is too little for all of them."""
    if not _has_room(sum(tensor.nbytes + _PAGE for tensor in tensors)):
        return False
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except (RuntimeError, OSError):
        return False
    return True


def _has_room(size: int) -> bool:
    """Whether that many bytes fit; half of the shared memory is left to others (NCCL is one)."""
    try:
        space = os.statvfs(_SHARED)
    except (OSError, AttributeError):
        # Not Linux, or hidden: `share_memory_` will tell.
        return True
    return size <= (space.f_bavail - space.f_blocks / 2) * space.f_frsize


class _ThroughPipe:
    """Pickles to bytes in which tensors are whole, and back to what it was given."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        file = BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(self._content)
        return _unpack, (file.getvalue(),)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _unpack(content: bytes) -> Any:
    _say_once()
    return pickle.loads(content)


@functools.cache
def _say_once() -> None:
    log.warning(
        "%s is too small for the batches that are read ahead: they go through a pipe, which is slower; give the "
        "container more (docker run --shm-size=8g), or lower training.num_workers or training.prefetch_factor",
        _SHARED,
    )
