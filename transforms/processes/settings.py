"""Settings of the whole process, held while work needs them and given back after it.

A library's setting is often one for all threads. Whoever imports a step here, or runs one in a process of
their own, finds such settings as they were.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import cv2
from threadpoolctl import threadpool_limits


class Held(contextlib.ContextDecorator):
    """A context manager, and decorator, that any number of threads are in at once: the first one in makes the
    setting, the last one out takes it back.

    Args:
      setting: makes a context manager that sets it and puts back what was there before.
    """

    def __init__(self, setting: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._setting = setting
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._active = self._setting()
                self._active.__enter__()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._active.__exit__(None, None, None)


@Held
@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV and BLAS work with one thread each: extraction and verification run inside Beam's workers, one
    per core, where threads of their own would only fight for the cores. OpenBLAS starts a thread per core for
    every product, in each worker; waiting for each other they take many times as long.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        cv2.setNumThreads(threads)
