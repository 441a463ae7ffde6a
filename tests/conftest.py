"""Fixtures that several test modules share. What takes long to import is imported where it is used: the
process that only hands the tests to others reads this too.
"""

import fcntl
import functools
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from beam_pipeline.demo import DemoPaths


@pytest.fixture(scope="session", autouse=True)
def beam_remembers() -> Iterator[None]:
    """Small pipelines are built in half the time; see beam_memory."""
    from tests import beam_memory

    with pytest.MonkeyPatch.context() as patch:
        beam_memory.remember(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def elements_are_whole() -> Iterator[None]:
    """Also in pipelines that a test runs without `run_pipeline`; see there what happens otherwise."""
    from beam_pipeline import runner

    with runner.whole_elements():
        yield


@pytest.fixture(scope="session", autouse=True)
def flags_are_remembered() -> Iterator[None]:
    """The parser of the command line is built once, not with each command."""
    from beam_pipeline import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "build_parser", functools.cache(main.build_parser))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_disk_is_waited_for() -> Iterator[None]:
    """A file that is written counts as on the disk: no test cuts the power, and commands write many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def tensorflow_comes_alone() -> Iterator[None]:
    """Keras, a third of TensorFlow's import, is as if it were not installed; no model needs it."""
    with pytest.MonkeyPatch.context() as patch:
        if "tensorflow" not in sys.modules:
            patch.setitem(sys.modules, "keras", None)
        yield


@pytest.fixture(scope="session")
def photos() -> pathlib.Path:
    """Folder of labelled photographs with a photos.csv (id, path, label, kind), named by LANDMARKS_PHOTOS;
    tests skip without it.
    """
    if "LANDMARKS_PHOTOS" not in os.environ:
        pytest.skip("LANDMARKS_PHOTOS names no folder of photographs")
    return pathlib.Path(os.environ["LANDMARKS_PHOTOS"])


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> "tuple[pathlib.Path, DemoPaths]":
    """The demo set, made once in a run of the suite (it takes seconds), and its folder; for reading."""
    from beam_pipeline import demo

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which the processes of a run share
    root = base / "demo" / "set"
    root.parent.mkdir(exist_ok=True)
    with open(base / "demo.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return root, demo.make_demo(str(root))


# A crowded machine makes no test fail (what is slow is seen in the benchmarks), nor does luck: examples are
# the same each time. `--hypothesis-profile=search` draws others, and more.
settings.register_profile("landmarks", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1_000)
settings.load_profile("landmarks")
