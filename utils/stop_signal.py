"""Signals that ask a run to stop: SIGTERM and SIGUSR1, as schedulers send them, and Ctrl-C."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from utils.cli import leave_at_once
from utils.distributed import Process
from utils.host_copy import HostCopy
from utils.parallel import exit_with_parent

log = logging.getLogger("lvsm")

T = TypeVar("T")

# Those that this system has.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))

# Updates between a request on one rank and the agreed end: by then its exchange has long finished, so that reading the
# outcome waits for nothing.
_LAG = 2
# Seconds that one of several ranks goes on waiting for data when it is asked to stop.
_GRACE = 8.0
# What a shell reports of a program that a signal ended: 128 and the signal's number.
_ENDED_BY_SIGNAL = 128


class Stopped(BaseException):
    """A lone process was asked to stop while it waited for data; no `except Exception` on the way takes it."""


class StopSignal:
    """Turns a signal on any rank into one decision of all ranks, without waiting for the device.

    Signals are caught inside `with stop_signal:`. A second Ctrl-C ends the process at once.

    Attributes:
        requested: whether this rank was asked to stop.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.requested = False
        self._exchanged: deque[HostCopy] = deque()
        self._before: dict[int, Any] = {}
        # Of the wait that goes on; None while there is none.
        self._wait: object | None = None

    def __enter__(self) -> "StopSignal":
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether all ranks stop now; to be called by every rank after every update."""
        if self._process.world_size == 1:
            return self.requested
        # Not from a number on the host, whose copy would wait for the GPU.
        flag = torch.full((), float(self.requested), device=self._process.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self._exchanged.append(HostCopy(flag))
        return len(self._exchanged) > _LAG and self._exchanged.popleft().read().item() > 0

    def agreed_now(self) -> bool:
        """Like `agreed`, but it waits for all ranks."""
        return any(self._process.gather(self.requested))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait inside for what may never come; also then a request is answered within seconds.

        One of several ranks cannot stop alone while the others wait for it in a collective: it goes on waiting for a
        while, then ends its process, upon which the launcher ends the others.

        Raises:
            Stopped: a lone process was asked to stop.
        """
        self._wait = object()
        try:
            if self.requested:
                self._bound_wait()
            yield
        finally:
            self._wait = None

    def until_requested(self, items: Iterator[T]) -> Iterator[T]:
        """The items up to a request to stop; to wait for one is `waiting`."""
        while not self.requested:
            try:
                with self.waiting():
                    item = next(items)
            except (StopIteration, Stopped):
                return
            yield item

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            leave_at_once("second Ctrl-C: ended; the last checkpoint counts", _ENDED_BY_SIGNAL + number)
        if not self.requested:
            again = " (Ctrl-C again ends at once)" if number == signal.SIGINT else ""
            log.warning("%s: finishing the step, saving and stopping%s", signal.Signals(number).name, again)
        self.requested = True
        if self._wait is not None:
            self._bound_wait()

    def _bound_wait(self) -> None:
        if self._process.world_size == 1:
            self._wait = None
            raise Stopped
        timer = threading.Timer(_GRACE, self._end_wait, [self._wait])
        timer.daemon = True
        timer.start()

    def _end_wait(self, wait: object) -> None:
        if self._wait is wait:
            message = f"asked to stop, but no data came for {_GRACE:g} seconds: ended; the last checkpoint counts"
            leave_at_once(message, _ENDED_BY_SIGNAL + signal.SIGTERM)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start loader processes inside: they inherit blocked signals, which `shield_worker` then reads."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_worker(_worker: int) -> None:
    """Let a loader process outlive signals to the whole process group, but not SIGTERM from the one that started it.

    Schedulers and Ctrl-C signal every process of a job; without its loaders, the run could not finish its step. If the
    parent is killed, the loader process ends too, also while it holds more batches than a pipe takes. Where the system
    does not tell who sent a signal, SIGTERM is ignored, too: the run ends with SIGKILL what does not end by itself.
    """
    exit_with_parent()
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    starter = multiprocessing.parent_process()
    if not hasattr(signal, "sigwaitinfo") or starter is None:
        return
    pid = starter.pid

    def wait_for_signal() -> None:
        while True:
            received = signal.sigwaitinfo(_SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == pid:
                os._exit(0)

    threading.Thread(target=wait_for_signal, daemon=True).start()


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM end a run that can be started again as Ctrl-C does, so that no worker goes on."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        log.warning("%s: stopping; run again to go on", signal.Signals(number).name)
        sys.exit(_ENDED_BY_SIGNAL + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
