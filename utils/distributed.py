"""One process or many: torchrun's environment, collectives that also work alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among all; a plain `python` run is process 0 of 1."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def first_on_machine(self, make: Callable[[], T]) -> T:
        """`make()`, run by one process of each machine before the others, which find what it downloaded."""
        if self.local_rank == 0:
            value = make()
            self.barrier()
            return value
        self.barrier()
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


@contextmanager
def process_group(timeout_minutes: float = 10.0) -> Iterator[Process]:
    """Join the processes that torchrun started (NCCL with GPUs, gloo without), or be the only one.

    Inside another `process_group()` it is that one. A collective that waits longer than `timeout_minutes` for a rank
    ends the process, so that a lost rank does not leave the others hanging.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Process(0, 0, 1, device)
        return
    joins = not dist.is_initialized()
    if joins:
        # Naming the device binds NCCL to it; gloo takes none.
        bound = device if device.type == "cuda" else None
        dist.init_process_group(
            "nccl" if bound else "gloo", timeout=timedelta(minutes=timeout_minutes), device_id=bound
        )
    try:
        yield Process(dist.get_rank(), local_rank, world_size, device)
    finally:
        if joins:
            dist.destroy_process_group()
