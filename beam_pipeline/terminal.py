"""What a terminal does to a job: streams that are closed, are read no more or cannot show a name, Ctrl-C; and
what a shell leaves to us: `~` behind an equals sign, and pipes, which can be read only once.
"""

import argparse
import contextlib
import errno
import io
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from transforms.storage.uris import is_local

_PATHS = (
    "images",
    "labels",
    "relabel",
    "remove",
    "output",
    "data",
    "model",
    "local_model",
    "index",
    "truth",
    "prices",
    "sample_submission",
    "query_store",
    "predictions",
    "store",
    "run",
    "calibration",
    "negatives",
    "names",
    "against",
)

_copies: set[str] = set()

INTERRUPTED = 130  # exit code of a process that SIGINT ended, as shells have it


class _Lasting(io.TextIOWrapper):
    """A stream that shows what it can; when nobody reads it any more, it goes on into nothing.

    Attributes:
      lost: why what was printed did not arrive; "" where it did, or nobody reads it.
    """

    lost = ""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as e:
            self._let_go(e)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as e:
            self._let_go(e)

    def _let_go(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            self.lost = os.strerror(error.errno).lower()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())  # what is held back goes there too
        os.close(nothing)


def hold_streams() -> None:
    """Keeps whatever becomes of standard output and standard error from ending this process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would get its number, and what is printed with it
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            buffer, encoding = open(number, "wb", closefd=False), "utf-8"  # noqa: SIM115
        else:
            encoding, buffer = stream.encoding, stream.detach()
        held = _Lasting(buffer, encoding, errors="backslashreplace", line_buffering=True)
        setattr(sys, name, held)
        setattr(sys, f"__{name}__", held)


def ended(code: int) -> int:
    """The exit code of a command that ends with `code`: with a word, not 0, where its output had no room."""
    out = sys.stdout
    if isinstance(out, _Lasting):
        out.flush()
        if out.lost:
            print(f"landmarks: error: standard output: {out.lost}", file=sys.stderr)
            return code or 1
    return code


def on_interrupt(release: Callable[[], None]) -> None:
    """From now on SIGINT ends this process at once, with a line and no traceback; `release` is called before.

    Threads at work are not waited for: what they leave is what a killed process leaves, and a later start
    goes on from it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell wants it in the background
        return

    def leave(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and the supervisor both send one
        with contextlib.suppress(OSError):
            os.write(2, b"landmarks: interrupted; the same command goes on from here\n")
        try:
            release()
            _end_children()
        finally:
            os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, leave)


def _end_children() -> None:
    with contextlib.suppress(OSError):  # elsewhere than on Linux they end by themselves
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as f:
                for child in f.read().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(child), signal.SIGTERM)


@contextlib.contextmanager
def resolved(args: argparse.Namespace) -> Iterator[None]:
    """Writes out `~` in the paths of `args`, and puts files in the place of pipes during the block."""
    with contextlib.ExitStack() as stack:
        for name in _PATHS:
            value = getattr(args, name, None)
            if isinstance(value, str):
                setattr(args, name, _resolved(value, stack))
            elif isinstance(value, list):
                setattr(args, name, [_resolved(one, stack) for one in value])
        yield


def is_copy(path: str) -> bool:
    """Whether a file stands in the place of a pipe, and is gone when the command ends."""
    return path in _copies


def _resolved(value: str, stack: contextlib.ExitStack) -> str:
    mark = "@" if value.startswith("@") else ""
    path = os.path.expanduser(value[len(mark) :])
    try:
        is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        is_pipe = False
    if not is_pipe or not path.startswith("/dev/"):  # a pipe with a name may have no writer
        return mark + path
    with open(path, "rb") as f:
        content = f.read()
    if mark:  # its paths start at the working folder, since it has none itself
        lines = (line.strip() for line in os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).splitlines())
        content = b"".join(
            os.fsencode(os.path.abspath(line) if is_local(line) else line) + b"\n" for line in lines if line
        )
    copy = os.path.join(stack.enter_context(_scratch()), os.path.basename(path))
    _copies.add(copy)
    with open(copy, "wb") as f:
        f.write(content)
    return mark + copy


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    owner, folder = os.getpid(), tempfile.mkdtemp(prefix="landmarks-")
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # and not a child, after which another is started
            shutil.rmtree(folder, ignore_errors=True)
