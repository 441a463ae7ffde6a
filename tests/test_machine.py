"""The machine's trouble is no photograph's: it is tried again, and then stops the job."""

import builtins
import errno
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import tiny_models
from tests.command_line import run
from transforms import features, images
from transforms.models.model import ExtractionError
from transforms.storage import files, machine
from transforms.storage.machine import MachineError
from transforms.storage.object_stores import StoreError
from transforms.types import DecodedImage, Failure, ImageRef


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(files, "_DELAYS", (0.0, 0.0, 0.0))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(tiny_models.textured(80, 100, 0)).save(path)
    return ImageRef("photo", str(path), path.stat().st_size)


def failing(error, times, then):
    """A function that raises an error so many times, and then does as another one."""
    left = [times]

    def function(*arguments, **options):
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return then(*arguments, **options)

    return function


MACHINES = [
    *(
        OSError(getattr(errno, name), name)
        for name in ("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ENOSPC")
    ),
    *(OSError(getattr(errno, name), name) for name in ("ENOTCONN", "EDQUOT", "EHOSTDOWN")),
    TimeoutError("timed out"),
    ConnectionResetError("reset"),
    BrokenPipeError("broken"),
    MemoryError(),
    StoreError("no answer"),
    StoreError("slow down", 503),
    StoreError("too many requests", 429),
]
PHOTOGRAPHS = [
    (FileNotFoundError(errno.ENOENT, "gone"), "not_found"),
    (PermissionError(errno.EACCES, "denied"), "unreadable"),
    (IsADirectoryError(errno.EISDIR, "a folder"), "unreadable"),
    (OSError(errno.ELOOP, "a loop"), "unreadable"),
    (OSError(errno.ENAMETOOLONG, "too long"), "unreadable"),
    (OSError(errno.ENXIO, "a socket"), "unreadable"),
    (StoreError("bad request", 400), "unreadable"),
    (ValueError("no such scheme"), "unreadable"),
]


@pytest.mark.parametrize("error", MACHINES, ids=repr)
def test_a_read_that_the_machine_refuses_stops_the_job(photo, monkeypatch, error):
    monkeypatch.setattr(files, "_read_local", failing(error, 10, None))
    with pytest.raises(MachineError, match=r"the machine failed at .*photo.png, not the photograph \("):
        images.read_image(photo, 100)


@pytest.mark.parametrize("error", MACHINES[:5], ids=repr)
def test_a_read_that_fails_in_passing_is_tried_again(photo, monkeypatch, error):
    monkeypatch.setattr(files, "_read_local", failing(error, 3, files._read_local))
    assert isinstance(images.read_image(photo, 100), DecodedImage)


@pytest.mark.parametrize("error, kind", PHOTOGRAPHS, ids=repr)
def test_what_is_wrong_with_the_photograph_is_a_row(photo, monkeypatch, error, kind):
    monkeypatch.setattr(files, "_read_local", failing(error, 10, None))
    failure = images.read_image(photo, 100)
    assert isinstance(failure, Failure) and (failure.stage, failure.kind) == ("read", kind)


def test_no_file_descriptors_left(photo, monkeypatch):
    opened = builtins.open

    def refused(path, *arguments, **options):
        if str(path).endswith("photo.png"):
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refused)
    with pytest.raises(MachineError, match="Too many open files"):
        images.read_image(photo, 100)


@pytest.mark.parametrize("where", ["open", "load"])
def test_a_decoder_without_memory_is_tried_again(photo, monkeypatch, where):
    owner = images.Image if where == "open" else images.Image.Image
    name = "open" if where == "open" else "resize"
    monkeypatch.setattr(owner, name, failing(MemoryError(), 3, getattr(owner, name)))
    assert isinstance(images.read_image(photo, 50), DecodedImage)


