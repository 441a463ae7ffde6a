"""The model: what a DELG SavedModel offers, and how global and local features come out of it."""

from __future__ import annotations

import os
import types


def import_tensorflow() -> types.ModuleType:
    """TensorFlow, imported on first use and without its start-up messages (TF_CPP_MIN_LOG_LEVEL, if set, decides)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow
