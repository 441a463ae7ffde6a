"""One way to compute: TensorFlow's bits do not depend on who imported it, or on what the environment says."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

# TensorFlow's own kernels and oneDNN's give other bits for it, as do other numbers of threads.
_CONVOLUTION = """
import hashlib, numpy as np
from transforms.processes.tensorflow_runtime import import_tensorflow
tf = import_tensorflow()
rng = np.random.default_rng(0)
image, kernel = (rng.standard_normal(shape, np.float32) for shape in ((1, 60, 80, 32), (3, 3, 32, 64)))
print(hashlib.sha256(tf.nn.conv2d(image, kernel, 1, "SAME").numpy().tobytes()).hexdigest())
"""
_FIRST = "import tensorflow\n"
_RUNNING = (
    _FIRST + "tensorflow.config.threading.set_intra_op_parallelism_threads(2)\ntensorflow.constant(1) + 1\n"
)


_OFF, _ON = {"TF_ENABLE_ONEDNN_OPTS": "0"}, {"TF_ENABLE_ONEDNN_OPTS": "1"}


def convolve(before: str, environment: dict[str, str]) -> tuple[str, str]:
    """What a process prints that runs `before`, then the convolution: (standard output, standard error)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", before + _CONVOLUTION],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        check=False,
    )
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def processes() -> dict[str, tuple[str, str]]:
    """What each prints; two at a time, since importing TensorFlow takes one core some seconds."""
    cases = {
        "as it is": ("", {}),
        "off": ("", _OFF),
        "on": ("", _ON),
        "imported before": (_FIRST, {}),
        "imported before, off": (_FIRST, _OFF),
        "imported before, on": (_FIRST, _ON),
        "running": (_RUNNING, _ON),
    }
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(lambda case: convolve(*case), cases.values())))


@pytest.fixture
def expected(processes) -> str:
    out, err = processes["as it is"]
    assert out, err
    return out


@pytest.mark.parametrize("environment", ["off", "on"])
def test_the_environment_does_not_change_a_bit(expected, processes, environment):
    assert processes[environment][0] == expected


def test_tensorflow_imported_before_with_the_same_settings_gives_the_same_bits(expected, processes):
    assert processes["imported before, on"][0] == expected


@pytest.mark.parametrize("case", ["imported before", "imported before, off"])
def test_tensorflow_imported_before_gives_the_same_bits_or_a_clear_error(expected, processes, case):
    out, err = processes[case]
    if "off" in case or not out:  # where oneDNN is on by itself, nothing is wrong
        assert out == "" and "start the program with TF_ENABLE_ONEDNN_OPTS=1" in err
    else:
        assert out == expected


def test_tensorflow_that_runs_with_other_threads_is_an_error(processes):
    out, err = processes["running"]
    assert out == "" and "TensorFlow is running with 2 threads per operation" in err
