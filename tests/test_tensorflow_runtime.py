"""One way to compute: TensorFlow's bits do not depend on who imported it, or on what the environment says."""

import os
import subprocess
import sys

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


def convolve(before: str = "", **environment: str) -> tuple[str, str]:
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
def expected() -> str:
    out, err = convolve()
    assert out, err
    return out


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_environment_does_not_change_a_bit(expected, value):
    assert convolve(TF_ENABLE_ONEDNN_OPTS=value)[0] == expected


def test_tensorflow_imported_before_with_the_same_settings_gives_the_same_bits(expected):
    assert convolve(_FIRST, TF_ENABLE_ONEDNN_OPTS="1")[0] == expected


@pytest.mark.parametrize("environment", [{}, {"TF_ENABLE_ONEDNN_OPTS": "0"}])
def test_tensorflow_imported_before_gives_the_same_bits_or_a_clear_error(expected, environment):
    out, err = convolve(_FIRST, **environment)
    if environment or not out:  # where oneDNN is on by itself, nothing is wrong
        assert out == "" and "start the program with TF_ENABLE_ONEDNN_OPTS=1" in err
    else:
        assert out == expected


def test_tensorflow_that_runs_with_other_threads_is_an_error():
    out, err = convolve(_RUNNING, TF_ENABLE_ONEDNN_OPTS="1")
    assert out == "" and "TensorFlow is running with 2 threads per operation" in err
