"""Keeps a job going when native code takes its process down, on the local runner.

A decoder or a model can die of SIGSEGV, SIGFPE or an abort, and no exception tells of which photograph. So
the job runs in a child process that leaves a note of each photograph at work
(transforms/processes/crash_notes.py). When it dies so, it is started again with the same arguments and goes
on where it stopped, since units are written once. Photographs noted at the death are first tried alone, one
after the other; one that kills the process again becomes a failure row of kind "crashed", and the rest of its
unit goes on.

The supervisor loads neither Beam nor TensorFlow before it forks. Other engines start a dead worker again by
themselves.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from beam_pipeline import memory, terminal
from transforms.processes.crash_notes import IN_FLIGHT

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL})
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

# Deaths in a row between which nothing was finished and no culprit was found.
_MAX_FRUITLESS_DEATHS = 3


def run(job: Callable[[], int], outputs: Sequence[str]) -> int:
    """Runs `job` in a child process until it ends by itself, and returns its exit code; SystemExit, in the
    child.

    A signal that ends this process ends the child, and the other way round.

    Args:
      outputs: folders in which the job leaves what it finishes; those of an object store are not looked at.
    """
    supervisor, folder = os.getpid(), tempfile.mkdtemp(prefix="landmarks-")
    try:
        code = _supervise(job, outputs, folder)
    finally:
        if os.getpid() == supervisor:
            shutil.rmtree(folder)
    if code >= 0:
        return code
    if code == -signal.SIGKILL:
        print(
            "landmarks: error: the job was killed, by the system where memory is short; the same command "
            "goes on from here",
            file=sys.stderr,
        )
    else:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)  # so that whoever started this process sees how the child ended
    return 128 - code


def _supervise(job: Callable[[], int], outputs: Sequence[str], folder: str) -> int:
    """The exit code of the last child; -N where it died of a signal N that is no crash."""
    for name in ("notes", "suspects", "crashed"):
        os.mkdir(os.path.join(folder, name))
    fruitless, progress = 0, _progress(folder, outputs)
    while True:
        child, code = _run_child(job, folder)
        if code == terminal.INTERRUPTED:
            return 1
        if -code not in _CRASHES and not (code == 1 and _worker_died(folder, child)):
            return code
        death = f"the process died of {signal.Signals(-code).name}" if code < 0 else "a worker process died"
        culprit = _find_culprit(folder) if code != -signal.SIGBUS else _forget(folder)
        before, progress = progress, _progress(folder, outputs)
        fruitless = 1 if progress > before else fruitless + 1
        if culprit:
            print(
                f"landmarks: {death} over {culprit!r}, which becomes a failure row; going on", file=sys.stderr
            )
        elif fruitless < _MAX_FRUITLESS_DEATHS:
            print(
                f"landmarks: {death}; going on, first with the photographs it was at, one by one",
                file=sys.stderr,
            )
        else:
            print(
                f"landmarks: error: {death}, {fruitless} times without getting on{memory.limit()}",
                file=sys.stderr,
            )
            return 1


def _run_child(job: Callable[[], int], folder: str) -> tuple[int, int]:
    """The child's process id and exit code, -N where it died of signal N."""
    child = os.fork()
    if child == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to work on unsupervised
        os.environ[IN_FLIGHT] = folder  # worker processes inherit it
        sys.exit(job())

    def pass_on(number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)  # a terminal sends its Ctrl-C to the child too, which takes both for one

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        return child, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _worker_died(folder: str, child: int) -> bool:
    """Whether another process than the child left a note: with `multi_processing` its workers, whose death
    fails the pipeline.
    """
    return any(not note.startswith(f"{child}-") for note in os.listdir(os.path.join(folder, "notes")))


def _find_culprit(folder: str) -> str:
    """Sorts out the notes of a dead child; the image_id of a photograph that it died of alone, "" for
    none.
    """
    notes, suspects, crashed = (os.path.join(folder, name) for name in ("notes", "suspects", "crashed"))
    trying = os.listdir(suspects)  # some are left only where the child died in trying them
    culprit = ""
    for note in os.listdir(notes):
        path = os.path.join(notes, note)
        image_id = _image_id(path)
        name = hashlib.sha256(image_id.encode()).hexdigest() + ".json"
        if name in trying:
            os.replace(os.path.join(suspects, name), os.path.join(crashed, name))
            culprit = image_id
        if image_id and not trying:
            os.replace(path, os.path.join(suspects, name))
        else:
            os.remove(path)
    return culprit


def _forget(folder: str) -> str:
    """Drops the notes of a child that SIGBUS killed: a file that it had in memory, a shard or a model, could
    not be read or grew short, which is no photograph's fault.
    """
    for note in os.scandir(os.path.join(folder, "notes")):
        os.remove(note)
    return ""


def _image_id(path: str) -> str:
    """The image_id in a note; "" for a note that the death cut short."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    return json.loads(text)["image_id"] if text.endswith("}") else ""


def _progress(folder: str, outputs: Sequence[str]) -> tuple[int, int]:
    """Culprits found, and files finished; grows with each."""
    crashed = len(os.listdir(os.path.join(folder, "crashed")))
    return crashed, sum(
        not name.startswith(".") for root in outputs for _, _, names in os.walk(root) for name in names
    )