@pytest.mark.parametrize("error", [MemoryError(), OSError("broken data stream when reading image file")])
def test_a_decoder_without_memory_is_not_the_photograph(photo, monkeypatch, error):
    monkeypatch.setattr(images.Image.Image, "resize", failing(error, 10, None))
    monkeypatch.setattr(images, "has_memory", lambda size: False)
    with pytest.raises(MachineError, match="MemoryError"):
        images.read_image(photo, 50)


def test_a_photograph_that_makes_a_decoder_ask_for_more_than_it_takes_is_a_row(photo, monkeypatch):
    monkeypatch.setattr(images.Image.Image, "resize", failing(MemoryError(), 10, None))
    failure = images.read_image(photo, 50)
    assert isinstance(failure, Failure) and failure.kind == "too_large"
    assert "asks for more memory than the picture takes" in failure.message


LITTLE_MEMORY = """
import io, resource, sys
from PIL import Image
from transforms import images
from transforms.storage import machine
from transforms.types import ImageRef, ReadingConfig

ref = ImageRef("photo", sys.argv[1], 1)
images.read_image(ref, 64, ReadingConfig(max_image_memory=1))  # all is loaded
used = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000,) * 2)
images.files._DELAYS = (0, 0, 0)
try:
    print(images.read_image(ref, 64))
except machine.MachineError as e:
    print("stopped:", e)
"""


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG", "progressive": True},
        {"format": "PNG", "compress_level": 1},
        {"format": "WEBP", "method": 0},
    ],
)
def test_with_little_memory_no_format_blames_the_photograph(tmp_path, options):
    path = tmp_path / "photo"
    noise = np.random.default_rng(0).integers(0, 255, (16, 20, 3), np.uint8)
    Image.fromarray(noise).resize((5000, 4000)).save(path, **options)
    result = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(path)], capture_output=True, text=True, timeout=300
    )
    assert result.stdout.startswith("stopped: the machine failed at"), result.stdout + result.stderr


def test_has_memory():
    assert machine.has_memory(1000) and not machine.has_memory(1 << 62)


def test_a_model_without_memory_is_tried_again_and_then_stops_the_job(photo):
    image = DecodedImage(photo, np.zeros((8, 8, 3), np.uint8), 8, 8, 1.0)

    class Model:
        def __init__(self, error, times):
            self.extract = failing(error, times, self.found)

        def found(self, pixels):
            raise ExtractionError("too_small", "it is")

    assert features._extract_image(Model(MemoryError(), 3), image).kind == "too_small"
    with pytest.raises(MachineError, match="the machine failed at .*photo.png"):
        features._extract_image(Model(MemoryError(), 4), image)


def test_a_death_with_little_memory_convicts_nobody(photo, monkeypatch):
    monkeypatch.setattr(features.crash_notes, "suspects", lambda: iter([photo]))
    monkeypatch.setattr(features, "has_memory", lambda size: False)
    with pytest.raises(MachineError, match="bytes are left"):
        features.try_suspects("none", None, None)


def test_a_job_that_the_machine_stops_goes_on_with_no_row_of_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for n in range(10):
        Image.fromarray(tiny_models.textured(80, 100, n)).save(tmp_path / "images" / f"i{n}.png")
    (tmp_path / "labels.csv").write_text("id,landmark_id\n" + "".join(f"i{n},{n % 3}\n" for n in range(10)))
    command = ["index", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels.csv")]
    command += ["--model", "rootsift-vlad", "--output", str(tmp_path / "index")]
    read = files._read_local

    def bad_disk(path, *arguments):
        if path.endswith("i7.png"):
            raise OSError(errno.EIO, "Input/output error", path)
        return read(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_read_local", bad_disk)
        assert run(*command) == 1
    error = capsys.readouterr().err
    assert "the machine failed at" in error and "i7.png, not the photograph" in error
    assert "the same command goes on from here" in error
    assert run(*command) == 0
    assert len(pd.read_parquet(tmp_path / "index" / "images")) == 10
    assert not (tmp_path / "index" / "failures").exists()
