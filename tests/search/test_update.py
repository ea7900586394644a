"""Reading ahead while the model computes."""

import threading
import time

import pytest

from retrieval.search.update import in_thread


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_items_are_read_ahead_in_order_and_not_too_far():
    given, threads = [], set()

    def items():
        for number in range(20):
            threads.add(threading.get_ident())
            given.append(number)
            yield number

    reading = in_thread(items(), 3)
    taken = []
    for number in reading:
        taken.append(number)
        wait_for(lambda: len(given) == min(20, len(taken) + 3))
        time.sleep(0.002)  # negative control of the bound: time to read too much
        assert len(given) == min(20, len(taken) + 3)
    assert taken == list(range(20)) and threading.get_ident() not in threads


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise OSError("gone")

    taken = []
    with pytest.raises(OSError, match="gone"):
        for number in in_thread(items(), 8):
            taken.append(number)
    assert taken == [1, 2]


def test_a_closed_one_reads_no_more():
    before, given = threading.active_count(), []

    def items():
        for number in range(1000):
            given.append(number)
            yield number

    reading = in_thread(items(), 2)
    assert next(reading) == 0
    reading.close()
    count = len(given)
    time.sleep(0.01)
    assert len(given) == count <= 4 and threading.active_count() == before
