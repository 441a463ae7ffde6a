"""A quiet process: what Beam says at every start, and no user can act on, is left out."""

import logging
import pickle
from typing import Any

_NOISE = (
    "apitools not found",
    "Resource module is not available",
    "Error getting client info",
    "Could not find a compatible bson package",
)


def silence() -> None:
    """Logs warnings and errors alone, without the noise; works before Beam is imported."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().startswith(_NOISE))


def call(function: bytes, *arguments: Any) -> None:
    """Calls a pickled function, which is unpickled, and so imports what it needs, once the process is quiet:
    what a process of its own starts with.
    """
    silence()
    pickle.loads(function)(*arguments)
