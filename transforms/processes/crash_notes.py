"""Notes of the photographs at work, for whoever has to tell why a process died: a decoder or model that
crashes says nothing.

Only where the environment variable IN_FLIGHT names a folder, which the job's supervisor makes. Layout, a JSON
file per photograph:

    notes/      being decoded or extracted now, one per thread
    suspects/   noted when a process died; each is tried alone
    crashed/    a process died of it alone: it becomes a failure row
"""

import contextlib
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Iterator

from transforms.types import Failure, ImageRef

IN_FLIGHT = "LANDMARKS_IN_FLIGHT"

CRASHED = "crashed"
"""The kind of failure of a photograph that a process has died of."""


@contextlib.contextmanager
def noted(ref: ImageRef) -> Iterator[None]:
    """Leaves a note of `ref` while the block runs; a process that dies in it leaves the note behind."""
    folder = os.environ.get(IN_FLIGHT)
    if folder is None:
        yield
        return
    note = os.path.join(folder, "notes", f"{os.getpid()}-{threading.get_ident()}.json")
    with open(note, "w", encoding="utf-8") as f:
        json.dump(dataclasses.asdict(ref), f)
    try:
        yield
    finally:
        os.remove(note)


def crash_of(ref: ImageRef) -> Failure | None:
    """The failure row of a photograph that a process has died of; None for any other."""
    folder = os.environ.get(IN_FLIGHT)
    if folder is None or ref.image_id not in _crashed(folder):
        return None
    return Failure(
        "extract",
        ref.image_id,
        ref.uri,
        CRASHED,
        "the process died while it decoded or extracted this photograph alone",
    )


def suspects() -> Iterator[ImageRef]:
    """The photographs to try alone, each cleared when the next one is asked for."""
    folder = os.environ.get(IN_FLIGHT)
    if folder is None:
        return
    for path, ref in _read(os.path.join(folder, "suspects")):
        yield ref
        os.remove(path)


@functools.lru_cache(maxsize=1)
def _crashed(folder: str) -> frozenset[str]:
    return frozenset(ref.image_id for _, ref in _read(os.path.join(folder, "crashed")))


def _read(folder: str) -> list[tuple[str, ImageRef]]:
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    refs = []
    for path in paths:
        with open(path, encoding="utf-8") as f:
            refs.append((path, ImageRef(**json.load(f))))
    return refs
