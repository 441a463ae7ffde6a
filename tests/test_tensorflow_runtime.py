"""One way to compute: TensorFlow's bits do not depend on who imported it, or on what the environment says."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from transforms.processes.tensorflow_runtime import TensorFlowSettingsError, import_tensorflow


def convolve() -> str:
    """A hash of what TensorFlow computes, or the error. Its own kernels and oneDNN's give other bits for it,
    as do other numbers of threads.
    """
    try:
        tf = import_tensorflow()
    except TensorFlowSettingsError as e:
        return str(e)
    rng = np.random.default_rng(0)
    image, kernel = (rng.standard_normal(shape, np.float32) for shape in ((1, 60, 80, 32), (3, 3, 32, 64)))
    return hashlib.sha256(tf.nn.conv2d(image, kernel, 1, "SAME").numpy().tobytes()).hexdigest()


_CONVOLVE = """
from tests.test_tensorflow_runtime import convolve
print(json.dumps([convolve(), *running]))
"""
_FIRST = """
import json, sys
sys.modules["keras"] = None  # a third of TensorFlow's import, which does without
running = []
"""
_BEFORE = _FIRST + "import tensorflow\n"
# To import it takes seconds: one import serves two, of which the child is where it runs already.
_BEFORE_AND_RUNNING = (
    _BEFORE
    + """
import os
read, write = os.pipe()
if os.fork() == 0:
    from tests.test_tensorflow_runtime import convolve
    tensorflow.config.threading.set_intra_op_parallelism_threads(2)
    tensorflow.constant(1) + 1
    os.write(write, convolve().encode())
    os._exit(0)
os.wait()
running = [os.read(read, 10_000).decode()]
"""
)
_OFF, _ON = {"TF_ENABLE_ONEDNN_OPTS": "0"}, {"TF_ENABLE_ONEDNN_OPTS": "1"}


def printed(before: str, environment: dict[str, str]) -> list[str]:
    """What a process says of the convolution that runs `before` first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", before + _CONVOLVE],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What each says; two processes at a time."""
    cases = {
        ("off",): (_FIRST, _OFF),
        ("imported before, off",): (_BEFORE, _OFF),
        ("imported before, on", "running"): (_BEFORE_AND_RUNNING, _ON),
    }
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda case: printed(*case), cases.values())
        return {name: one for names, all_ in zip(cases, said) for name, one in zip(names, all_, strict=True)}


@pytest.mark.parametrize("case", ["off", "imported before, on"])
def test_neither_the_environment_nor_who_imported_it_changes_a_bit(found, case):
    assert found[case] == convolve() and len(found[case]) == 64


def test_tensorflow_imported_before_with_other_settings_is_an_error(found):
    assert "start the program with TF_ENABLE_ONEDNN_OPTS=1" in found["imported before, off"]


def test_tensorflow_that_runs_with_other_threads_is_an_error(found):
    assert "TensorFlow is running with 2 threads per operation" in found["running"]
