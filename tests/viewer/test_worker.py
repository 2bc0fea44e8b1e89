"""One thread for many clients: the latest wish counts, jobs are all done, failures stop nothing."""

import logging
import threading
import time

import pytest

from tests.runs import wait_for
from viewer import worker as module
from viewer.worker import Stopped, Worker


@pytest.fixture
def worker():
    worker = Worker("tested")
    yield worker
    worker.stop()


@pytest.fixture
def held(worker):
    """The worker is busy until the event that this gives is set."""
    release = threading.Event()
    begun = threading.Event()

    def hold():
        begun.set()
        release.wait()

    worker.wish("held", hold)
    begun.wait()
    yield release
    release.set()


def test_the_latest_wish_of_each_wins(worker, held):
    done = []
    for number in range(50):
        for key in "ab":
            worker.wish(key, lambda key=key, number=number: done.append((key, number)))
    worker.wish("gone", lambda: done.append("gone"))
    worker.forget("gone")
    held.set()
    wait_for(lambda: len(done) == 2)
    assert worker.run(lambda: done) == [("a", 49), ("b", 49)]


def test_who_wishes_all_the_time_does_not_keep_others_from_their_turn(worker, held):
    done = []

    def again():
        done.append("busy")
        worker.wish("busy", again)

    worker.wish("busy", again)
    worker.wish("other", lambda: done.append("other"))
    held.set()
    wait_for(lambda: "other" in done)
    worker.forget("busy")
    assert done.index("other") <= 1


def test_jobs_come_first_and_the_background_last(worker, held):
    done = []
    threads = [
        threading.Thread(target=lambda: worker.run_later(lambda: done.append("background"))),
        threading.Thread(target=lambda: worker.run(lambda: done.append("job"))),
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: worker._jobs and worker._later)
    worker.wish("picture", lambda: done.append("picture"))
    held.set()
    for thread in threads:
        thread.join()
    assert done == ["job", "picture", "background"]


def test_the_background_gets_its_turn_in_the_end(worker, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)

    def again():
        worker.wish("busy", again)

    worker.wish("busy", again)
    assert worker.run_later(lambda: "done") == "done"
    worker.forget("busy")


def test_a_wish_waits_for_its_time_but_never_delays_another(worker):
    times = []
    start = time.monotonic()
    worker.wish("late", lambda: times.append(time.monotonic() - start), after=0.2)
    wait_for(lambda: times)
    assert times[0] >= 0.2
    # What is due stays due, whatever is wished later for later.
    release = threading.Event()
    worker.wish("holding", release.wait)
    worker.wish("soon", lambda: times.append("first"))
    worker.wish("soon", lambda: times.append("second"), after=1e6)
    release.set()
    wait_for(lambda: len(times) == 2)
    assert times[1] == "second"


def test_failures_are_told_and_stop_nothing(worker, caplog):
    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.ERROR):
        worker.run(lambda: 1 / 0)
    worker.wish("broken", lambda: 1 / 0)
    assert worker.run(lambda: 7) == 7
    wait_for(lambda: caplog.records)
    assert caplog.records[0].exc_info


def test_at_the_end_nobody_waits_for_ever(worker, held):
    refused = []

    def wait():
        try:
            worker.run(lambda: None)
        except Stopped:
            refused.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: worker._jobs)
    threading.Timer(0.1, held.set).start()
    worker.stop()
    thread.join()
    assert refused
    with pytest.raises(Stopped):
        worker.run(lambda: None)
