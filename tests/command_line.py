"""Commands in the process of the test."""

import contextlib
import pathlib

from beam_pipeline.main import main

ONE_WORKER = "--direct_num_workers=1"
ALL_CORES = "--direct_num_workers=0"  # as without the option


def run(*words: object) -> int:
    """Runs `landmarks` with these words; returns its exit code. Where they do not say how many workers there
    are, there is one: threads take longer to start than a few small photographs take.
    """
    given = [str(word) for word in words]
    if not any(word.startswith("--direct_num_workers") for word in given):
        given.append(ONE_WORKER)
    return main(given)


def run_in(folder: pathlib.Path, *words: object) -> int:
    """The same, from a working folder."""
    with contextlib.chdir(folder):
        return run(*words)
