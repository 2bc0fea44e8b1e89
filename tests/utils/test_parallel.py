"""Work in background threads."""

import threading
import time

import pytest

from utils.parallel import Background


def collect(into):
    def consume(items):
        into.append(list(items))

    return consume


def test_items_arrive_in_order_and_leaving_waits_for_all():
    results = []
    with Background(threads=2) as background:
        for start in (0, 10, 20):
            background.feed(collect(results), range(start, start + 10))
    assert sorted(results) == [list(range(s, s + 10)) for s in (0, 10, 20)]


def test_few_items_wait_in_between():
    made, gate = [], threading.Event()

    def items():
        for number in range(20):
            made.append(number)
            yield number

    def consume(received):
        gate.wait(5)
        assert list(received) == list(range(20))

    with Background() as background:
        feeding = threading.Thread(target=background.feed, args=(consume, items()))
        feeding.start()
        time.sleep(0.3)
        # Four in the queue, one in hand.
        assert len(made) == 5
        gate.set()
        feeding.join()


def test_an_error_in_a_thread_is_raised_and_stops_the_feeding():
    made = []

    def items():
        for number in range(1000):
            made.append(number)
            yield number

    def consume(received):
        next(received)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Background() as background:
        background.feed(consume, items())
    assert len(made) < 10


def test_what_could_not_be_made_is_not_taken_for_finished():
    finished = []

    def items():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), Background() as background:
        background.feed(collect(finished), items())
    assert finished == []
