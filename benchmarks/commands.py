"""What the benchmarks of whole commands share: photographs, and processes that are timed from start to
end.
"""

import argparse
import csv
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


def add_photos_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --photos: a folder with photos.csv (id, path, label); LANDMARKS_PHOTOS where it is not given."""
    folder = os.environ.get("LANDMARKS_PHOTOS")
    parser.add_argument(
        "--photos",
        type=pathlib.Path,
        default=folder,
        required=not folder,
        metavar="DIR",
        help="folder with photos.csv (id, path, label)",
    )


def photographs(folder: pathlib.Path) -> list[tuple[str, str, str]]:
    """(id, absolute path, label or "") of all photographs of a folder, in an order that a hash of the id
    makes.
    """
    with open(folder / "photos.csv", newline="") as f:
        rows = [(row["id"], str((folder / row["path"]).resolve()), row["label"]) for row in csv.DictReader(f)]
    return sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).hexdigest())


@dataclasses.dataclass(frozen=True)
class Run:
    """A process that has ended well.

    Attributes:
      seconds: from its start to its end.
      output: what it printed.
    """

    seconds: float
    output: str


def run(module: str, *arguments: str, cores: int | None = None) -> Run:
    """Runs `python -m module arguments`, on the first `cores` cores alone where given.

    Raises:
      SystemExit: it failed.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    output, errors = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(
            f"python -m {module} {' '.join(arguments)} ended with {process.returncode}:\n{output}{errors}"
        )
    return Run(seconds, output)


def landmarks(*arguments: str, cores: int | None = None) -> Run:
    """Runs a command of the product; see `run`."""
    return run("beam_pipeline", *arguments, cores=cores)


class Most:
    """The most that `measure` says while the block runs, asked every 0.1 s, as `value`."""

    def __init__(self, measure: Callable[[], int]):
        self.value = 0
        self._measure = measure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Most":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.value = max(self.value, self._measure())


def machine(*facts: str) -> str:
    """A line that says on what machine and with what versions something was measured."""
    versions = [
        f"{package} {importlib.metadata.version(package)}"
        for package in ("tensorflow", "apache-beam", "numpy")
    ]
    return ", ".join([f"{len(os.sched_getaffinity(0))} cores", processor(), *versions, *facts])


def processor() -> str:
    """Name of the processor."""
    return next((v for k, v in _cpuinfo() if k == "model name"), platform.machine())


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    flags = next((v for k, v in _cpuinfo() if k in ("flags", "Features")), "").split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def _cpuinfo() -> Sequence[tuple[str, str]]:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
