"""What the benchmarks of whole commands share: photographs, and processes that are timed from start to
end.
"""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks import goals
from transforms.processes.threads import beside

ROOT = pathlib.Path(__file__).resolve().parents[1]


def add_photos_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --photos: a folder with photos.csv (id, path, label, kind), if not given LANDMARKS_PHOTOS."""
    folder = os.environ.get("LANDMARKS_PHOTOS")
    parser.add_argument(
        "--photos",
        type=pathlib.Path,
        default=folder,
        required=not folder,
        metavar="DIR",
        help="folder with photos.csv (id, path, label, kind)",
    )


class Photograph(NamedTuple):
    """A row of photos.csv.

    Attributes:
      path: absolute.
      label: "" for none.
    """

    id: str
    path: str
    label: str
    kind: str


def photographs(folder: pathlib.Path) -> list[Photograph]:
    """All photographs of a folder, in an order that a hash of the id makes."""
    if not (folder / "photos.csv").is_file():
        sys.exit(f"--photos {folder}: there is no photos.csv")
    with open(folder / "photos.csv", newline="") as f:
        rows = [
            Photograph(row["id"], str((folder / row["path"]).resolve()), row["label"], row["kind"])
            for row in csv.DictReader(f)
        ]
    return sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())


def write_list(path: pathlib.Path, paths: Iterable[str]) -> str:
    """Writes a list of photographs; returns what --images calls it."""
    path.write_text("".join(f"{name}\n" for name in paths))
    return f"@{path}"


def write_labels(path: pathlib.Path, labels: Iterable[tuple[str, str]]) -> pathlib.Path:
    """Writes a table of ids and landmarks; returns its path."""
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([("id", "landmark_id"), *labels])
    return path


@dataclasses.dataclass(frozen=True)
class Run:
    """A process that has ended well, with those that it waited for.

    Attributes:
      seconds: from its start to its end.
      cpu: seconds of processors.
      peak_bytes: of memory, the most that one of them held.
    """

    seconds: float
    cpu: float
    peak_bytes: int


def run(module: str, *arguments: Any, cores: int | None = None, **flags: Any) -> Run:
    """Runs `python -m module arguments`, and flags by their names, on the first `cores` cores alone where
    given.

    Raises:
      SystemExit: it failed.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    words = ["-m", module, *map(str, arguments), *(f"--{name}={value}" for name, value in flags.items())]
    with tempfile.TemporaryFile("w+") as printed:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=printed,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            raise SystemExit(f"python {' '.join(words)} ended with {process.returncode}:\n{printed.read()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def landmarks(*arguments: Any, cores: int | None = None, **flags: Any) -> Run:
    """Runs a command of the product; see `run`."""
    return run("beam_pipeline", *arguments, cores=cores, **flags)


@contextlib.contextmanager
def measuring(measure: Callable[[], int]) -> Iterator[list[int]]:
    """What `measure` says every 0.1 s while the block runs, behind a zero."""
    said = [0]

    def ask(ended: threading.Event) -> None:
        while not ended.wait(0.1):
            said.append(measure())

    with beside(ask, "measuring"):
        yield said


def machine(*facts: str) -> str:
    """A line that says on what machine and with what versions something was measured."""
    versions = [
        f"{package} {importlib.metadata.version(package)}"
        for package in ("tensorflow", "apache-beam", "numpy")
    ]
    return ", ".join([f"{len(os.sched_getaffinity(0))} cores", goals.processor()[0], *versions, *facts])
