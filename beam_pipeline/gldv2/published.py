"""Where Google Landmarks v2 is published, and how: https://github.com/cvdfoundation/google-landmark.

    {base}/{split}/images_000.tar               members are a/b/c/<id>.jpg, by the id's first characters
    {base}/md5sum/{split}/md5.images_000.txt    a line as md5sum writes it: <hash>  images_000.tar
    {base}/metadata/*.csv, {base}/ground_truth/*.csv

The landmark ids of `index` are others than those of `train`.
"""

import dataclasses
import re

BASE_URL = "https://s3.amazonaws.com/google-landmark"

IMAGE_ID = re.compile(r"[0-9a-f]{16}")

CLEAN_LABELS = "metadata/train_clean.csv"
TRUTH = "ground_truth/recognition_solution_v2.1.csv"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the data set as users ask for it.

    Attributes:
      split: folder of the archives; "" where there are none.
      archives: how many there are.
      archive_bytes: of one, about.
      images: in all archives.
      kept: images of these that are used.
      tables: published beside them.
    """

    split: str = ""
    archives: int = 0
    archive_bytes: int = 0
    images: int = 0
    kept: int = 0
    tables: tuple[str, ...] = ()


PARTS = {
    "train_clean": Part("train", 500, 1_000_000_000, 4_132_914, 1_580_470, (CLEAN_LABELS,)),
    "index": Part("index", 100, 850_000_000, 761_757, 761_757, ("metadata/index_image_to_landmark.csv",)),
    "test": Part(
        "test", 20, 500_000_000, 117_577, 117_577, (TRUTH, "ground_truth/retrieval_solution_v2.1.csv")
    ),
    "metadata": Part(
        tables=(
            "metadata/train.csv",
            CLEAN_LABELS,
            "metadata/train_attribution.csv",
            "metadata/train_label_to_category.csv",
            "metadata/train_label_to_hierarchical.csv",
            "metadata/index.csv",
            "metadata/index_image_to_landmark.csv",
            "metadata/index_label_to_category.csv",
            "metadata/index_label_to_hierarchical.csv",
            "metadata/test.csv",
            TRUTH,
            "ground_truth/retrieval_solution_v2.1.csv",
        )
    ),
}


def archive_name(number: int) -> str:
    """images_007.tar"""
    return f"images_{number:03d}.tar"


def archive_url(base: str, split: str, number: int) -> str:
    """Of an archive."""
    return f"{base}/{split}/{archive_name(number)}"


def checksum_url(base: str, split: str, number: int) -> str:
    """Of the file with the MD5 of an archive."""
    return f"{base}/md5sum/{split}/md5.images_{number:03d}.txt"


def is_table(start: bytes) -> bool:
    """Whether a file that begins so may be one of the tables, whose first column is an id."""
    header = start.decode("utf-8", "replace").removeprefix("\ufeff").split("\n", 1)[0]
    return header.split(",")[0].strip() in ("id", "landmark_id")


def checksum(text: bytes) -> str | None:
    """The MD5 in such a file, its first word; None where the file is cut short."""
    words = text.decode("ascii", "replace").split()
    return words[0].lower() if words and re.fullmatch(r"[0-9a-fA-F]{32}", words[0]) else None
