"""Candidates on disk: what retrieval found, so that a run that is started again does not search again.

<run>/candidates/<block>-<first query>.parquet, written once, holds the queries of a part of a block with
their candidates, most similar first. They are working files: a finished run has none.
"""

from collections.abc import Sequence

import pyarrow as pa

from transforms import files
from transforms.types import Candidate, FeatureLocation, QueryCandidates

FOLDER = "candidates"

_LOCATION = [("unit", pa.string()), ("offset", pa.int64()), ("size", pa.int32())]
_CANDIDATE = pa.struct(
    [("image_id", pa.string()), ("landmark_id", pa.string()), ("similarity", pa.float32()), *_LOCATION]
)
SCHEMA = pa.schema([("image_id", pa.string()), *_LOCATION, ("candidates", pa.list_(_CANDIDATE))])


def part_uri(run: str, block: str, first: int) -> str:
    """Where the part of `block` that begins with its query number `first` lies."""
    return files.join(run, FOLDER, f"{block}-{first:06d}.parquet")


def write_candidates(uri: str, queries: Sequence[QueryCandidates]) -> None:
    """Writes retrieved candidates; inliers and scores are not known yet and not kept."""
    rows = [
        {
            "image_id": query.image_id,
            **vars(query.location),
            "candidates": [
                {
                    "image_id": c.image_id,
                    "landmark_id": c.landmark_id,
                    "similarity": c.similarity,
                    **vars(c.location),
                }
                for c in query.candidates
            ],
        }
        for query in queries
    ]
    files.write_parquet(uri, pa.Table.from_pylist(rows, SCHEMA))


def read_candidates(uri: str) -> list[QueryCandidates]:
    """Reads what write_candidates wrote, in its order."""

    def location(row: dict) -> FeatureLocation:
        return FeatureLocation(row["unit"], row["offset"], row["size"])

    return [
        QueryCandidates(
            row["image_id"],
            location(row),
            tuple(
                Candidate(c["image_id"], c["landmark_id"], c["similarity"], location(c))
                for c in row["candidates"]
            ),
        )
        for row in files.read_parquet(uri).to_pylist()
    ]
