"""Units of an index that were changed since their features were made: photographs removed, labels corrected.

Shards stay as they are; what is new is a name, which says what a unit is made of:

    <unit>               as it was planned, see worklist.py
    <unit>.o<digest>     that shard under an overlay, <index>/overlays/<unit>.o<digest>.parquet
                         (OVERLAY_SCHEMA); the digest is of what the overlay says
    <unit>.c<digest>     compacted: a shard of its own, without what was removed; the digest is of the name
                         that the unit had before. It may get an overlay again: <unit>.c<digest>.o<digest>

So a manifest that names other units is another index, and what was derived of a unit is stale by its name.
"""

import hashlib
import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from transforms.storage.worklist import UNIT_NAME

OVERLAY_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("landmark_id", pa.string()),  # null: the photograph was removed
    ]
)

CHANGED_UNIT = (
    UNIT_NAME + r"(\.c[0-9a-f]{16})?(\.o[0-9a-f]{16})?"
)  # a regular expression: every name of a unit

Changes = Mapping[str, str | None]
"""Photographs, by id, with their new labels; None for one that is removed."""


def planned(unit: str) -> str:
    """The name that a unit has in its plan."""
    return unit.partition(".")[0]


def shard_of(unit: str) -> str:
    """The shard that the features of a unit lie in: its own, or the one below its overlay."""
    return unit.partition(".o")[0]


def is_overlaid(unit: str) -> bool:
    """Whether a unit has an overlay."""
    return shard_of(unit) != unit


def overlaid_name(shard: str, changes: Changes) -> str:
    """The name of a shard under an overlay; without any change its own."""
    return f"{shard}.o{_digest(sorted(changes.items()))}" if changes else shard


def compacted_name(unit: str) -> str:
    """The name of the shard that a unit becomes without what was removed from it."""
    return f"{planned(unit)}.c{_digest(unit)}"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def overlay_table(changes: Changes) -> pa.Table:
    """Changes as a table of OVERLAY_SCHEMA, by id."""
    rows = [{"image_id": name, "landmark_id": label} for name, label in sorted(changes.items())]
    return pa.Table.from_pylist(rows, OVERLAY_SCHEMA)


def overlaid(images: pa.Table, overlay: pa.Table) -> pa.Table:
    """A table with image_id, and perhaps landmark_id, as an overlay has it."""
    rows = pc.index_in(images.column("image_id"), value_set=overlay.column("image_id"))
    labels = overlay.column("landmark_id").take(rows)
    if "landmark_id" in images.column_names:
        at = images.column_names.index("landmark_id")
        merged = pc.if_else(pc.is_valid(rows), labels, images.column("landmark_id"))
        images = images.set_column(at, images.schema.field(at), merged)
    return images.filter(pc.or_(pc.is_null(rows), pc.is_valid(labels)))
