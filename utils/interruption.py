"""Signals that ask a run to stop: SIGTERM and SIGUSR1, as schedulers send them."""

import logging
import signal
from collections import deque
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from utils.distributed import Process

log = logging.getLogger("lvsm")

# Updates between a request on one rank and the agreed end: by then its exchange has long finished, so that reading the
# outcome waits for nothing.
_LAG = 2


class Interruption:
    """Turns a signal on any rank into one decision of all ranks, without waiting for the device.

    Signals are caught from construction on.
    """

    def __init__(self, process: Process) -> None:
        self._process, self._requested = process, False
        self._exchanged: deque[_HostCopy] = deque()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._request)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        log.warning("%s: finishing the step, saving and stopping", signal.Signals(number).name)
        self._requested = True

    def agreed(self) -> bool:
        """Whether all ranks stop now; to be called by every rank after every update."""
        if self._process.world_size == 1:
            return self._requested
        flag = torch.tensor(float(self._requested), device=self._process.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self._exchanged.append(_HostCopy(flag))
        return len(self._exchanged) > _LAG and self._exchanged.popleft().value() > 0


class _HostCopy:
    """A device scalar on its way to the host; only `value` waits for it."""

    def __init__(self, scalar: Tensor) -> None:
        self._event = torch.cuda.Event() if scalar.is_cuda else None
        self._host = torch.empty((), pin_memory=scalar.is_cuda).copy_(scalar, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def value(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return self._host.item()


def shield_worker(_worker: int) -> None:
    """Let a loader process outlive a signal to the whole process group; a second SIGTERM, as its parent's, ends it.

    Schedulers signal every process of a job; without its loaders, the run could not finish its step.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
