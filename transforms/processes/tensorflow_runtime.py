"""TensorFlow with the settings that decide what it computes, set in this one place before it is imported.

- oneDNN's kernels are on. TensorFlow turns them on by itself only where the processor has AVX-512 with VNNI
  or more, and they give other bits than its own kernels: one job would compute with two libraries where one
  of its processes has TF_ENABLE_ONEDNN_OPTS and another has not.
- An operation has one thread. oneDNN's sums depend on the number of threads; with one, features are the same
  to the bit on any number of cores. And whole photographs side by side keep cores busier than threads on
  parts of one.
"""

import contextlib
import os
import platform
import sys
import threading
import types
from collections.abc import Iterator

_QUIET = "3"
_import_lock = threading.Lock()


class TensorFlowSettingsError(RuntimeError):
    """TensorFlow runs in this process already, and computes other bits than the other workers would."""


def import_tensorflow() -> types.ModuleType:
    """TensorFlow, imported on first use and without its start-up messages; a TF_CPP_MIN_LOG_LEVEL below 3
    shows them.

    Where it is not running yet, it is told to take a GPU's memory as it needs it, not all at once: other
    processes may want some.

    Raises:
      TensorFlowSettingsError: it was imported or started before, with other settings than those of the
        module's text.
    """
    with _import_lock:
        imported = "tensorflow" in sys.modules
        if not imported:
            os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
        quiet = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _QUIET) == _QUIET and not imported
        with _silent_stderr() if quiet else contextlib.nullcontext():
            import tensorflow
        if imported and not _computes_with_onednn():
            raise TensorFlowSettingsError(
                "TensorFlow was imported with its oneDNN kernels off, whose results differ: import "
                "landmarks' model first (transforms.processes.tensorflow_runtime.import_tensorflow), or "
                "start the program with TF_ENABLE_ONEDNN_OPTS=1 in its environment"
            )
        try:
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        except RuntimeError:  # it is running with another number
            threads = tensorflow.config.threading.get_intra_op_parallelism_threads()
            raise TensorFlowSettingsError(
                f"TensorFlow is running with {threads or 'all'} threads per operation "
                "(intra_op_parallelism_threads), and results depend on their number: load landmarks' "
                "model before TensorFlow's first operation, or call "
                "tensorflow.config.threading.set_intra_op_parallelism_threads(1) before it"
            ) from None
        for gpu in tensorflow.config.list_physical_devices("GPU"):
            with contextlib.suppress(RuntimeError):  # raised when TensorFlow is running
                tensorflow.config.experimental.set_memory_growth(gpu, True)
    return tensorflow


def _computes_with_onednn() -> bool:
    """Whether oneDNN's kernels are on in the TensorFlow that is imported, or are not for this processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    from tensorflow.python.util import _pywrap_util_port  # there is no public way to ask

    return _pywrap_util_port.IsMklEnabled()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Sends file descriptor 2 nowhere: what native code logs before its logging is set up obeys no level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
