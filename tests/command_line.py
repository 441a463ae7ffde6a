"""Commands in the process of the test."""

import contextlib
import pathlib

from beam_pipeline.main import main


def run(*words: object) -> int:
    """Runs `landmarks` with these words; returns its exit code."""
    return main([str(word) for word in words])


def run_in(folder: pathlib.Path, *words: object) -> int:
    """The same, from a working folder."""
    with contextlib.chdir(folder):
        return run(*words)
