"""A job whose process dies of native code goes on; signals and exit codes pass."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import tiny_models
from tests.command_line import run
from transforms.features import extract_unit
from transforms.models.model import ExtractionError
from transforms.processes import crash_notes
from transforms.types import DecodedImage, ImageRef, ImageUnit

# A job of ten photographs, without Beam.
JOB = """
import ctypes, os, sys, time
from beam_pipeline import supervisor
from transforms.processes import crash_notes
from transforms.types import ImageRef

REFS = [ImageRef(f"i{n}", "", 0) for n in range(10)]

def at(ref):
    failure = crash_notes.crash_of(ref)
    if failure:
        print("failed", failure.stage, failure.image_id, failure.kind)
        return
    with crash_notes.noted(ref):
        if ref.image_id in GUILTY:
            ctypes.string_at(0)  # dies of SIGSEGV
    open(os.path.join(OUTPUT, ref.image_id), "w").close()

def job():
    print("started", flush=True)
    for ref in crash_notes.suspects():
        at(ref)
    for ref in REFS:
        at(ref)
    return CODE

OUTPUT, GUILTY, CODE = sys.argv[1], sys.argv[2].split(","), 0
"""


def job(folder, guilty="", more=""):
    """The command that runs it under a supervisor."""
    code = f"{JOB}\n{more}\nsys.exit(supervisor.run(job, [OUTPUT]))"
    return [sys.executable, "-c", code, str(folder), guilty]


def run_job(*given):
    return subprocess.run(job(*given), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_codes_pass(tmp_path, code):
    result = run_job(tmp_path, "", f"CODE = {code}")
    assert result.returncode == code and result.stdout == "started\n" and result.stderr == ""


def test_photographs_that_kill_become_failures_and_the_rest_is_done(tmp_path):
    result = run_job(tmp_path, "i2,i7")
    assert result.returncode == 0
    assert result.stdout.split("started\n")[-1].splitlines() == [
        "failed extract i2 crashed",
        "failed extract i7 crashed",
    ]
    assert result.stderr.count("died of SIGSEGV over 'i2', which becomes a failure row") == 1
    assert sorted(os.listdir(tmp_path)) == [f"i{n}" for n in range(10) if n not in (2, 7)]


def test_a_photograph_that_kills_once_is_no_failure(tmp_path):
    once = (
        "GUILTY = ['i3'] if not os.path.exists(OUTPUT + '/once') and not open(OUTPUT + '/once', "
        "'w').close() else []"
    )
    result = run_job(
        tmp_path, "", f"real = job\ndef job():\n    global GUILTY\n    {once}\n    return real()"
    )
    assert result.returncode == 0 and "failed" not in result.stdout and result.stdout.count("started") == 2


def test_deaths_that_lead_nowhere_end_the_job(tmp_path):
    result = run_job(tmp_path, "", "def job():\n    print('started', flush=True)\n    os.abort()")
    assert result.returncode == 1 and result.stdout.count("started") == 3
    assert "error: the process died of SIGABRT, 3 times without getting on" in result.stderr


def test_a_dead_worker_process_is_a_crash_too(tmp_path):
    workers = """
first = job
def job():
    if os.path.exists(OUTPUT + "/i1"):
        return first()
    print("started", flush=True)
    if os.fork() == 0:
        for ref in REFS:
            at(ref)
    os.wait()
    return 1
"""
    result = run_job(tmp_path, "i4", workers)
    assert (
        result.returncode == 0
        and "failed extract i4 crashed" in result.stdout
        and "a worker process died" in result.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_signals_end_supervisor_and_child(tmp_path, number):
    waiting = """
def job():
    try:
        print(os.getpid(), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        return 1
"""
    process = subprocess.Popen(
        job(tmp_path, more=waiting),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with SIGINT ignored, the test suite perhaps.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=30) == (1 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{child}/stat") and ") Z " not in open(f"/proc/{child}/stat").read():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_unsupervised_nothing_is_noted(tmp_path, monkeypatch):
    monkeypatch.delenv(crash_notes.IN_FLIGHT, raising=False)
    ref = ImageRef("i", "", 0)
    with crash_notes.noted(ref):
        pass
    assert crash_notes.crash_of(ref) is None and list(crash_notes.suspects()) == []


def test_a_photograph_is_noted_while_it_is_in_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv(crash_notes.IN_FLIGHT, str(tmp_path))
    for name in ("notes", "crashed"):
        (tmp_path / name).mkdir()
    ref, seen = ImageRef("photo", "", 0), []

    class Model:
        global_width = 2

        def extract(self, pixels):
            seen.extend(json.loads(note.read_text())["image_id"] for note in (tmp_path / "notes").iterdir())
            raise ExtractionError("model_error", "said no")

    image = DecodedImage(ref, np.zeros((8, 8, 3), np.uint8), 8, 8, 1.0)
    extracted = extract_unit(ImageUnit("u", (ref,)), Model(), lambda refs: iter([image]))
    assert (
        seen == ["photo"]
        and extracted.failures[0].kind == "model_error"
        and os.listdir(tmp_path / "notes") == []
    )


# Runs at the start of every Python process of the test below: a decoder with a fault.
FAULTY_DECODER = """
import ctypes
import PIL.Image

def faulty(fp, *args, real=PIL.Image.open, **kwargs):
    image = real(fp, *args, **kwargs)
    if image.size == (101, 80):
        ctypes.string_at(0)
    return image

PIL.Image.open = faulty
"""


def test_a_crash_in_a_decoder_costs_one_photograph(tmp_path):
    (tmp_path / "images").mkdir()
    for n in range(10):
        width = 101 if n == 6 else 100
        Image.fromarray(tiny_models.textured(80, width, n)).save(tmp_path / "images" / f"i{n}.png")
    (tmp_path / "labels.csv").write_text("id,landmark_id\n" + "".join(f"i{n},{n % 3}\n" for n in range(10)))
    (tmp_path / "sitecustomize.py").write_text(FAULTY_DECODER)
    command = ["index", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels.csv")]
    command += ["--max_failure_rate", "0.2"]
    assert run(*command, "--output", tmp_path / "undisturbed") == 0
    result = subprocess.run(
        [sys.executable, "-m", "beam_pipeline", *command, "--output", str(tmp_path / "index")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and "over 'i6', which becomes a failure row" in result.stderr
    failures = pd.read_parquet(tmp_path / "index" / "failures")
    assert failures[["image_id", "stage", "kind"]].values.tolist() == [["i6", "extract", "crashed"]]
    columns = ["image_id", "landmark_id", "width", "height", "local_size"]
    there, undisturbed = (
        pd.read_parquet(tmp_path / name / "images").set_index("image_id", drop=False)
        for name in ("index", "undisturbed")
    )
    undisturbed = undisturbed.drop(index="i6")
    assert there[columns].equals(undisturbed[columns])
    assert all((a == b).all() for a, b in zip(there.global_descriptor, undisturbed.global_descriptor))
