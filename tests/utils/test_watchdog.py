"""The watchdog ends a wait for data that nothing else ends."""

import os
import queue
import threading
import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers import PATIENCE
from tests.messages import check_names, check_told
from utils.distributed import Process
from utils.watchdog import Watchdog

# They wait for the watchdog.
pytestmark = pytest.mark.slow

LIMIT = 0.1


@pytest.fixture
def ends(monkeypatch):
    """Exit codes with which the process would have ended."""
    codes = queue.Queue()
    hook = threading.excepthook

    def leave(code):
        codes.put(code)
        raise SystemExit

    def tell_but_of_an_end(failure):
        if failure.exc_type is not SystemExit:
            hook(failure)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(threading, "excepthook", tell_but_of_an_end)
    return codes


def process(rank=0, world_size=1):
    return Process(rank, rank, world_size, torch.device("cpu"), dist.HashStore() if world_size > 1 else None)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_wait_for_data_ends_after_three_limits_in_one_line(ends, capsys, caplog, world_size):
    start = time.monotonic()
    with Watchdog(process(world_size=world_size), LIMIT) as watch:
        watch.note("step 2, waiting for data")
        assert ends.get(timeout=PATIENCE) == 1
    assert time.monotonic() - start > 3 * LIMIT
    check_names(capsys.readouterr().err.splitlines()[0], "error: no data", "training.distributed_timeout_minutes")
    check_told(caplog.messages, "step 2, waiting for data")


@pytest.mark.parametrize("doing", ["step 2, computing", "saving after step 2"])
def test_other_work_may_take_longer(ends, caplog, doing):
    with Watchdog(process(), LIMIT) as watch:
        watch.note("step 2, waiting for data")
        watch.note(doing)
        time.sleep(6 * LIMIT)
    assert ends.empty()
    check_told(caplog.messages, doing)


def test_outside_of_the_watch_nothing_ends(ends):
    with Watchdog(process(), LIMIT) as watch:
        watch.note("step 2, waiting for data")
    time.sleep(6 * LIMIT)
    assert ends.empty()


def test_other_ranks_leave_the_end_to_the_main_one(ends):
    with Watchdog(process(rank=1, world_size=2), LIMIT) as watch:
        watch.note("step 2, waiting for data")
        time.sleep(6 * LIMIT)
    assert ends.empty()


class LostStore(dist.HashStore):
    """A store whose process is gone."""

    def check(self, _keys):
        raise dist.DistNetworkError("Broken pipe")


def test_the_watch_outlives_the_store(ends, caplog):
    lost = Process(0, 0, 2, torch.device("cpu"), LostStore())
    with Watchdog(lost, LIMIT) as watch:
        watch.note("step 2, waiting for data")
        assert ends.get(timeout=PATIENCE) == 1
    check_told(caplog.messages, "step 2, waiting for data", "rank 0")


def test_nothing_of_the_watch_goes_on_after_it(ends):
    before = threading.active_count()
    with Watchdog(process(), LIMIT):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
