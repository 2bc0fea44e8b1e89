"""One process or many: torchrun's environment, collectives that also work alone."""

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from utils.errors import InputError
from utils.fields import bounded
from utils.launcher import Place, read_place
from utils.lock import only_writer
from utils.parallel import exit_with_parent
from utils.text import counted, printable

T = TypeVar("T")

# How long a barrier waits: for downloads and for writing to slow disks, not for ever.
_PATIENCE = timedelta(minutes=30)
# Seconds between two looks at the store.
_PAUSE = 0.02
# How long the main process waits at the very end for the others to leave.
_FAREWELL = timedelta(seconds=30)


@dataclass(frozen=True)
class ProcessConfig:
    """CPU threads, and how long a process waits for another, or for data, before it takes it for lost."""

    num_threads: int = bounded(8, 1, 4096)
    distributed_timeout_minutes: float = bounded(10.0, 0, 10_000, open_below=True)

    @property
    def patience(self) -> float:
        """`distributed_timeout_minutes` in seconds."""
        return self.distributed_timeout_minutes * 60


@dataclass(frozen=True)
class Process:
    """This process among all; a plain `python` run is process 0 of 1.

    `store` holds small values that all processes see; None for a process that is alone. `one_machine` tells whether the
    launcher says that all of them run on this machine.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None
    one_machine: bool = False
    _barriers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def is_main(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def barrier(self, what: str) -> None:
        """Wait until all processes are here, while one may be busy for long (`what` says with what, for the message).

        It goes through the store, not through a collective, whose timeout is meant for ranks that are lost. The store
        is asked again and again, since one long wait would keep all other threads (the watchdog is one) from using it.

        Raises:
            TimeoutError: names the ranks that did not come within half an hour.
        """
        if self.store is None:
            return
        place = f"barrier/{next(self._barriers)}"
        self.store.set(f"{place}/{self.rank}", "")
        if missing := self._missing(place, _PATIENCE):
            raise TimeoutError(f"{what}: ranks {missing} did not come within {_PATIENCE}")

    def leave(self) -> None:
        """Say goodbye; the main process goes last, since the store may live in it (with torchrun it does not)."""
        if self.store is None:
            return
        self.store.set(f"left/{self.rank}", "")
        if self.is_main:
            self._missing("left", _FAREWELL)

    def _missing(self, place: str, patience: timedelta) -> list[int]:
        """The ranks that do not come to a place in the store within `patience`."""
        assert self.store is not None
        keys = [f"{place}/{rank}" for rank in range(self.world_size)]
        deadline = time.monotonic() + patience.total_seconds()
        while not self.store.check(keys):
            if time.monotonic() > deadline:
                return [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            time.sleep(_PAUSE)
        return []

    def first_on_machine(self, make: Callable[[], T]) -> T:
        """`make()`, run by one process of each machine before the others, which find what it downloaded."""
        if self.local_rank == 0:
            value = make()
            self.barrier("preparing files")
            return value
        self.barrier("preparing files")
        return make()

    def mean(self, values: Tensor) -> Tensor:
        """Average over processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]


_joined: Process | None = None


@contextmanager
def process_group(timeout_minutes: float = 10.0) -> Iterator[Process]:
    """Join the processes that torchrun started (NCCL with GPUs, gloo without), or be the only one.

    Inside another `process_group()` it is that one. A collective that waits longer than `timeout_minutes` for a rank
    ends the process, so that a lost rank does not leave the others hanging. Under torchrun a process also ends when
    torchrun is gone.

    Raises:
        InputError: the launcher's environment variables contradict each other, or there are fewer GPUs than processes.
    """
    global _joined
    if _joined is not None:
        yield _joined
        return
    place = read_place()
    device = _device(place)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        exit_with_parent("torchrun is gone: this process ends, too; start the run again")
    if place.world_size == 1:
        yield Process(0, 0, 1, device)
        return
    process = _joined = _join(place, device, timedelta(minutes=timeout_minutes))
    try:
        with _lost_processes_told():
            yield process
    finally:
        _joined = None
        dist.destroy_process_group()
    process.leave()


