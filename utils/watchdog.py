"""A watchdog: says for which rank a stuck run is waiting."""

import logging
import threading
import time
from types import TracebackType

from utils.cli import leave_at_once
from utils.distributed import Process

log = logging.getLogger("lvsm")

# What a process notes while it waits for its loader processes.
WAITING_FOR_DATA = "waiting for data"
# Limits without a new note after which a wait for data is ended, if nothing else has ended it: torch's wait for a batch
# has an end, but not what it reads of it from a loader process that was stopped meanwhile.
_PATIENCE = 3
# Seconds that the end of the watch waits for its thread, which may be asking the store.
_FAREWELL = 1.0


class Watchdog:
    """Keeps what every process is doing in their common store; when nothing moves, the main process tells.

    A rank that hangs stops all others at their next collective, whose timeout then names a collective, not a rank.
    Notes are taken, and looked at, inside `with watchdog:`.

    Args:
        stalled_after: seconds without a new note after which the main process says where all stand; if it waits for
            data itself, three times as many end it.
    """

    def __init__(self, process: Process, stalled_after: float) -> None:
        self._process = process
        self._limit = stalled_after
        self._noted = time.monotonic()
        self._told = False
        self._doing = "starting"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watchdog":
        self.note("starting")
        if self._process.is_main:
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._process.is_main:
            self._thread.join(_FAREWELL)

    def note(self, doing: str) -> None:
        """Say what this process does from now on."""
        if self._process.store is not None:
            self._process.store.set(f"doing/{self._process.rank}", doing)
        self._doing = doing
        self._noted = time.monotonic()
        self._told = False

    def _look(self) -> None:
        while not self._over.wait(self._limit / 10):
            stalled = time.monotonic() - self._noted
            if stalled > self._limit and not self._told:
                self._told = True
                log.error("NO PROGRESS for %.0f seconds: %s", stalled, self._describe())
            if stalled > _PATIENCE * self._limit and WAITING_FOR_DATA in self._doing:
                leave_at_once(
                    f"error: no data has come for {stalled:.0f} seconds, the loader processes hang: ended; the last "
                    "checkpoint counts (training.distributed_timeout_minutes: how long to wait)",
                    1,
                )

    def _describe(self) -> str:
        text = describe(self._everybody())
        hint = "; does the file system of the images answer?" if WAITING_FOR_DATA in text else ""
        return f"{text}{hint}"

    def _everybody(self) -> list[str]:
        """What every rank does; without the store, this one alone."""
        store = self._process.store
        keys = [f"doing/{rank}" for rank in range(self._process.world_size)]
        if store is None:
            return [self._doing]
        try:
            return [store.get(key).decode() if store.check([key]) else "starting" for key in keys]
        except RuntimeError:  # the store is gone with the process that held it
            return [self._doing]


def describe(doing: list[str]) -> str:
    """What the ranks do, those in the rarest state first: they are the ones that others wait for."""
    groups: dict[str, list[int]] = {}
    for rank, text in enumerate(doing):
        groups.setdefault(text, []).append(rank)
    return "; ".join(f"{text} (rank {_ranks(group)})" for text, group in sorted(groups.items(), key=_size))


def _size(group: tuple[str, list[int]]) -> int:
    return len(group[1])


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
