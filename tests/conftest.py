"""Fixtures that several test modules share."""

import os
import pathlib

import pytest
from hypothesis import settings


@pytest.fixture(scope="session")
def photos() -> pathlib.Path:
    """Folder of labelled photographs with a photos.csv (id, path, label, kind), named by LANDMARKS_PHOTOS;
    tests skip without it.
    """
    if "LANDMARKS_PHOTOS" not in os.environ:
        pytest.skip("LANDMARKS_PHOTOS names no folder of photographs")
    return pathlib.Path(os.environ["LANDMARKS_PHOTOS"])


# A crowded machine makes no test fail: what is slow is seen in the benchmarks.
settings.register_profile("landmarks", deadline=None)
settings.load_profile("landmarks")
