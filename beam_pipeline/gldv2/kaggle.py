"""The layout of the Kaggle editions (2019, 2020, 2021), taken as it is:

FOLDER/train.csv, FOLDER/train/a/b/c/<id>.jpg
FOLDER/sample_submission.csv, FOLDER/test/a/b/c/<id>.jpg
"""

import os


def index_inputs(images: tuple[str, ...], labels: str | None) -> tuple[tuple[str, ...], str | None]:
    """The patterns and labels of an index: those of the edition where `images` is its folder."""
    return _inputs(images, labels, "train", "train.csv")


def query_inputs(images: tuple[str, ...], sample: str | None) -> tuple[tuple[str, ...], str | None]:
    """The patterns of queries and the sample submission, likewise."""
    return _inputs(images, sample, "test", "sample_submission.csv")


def _inputs(
    images: tuple[str, ...], table: str | None, part: str, name: str
) -> tuple[tuple[str, ...], str | None]:
    folder, own = os.path.join(images[0], part), os.path.join(images[0], name)
    if len(images) > 1 or not (os.path.isdir(folder) and os.path.isfile(own)):
        return images, table
    return (folder,), table or own
