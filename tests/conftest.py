"""Fixtures that several test modules share."""

import os
import pathlib

import pytest
from hypothesis import settings


@pytest.fixture(scope="session")
def photos() -> pathlib.Path:
    """Folder of labelled photographs with a photos.csv, which do not come with the project; tests that need them skip without.

    LANDMARKS_PHOTOS names it; else it is looked for beside the checkout.
    """
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "photos"
    folder = pathlib.Path(os.environ.get("LANDMARKS_PHOTOS", beside))
    if not (folder / "photos.csv").is_file():
        pytest.skip(f"no photographs in {folder}; LANDMARKS_PHOTOS names another folder")
    return folder

# A crowded machine makes no test fail: what is slow is seen in the benchmarks.
settings.register_profile("landmarks", deadline=None)
settings.load_profile("landmarks")
