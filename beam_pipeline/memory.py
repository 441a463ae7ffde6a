"""Too little memory to start, or go on, with: a line that says so in the place of a traceback."""

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator

# What the loader of libraries, numpy's import and Python's threads say without memory.
_SAID = ("failed to map segment", "cannot allocate memory", "can't start new thread", "std::bad_alloc")

# Bytes of addresses, measured.
TO_START, FOR_PIPELINES, _OF_A_CORE = 2_100_000_000, 2_600_000_000, 200_000_000


def is_lack(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of too little memory."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if any(text in str(error).lower() for text in _SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def limit() -> str:
    """The limit of this process's memory in words, such as may stand behind an error; "" for none."""
    bytes_ = resource.getrlimit(resource.RLIMIT_AS)[0]
    if bytes_ == resource.RLIM_INFINITY:
        return ""
    return f"; this process may have {bytes_ // 1_000_000:,} MB (ulimit -v {bytes_ // 1024})"


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends this process with a word where the block has too little memory."""
    try:
        yield
    except Exception as e:
        if not is_lack(e):
            raise
        raise SystemExit(f"landmarks: error: {_text(type(e).__name__)}") from None


def lack(needed: int, workers: int = 1) -> str:
    """Why `needed` bytes of addresses, and what libraries take for each core or worker thread, are more than
    this process may have; "" where they are not. Asked beforehand, as libraries end the process or hang.
    """
    needed += _OF_A_CORE * max(workers, len(os.sched_getaffinity(0)))
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    return _text(f"needs {needed // 1_000_000:,} MB") if resource.RLIM_INFINITY != allowed < needed else ""


def watch_threads(release: Callable[[], None]) -> None:
    """From now on a thread that ends for a lack of memory ends this process with a word, and `release` is
    called before: whoever waits for the thread would wait for ever.
    """
    before = threading.excepthook

    def leave(args: threading.ExceptHookArgs) -> None:
        if not is_lack(args.exc_value):
            before(args)
            return
        with contextlib.suppress(OSError):
            os.write(2, f"landmarks: error: {_text(args.exc_type.__name__)}\n".encode())
        try:
            release()
        finally:
            os._exit(1)

    threading.excepthook = leave


def _text(why: str) -> str:
    return f"not enough memory: {why}{limit()}; the same command goes on where there is more"
