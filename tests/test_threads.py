"""Working ahead: in order, and no further ahead than asked."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from transforms.processes.threads import map_ahead


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize("count", [0, 1, 2, 20])
@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_results_come_in_the_order_of_the_items(pool, count, ahead):
    assert list(map_ahead(pool, lambda i: i * i, range(count), ahead)) == [i * i for i in range(count)]


def test_items_are_taken_only_as_far_ahead_as_asked(pool):
    taken = []
    results = map_ahead(pool, str, (taken.append(i) or i for i in range(100)), 4)
    assert next(results) == "0" and taken == [0, 1, 2, 3, 4]
    assert next(results) == "1" and taken == [0, 1, 2, 3, 4, 5]


def test_calls_overlap_with_the_consumer(pool):
    second = threading.Event()
    results = map_ahead(pool, lambda i: second.set() if i == 1 else None, range(3), 2)
    next(results)
    assert second.wait(30)  # nobody has asked for the second result


def test_an_error_comes_in_its_turn_and_calls_off_the_rest():
    begun = []

    def fail(i):
        begun.append(i)
        if i == 1:
            raise ValueError("one")
        return i

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, fail, range(100), 2)
        assert next(results) == 0
        with pytest.raises(ValueError, match="one"):
            next(results)
    assert len(begun) <= 4
