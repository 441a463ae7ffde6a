"""The layout of the Kaggle editions (2019, 2020, 2021), taken as it is:

FOLDER/train.csv, FOLDER/train/a/b/c/<id>.jpg
FOLDER/sample_submission.csv, FOLDER/test/a/b/c/<id>.jpg
"""

import os

from beam_pipeline.config import ConfigError

_TABLES = ("train.csv", "sample_submission.csv")


def index_inputs(images: tuple[str, ...], labels: str | None) -> tuple[tuple[str, ...], str | None]:
    """The patterns and labels of an index: those of the edition where `images` is its folder.

    Raises:
      ConfigError: it is an edition's folder, of which a part is missing.
    """
    return _inputs(images, labels, "train", "train.csv")


def query_inputs(images: tuple[str, ...], sample: str | None) -> tuple[tuple[str, ...], str | None]:
    """The patterns of queries and the sample submission, likewise."""
    return _inputs(images, sample, "test", "sample_submission.csv")


def _inputs(
    images: tuple[str, ...], table: str | None, part: str, name: str
) -> tuple[tuple[str, ...], str | None]:
    folder, own = os.path.join(images[0], part), os.path.join(images[0], name)
    has_folder, has_table = os.path.isdir(folder), os.path.isfile(own)
    if len(images) > 1 or not (has_folder or has_table):
        return images, table
    if has_folder and has_table:
        return (folder,), table or own
    if table is None and any(os.path.isfile(os.path.join(images[0], one)) for one in _TABLES):
        missing = f"no {name}: name {folder} itself" if has_folder else f"no folder {part} of photographs"
        raise ConfigError(f"{images[0]} is laid out like an edition of Kaggle, but has {missing}")
    return images, table
