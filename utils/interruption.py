"""Signals that ask a run to stop: SIGTERM and SIGUSR1, as schedulers send them."""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from utils.distributed import Process
from utils.host_copy import HostCopy
from utils.parallel import exit_with_parent

log = logging.getLogger("lvsm")

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

# Updates between a request on one rank and the agreed end: by then its exchange has long finished, so that reading the
# outcome waits for nothing.
_LAG = 2


class Interruption:
    """Turns a signal on any rank into one decision of all ranks, without waiting for the device.

    Signals are caught from construction on.
    """

    def __init__(self, process: Process) -> None:
        self._process, self._requested = process, False
        self._exchanged: deque[HostCopy] = deque()
        for number in _SIGNALS:
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
        self._exchanged.append(HostCopy(flag))
        return len(self._exchanged) > _LAG and self._exchanged.popleft().read().item() > 0


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start loader processes inside: they inherit blocked signals, which `shield_worker` then reads."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_worker(_worker: int) -> None:
    """Let a loader process outlive signals to the whole process group, but not SIGTERM from its own parent.

    Schedulers signal every process of a job; without its loaders, the run could not finish its step. If the parent is
    killed, the loader process ends too, also while it holds more batches than a pipe takes.
    """
    exit_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    parent = os.getppid()

    def watch() -> None:
        while True:
            received = signal.sigwaitinfo(_SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == parent:
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
