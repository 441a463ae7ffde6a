"""Threads that work ahead of a consumer, in order, and beside a block."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map(function, items)` with the calls made in `pool`, at most `ahead` of them beyond the one whose
    result is waited for.

    Unlike Executor.map it takes no more of `items` than that, so that what is large is never there all at
    once. An iterator that is given up calls off the calls that have not begun.
    """
    waiting: collections.deque[Future[R]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextlib.contextmanager
def beside(watch: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Runs `watch` in a thread called `name` while the block runs, which at its end sets the event."""
    ended = threading.Event()
    thread = threading.Thread(target=watch, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
