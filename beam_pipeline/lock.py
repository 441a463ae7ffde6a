"""One run at a time on an output: a lock file that says who holds it, and that the dead do not keep.

A holder renews its lock every _HEARTBEAT seconds. A lock is dead when its process is gone (seen from the same
machine), or when it has not been renewed for _PATIENCE seconds (seen from anywhere). Locally and on NFS a
lock is taken by making its file where none stands, which only one of several can do, and which asks less of a
file system than a hard link: exFAT, FUSE and some network disks have none. One that is still empty after
_WRITING seconds is of a process that was killed in between. In an object store it is taken, taken over
from the dead and renewed by a write on the condition that nothing was written meanwhile (If-None-Match and
If-Match of S3, generations of GCS), which only one of several can do. Other file systems of Beam have nothing
alike: there a lock is written, read back and believed. Should two runs with the same arguments get past it,
they write the same shards, each whole: the lock saves their work, it does not guard correctness.
"""

import contextlib
import fcntl
import functools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from beam_pipeline import layout
from beam_pipeline.config import ConfigError
from transforms.processes.threads import beside
from transforms.storage import files

LOCK = ".lock.json"

_HEARTBEAT = 30.0
_PATIENCE = 300.0
_WRITING = 10.0

_held: list[tuple[str, dict[str, Any]]] = []  # by this process


@contextlib.contextmanager
def held(root: str) -> Iterator[None]:
    """Holds the lock of `root`, a folder that is made as needed, as long as the block runs; first clears what
    killed writers left.

    Raises:
      ConfigError: another run holds it; the text says which.
    """
    uri, mine = files.join(root, LOCK), {**_identity(), "token": uuid.uuid4().hex, "since": time.time()}
    dead: dict[str, Any] | None = None
    while not _take(uri, mine, dead):
        dead, holder = None, _read(uri, _WRITING)
        if holder is None:
            continue  # released meanwhile
        if not holder:
            logging.warning("%s: a killed process left an empty lock behind; going on", root)
            dead = holder
            continue
        if _alive(holder):
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(holder["since"]))
            raise ConfigError(
                f"{root} is being written by process {holder['pid']} on {holder['host']} since {since} UTC; "
                "wait for it to end, or stop it"
            )
        logging.warning(
            "%s: process %d on %s left its lock behind; going on", root, holder["pid"], holder["host"]
        )
        dead = holder
    _held.append((uri, mine))
    try:
        with beside(functools.partial(_beat, uri, mine), "lock"):
            layout.delete_temporaries(root)
            yield
    finally:
        _held.remove((uri, mine))
        _remove(uri, mine)


def release() -> None:
    """Gives back all locks that this process holds, which is about to end."""
    for uri, mine in _held:
        _remove(uri, mine)


def _identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _machine() -> str | None:
    """Names where a process id means something: one boot of one kernel, and a namespace of it; None where
    that cannot be told.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return f"{f.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When process `pid` began, in clock ticks after the boot; None for one that is gone or only waits for
    its parent.

    Not by psutil: it tells the time of day, and another one once the clock has been set.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            fields = f.read().rpartition(")")[2].split()  # the name before may hold anything
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # proc(5): state, starttime


def _alive(holder: dict[str, Any]) -> bool:
    if holder["machine"] is not None and holder["machine"] == _machine():
        return _started(holder["pid"]) == holder["started"]  # another start: the number was given anew
    return time.time() - holder["renewed"] < _PATIENCE


def _take(uri: str, mine: dict[str, Any], dead: dict[str, Any] | None) -> bool:
    """Whether the lock is now ours; False where another lock stands than the `dead` one."""
    mine["renewed"] = time.time()
    if not files.is_local(uri):
        return _swap(uri, dead, mine)
    if dead is not None:
        _remove(uri, dead)
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    # Read again, since who was held up for longer than _WRITING is taken for dead.
    return _create(uri, files.json_bytes(mine)) and (_read(uri) or {}).get("token") == mine["token"]


def _create(uri: str, data: bytes) -> bool:
    """Writes a local file where none stands; False, and nothing done, where one does."""
    try:
        f = open(uri, "xb")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with f:
            f.write(data)
    except OSError:
        files.delete(uri)
        raise
    return True


def _swap(uri: str, old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    return files.swap_remote(uri, None if old is None else files.json_bytes(old), files.json_bytes(new))


def _read(uri: str, patience: float = 0.0) -> dict[str, Any] | None:
    """Who holds a lock: None where there is none, an empty dict where nothing is written to it in `patience`
    seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return files.read_json(uri)
        except OSError:
            return None
        except ValueError:
            if time.monotonic() > deadline:
                return {}
            time.sleep(0.02)


def _remove(uri: str, holder: dict[str, Any]) -> None:
    """Removes the lock if it is still `holder`'s."""
    if not files.is_local(uri):
        if (_read(uri) or {}).get("token") == holder.get("token"):
            files.delete(uri)
        return
    with contextlib.suppress(FileNotFoundError), open(uri, "rb") as f:
        # Of two who find the same dead lock, the slower must not remove the quicker one's new lock.
        with contextlib.suppress(OSError):  # some network disks: there they may meet
            fcntl.flock(f, fcntl.LOCK_EX)
        same = os.path.samestat(os.fstat(f.fileno()), os.stat(uri))
        if same and (_read(uri) or {}).get("token") == holder.get("token"):
            os.remove(uri)


def _beat(uri: str, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT):
        renewed = {**mine, "renewed": time.time()}
        try:
            if not files.is_local(uri):
                if _swap(uri, mine, renewed):
                    mine = renewed
            elif (_read(uri) or {}).get("token") == mine["token"]:
                files.write_json(uri, renewed)
        except OSError as e:
            logging.warning("the lock %s could not be renewed: %s", uri, e)
