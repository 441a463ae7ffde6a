"""The page of an audit: what it found, to look at."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beam_pipeline import outputs
from beam_pipeline.audit import TABLES
from beam_pipeline.manifest import MANIFEST, IndexManifest
from beam_pipeline.matches import find_images
from beam_pipeline.report.pictures import Photograph
from beam_pipeline.report.single_page import PAGE, write, write_photographs
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore

_SHOWN = 100  # rows of each table

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A row of a table, for people.

    Attributes:
      photographs: beside each other.
      text: what is to be said of them.
    """

    photographs: Sequence[Photograph]
    text: str


# By whether a copy is removable.
_UNTOLD = {True: "", False: ": which label is right the votes do not tell, so that both stay"}


def _labels(row: Row, other: str) -> str:
    """The labels of a pair, the `other` first; one where they are the same."""
    return " and ".join(dict.fromkeys((row[other], row["landmark_id"])))


# By table: the columns of the photographs of a row, and what is said of them.
_SAID: Mapping[str, tuple[tuple[str, ...], Callable[[Row], str]]] = {
    "mislabelled": (
        ("image_id", "like_image_id"),
        lambda row: (
            f"{row['landmark_id']}: rather {row['suggested_landmark_id']}, like the other "
            f"({row['suggested_votes']:.2f} votes against {row['votes']:.2f})"
        ),
    ),
    "exact_duplicates": (
        ("kept_image_id", "image_id"),
        lambda row: f"{_labels(row, 'kept_landmark_id')}, same {row['proof']}{_UNTOLD[row['removable']]}",
    ),
    "near_duplicates": (("other_image_id", "image_id"), lambda row: _labels(row, "other_landmark_id")),
    "label_pairs": (
        ("image_id", "other_image_id"),
        lambda row: (
            f"{row['landmark_id']} ({row['images']:,}) and {row['other_landmark_id']} "
            f"({row['other_images']:,}): {row['pairs']:,} pairs, {row['share']:.0%} of the smaller"
        ),
    ),
    "unconfirmed": (
        ("image_id",),
        lambda row: f"{row['landmark_id']}: confirmed by {row['confirmed_by']}, {row['needed']} needed",
    ),
}


def write_page(output: str) -> str:
    """Writes the page of a finished audit, where there is none yet, with the photographs that it shows, which
    may be gone; returns its place.

    Raises:
      ConfigError: the index that was audited is not there any more.
    """
    page = files.join(output, PAGE)
    if files.exists(page):
        return page
    audit = files.read_json(files.join(output, MANIFEST))
    index = files.place_of(output, audit["index_uri"])
    manifest = outputs.read_manifest(index, IndexManifest)
    found = {name: files.read_parquet(files.join(output, f"{name}.parquet")) for name in _SAID}
    rows = {name: found[name].slice(0, _SHOWN).to_pylist() for name in _SAID}
    ids = {row[column] for name, (columns, _) in _SAID.items() for row in rows[name] for column in columns}
    stored = find_images(FeatureStore(index), manifest.shards, ids)
    wanted = [stored[image_id] for image_id in sorted(stored)]
    shown = write_photographs(output, wanted, manifest.recipe.reading, index, manifest)
    sections = [
        {
            "name": name,
            "title": TABLES[name],
            "total": len(found[name]),
            "rows": [
                Shown([shown[row[column]] for column in columns if row[column] in shown], say(row))
                for row in rows[name]
            ],
        }
        for name, (columns, say) in _SAID.items()
    ]
    return write(output, "audit.html", index=index, counts=audit["counts"], sections=sections)