@contextmanager
def _lost_processes_told() -> Iterator[None]:
    """Have the loss of another process, or of the store, told in one line.

    Raises:
        ConnectionError: a process is gone, or did not come to a collective.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no type of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = printable(str(error).splitlines()[0], 200)
        raise ConnectionError(
            f"another process of this run is gone or hangs: look for its own words above, then start the run again; "
            f"the last checkpoint counts ({reason})"
        ) from None


def device_name(device: torch.device) -> str:
    """The name of the GPU, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def describe_device(device: torch.device) -> str:
    """The device for people: `cuda:0 NVIDIA H100 80GB HBM3` or `CPU, 2 threads`."""
    if device.type == "cuda":
        return f"{device} {device_name(device)}"
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"


def _device(place: Place) -> torch.device:
    """The GPU of this process, made the current one, or the CPU where there is no GPU.

    Raises:
        InputError: this machine runs more processes than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if place.local_rank >= gpus:
        raise InputError(
            f"LOCAL_RANK is {place.local_rank}, but this machine shows {counted(gpus, 'GPU')}: start no more processes "
            "on it than that (torchrun --nproc_per_node), or set CUDA_VISIBLE_DEVICES= to run on CPUs"
        )
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device


def _join(place: Place, device: torch.device, timeout: timedelta) -> Process:
    """Meet the other processes at the address in torchrun's environment variables.

    Raises:
        OSError: nobody answers there, or the address is taken.
    """
    try:
        shared, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
        raise ConnectionError(f"the processes do not meet at {where}: {str(error).splitlines()[0]}") from error
    store = dist.PrefixStore(_agree_on_name(shared, rank, world_size, timeout), shared)
    # Naming the device binds NCCL to it; gloo takes none.
    bound = device if device.type == "cuda" else None
    dist.init_process_group(
        "nccl" if bound else "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=bound
    )
    return Process(rank, place.local_rank, world_size, device, dist.PrefixStore("lvsm", store), place.one_machine)


def _agree_on_name(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name for this group of processes that no earlier group had, so that what those left in `store` is not met.

    torchrun keeps its store over restarts: new processes would find the addresses of dead ones there and wait for them.
    So everyone says hello with a word of its own, and the main process answers each word with the name.

    Raises:
        TimeoutError: names the ranks that did not come within `timeout`.
    """
    if rank > 0:
        word = uuid.uuid4().hex
        store.set(f"hello/{rank}", word)
        try:
            store.wait([f"name/{word}"], timeout)
        except RuntimeError as error:
            raise TimeoutError(f"rank 0 did not come within {timeout}") from error
        name = store.get(f"name/{word}").decode()
        store.set(f"{name}/here/{rank}", "")
        return name
    name = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    while missing := [other for other in range(1, world_size) if not store.check([f"{name}/here/{other}"])]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"ranks {missing} did not come within {timeout}")
        for other in missing:
            # The word may still be that of a dead process; then the living one's is answered next time.
            if store.check([f"hello/{other}"]):
                store.set(f"name/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(_PAUSE)
    return name


@contextmanager
def only_run(process: Process, folder: Path, key: str) -> Iterator[None]:
    """`only_writer` for all processes of a run: the main one has the lock, and if it is refused, so is every other.

    Raises:
        InputError, OSError: as `only_writer`; on every process.
    """
    refusal: Exception | None = None
    with ExitStack() as held:
        if process.is_main:
            try:
                held.enter_context(only_writer(folder, key))
            except (InputError, OSError) as error:
                refusal = error
        reason = process.broadcast(None if refusal is None else str(refusal))
        if refusal is not None:
            raise refusal
        if reason is not None:
            raise InputError(reason)
        yield
