"""TensorFlow, imported in one way by all that need it."""

import contextlib
import os
import sys
import threading
import types
from collections.abc import Iterator

_QUIET = "3"
_import_lock = threading.Lock()


def import_tensorflow() -> types.ModuleType:
    """TensorFlow, imported on first use and without its start-up messages; a TF_CPP_MIN_LOG_LEVEL below 3
    shows them.

    Where it is not running yet, it is told to take a GPU's memory as it needs it, not all at once: other
    processes may want some.
    """
    with _import_lock:
        if (
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _QUIET) == _QUIET
            and "tensorflow" not in sys.modules
        ):
            with _silent_stderr():
                import tensorflow
        else:
            import tensorflow
        for gpu in tensorflow.config.list_physical_devices("GPU"):
            with contextlib.suppress(RuntimeError):  # raised when TensorFlow is running
                tensorflow.config.experimental.set_memory_growth(gpu, True)
    return tensorflow


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
