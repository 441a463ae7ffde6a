"""Too little memory to start, or go on, with: a line that says so in the place of a traceback."""

import contextlib
import errno
import resource
from collections.abc import Iterator

# What the loader of libraries, numpy's import and Python's threads say without memory.
_SAID = ("failed to map segment", "cannot allocate memory", "can't start new thread", "std::bad_alloc")


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
        raise SystemExit(
            f"landmarks: error: too little memory ({type(e).__name__}){limit()}; the same command goes on "
            "where there is more"
        ) from None
