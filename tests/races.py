"""Threads that want the same thing at once."""

import threading
import time
from collections.abc import Callable

from beam_pipeline import lock
from beam_pipeline.config import ConfigError


def at_once(run: Callable[[], None], end: Callable[[], None] = lambda: None, count: int = 8) -> None:
    """Runs `run` in `count` threads; when all but one have ended, calls `end`, on which that one may wait."""
    start = threading.Barrier(count)

    def begin() -> None:
        start.wait()
        run()

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    while sum(thread.is_alive() for thread in threads) > 1:
        time.sleep(0.01)
    end()
    for thread in threads:
        thread.join()


def holders_of_lock(root: str) -> list[int]:
    """How many were inside as each came in, of many who try to hold the lock of `root` at once."""
    inside, found, end = [], [], threading.Event()

    def run() -> None:
        try:
            with lock.held(root):
                inside.append(1)
                found.append(len(inside))
                end.wait(60)
                inside.pop()
        except ConfigError:
            pass

    at_once(run, end.set)
    return found
