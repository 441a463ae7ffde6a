"""What a run keeps beside its queries' features: predictions, and the candidates that retrieval found.

    <run>/predictions/<unit>.parquet                  PREDICTION_SCHEMA; PROVISIONAL follows the unit's name
                                                      where it is not final
    <run>/failures/verify-<unit>.parquet              what failed in verification
    <run>/candidates/<block>-<first query>.parquet    queries of a part of a block with their candidates, most
                                                      similar first

Candidates are working files, so that a run that is started again does not search again; a finished run has
none.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from transforms.storage import files
from transforms.storage.feature_store import failure_table
from transforms.types import (
    Candidate,
    CandidateUnit,
    FeatureLocation,
    Prediction,
    PredictionUnit,
    QueryCandidates,
)

PROVISIONAL = ".provisional"
"""Part of a prediction shard's name where time ran out before all was done for it: a later start of the run
makes it again.
"""

UNPREDICTED = "unpredicted"
"""The prediction shard of the images that gave no features, written with the submission."""

CANDIDATE_TYPE = pa.struct(
    [
        pa.field("image_id", pa.string()),
        pa.field("landmark_id", pa.string()),
        pa.field("similarity", pa.float32()),
        pa.field("augmented", pa.float32()),
        pa.field("inliers", pa.int32()),
        pa.field("score", pa.float64()),
    ]
)

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("landmark_id", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("probability", pa.float64()),
        pa.field("candidates", pa.list_(CANDIDATE_TYPE), nullable=False),
        pa.field("verified", pa.bool_(), nullable=False),
    ]
)


def prediction_table(predictions: Iterable[Prediction]) -> pa.Table:
    """Predictions as a table of PREDICTION_SCHEMA, sorted by image_id."""
    rows = [
        {
            "image_id": p.image_id,
            "landmark_id": p.landmark_id,
            "score": p.score,
            "probability": p.probability,
            "candidates": [_candidate_row(c) for c in p.candidates],
            "verified": p.verified,
        }
        for p in sorted(predictions, key=lambda p: p.image_id)
    ]
    return pa.Table.from_pylist(rows, PREDICTION_SCHEMA)


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    return {f.name: getattr(candidate, f.name) for f in CANDIDATE_TYPE}


def has_predictions(run: str, unit: str) -> bool:
    """Whether the prediction shard of `unit` is done, for good."""
    return files.exists(files.join(run, "predictions", unit + ".parquet"))


def write_predictions(run: str, unit: PredictionUnit) -> None:
    """Writes the prediction shard of a unit to a run, after its failures; PROVISIONAL follows its name where
    it is not final.
    """
    name = unit.name + ("" if unit.final else PROVISIONAL)
    failures = files.join(run, "failures", f"verify-{name}.parquet")
    if unit.failures:
        files.write_parquet(failures, failure_table(unit.failures))
    else:  # of an attempt that was killed
        files.delete(failures)
    files.write_parquet(files.join(run, "predictions", name + ".parquet"), prediction_table(unit.predictions))


def final_shards(run: str) -> list[str]:
    """The prediction shards of verified units that a later start of a run will not make again, sorted."""
    shards = files.list_files(files.join(run, "predictions"), ".parquet")
    return [uri for uri in shards if not _is_provisional(uri)]


def final_predictions(run: str) -> int:
    """Number of rows of `final_shards`."""
    return sum(map(files.parquet_rows, final_shards(run)))


def _is_provisional(uri: str) -> bool:
    name = uri.rsplit("/", 1)[-1]
    return PROVISIONAL in name or name == UNPREDICTED + ".parquet"


def delete_provisional(run: str) -> None:
    """Deletes the provisional prediction shards of a run and their failures, and the shard of the
    unpredicted.
    """
    for part in ("predictions", "failures"):
        for uri in files.list_files(files.join(run, part), ".parquet"):
            if _is_provisional(uri):
                files.delete(uri)


def read_predictions(run: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The prediction tables of a run, shard by shard, in the order of their names."""
    for uri in files.list_files(files.join(run, "predictions"), ".parquet"):
        yield files.read_parquet(uri, columns)


def predicted(run: str) -> int:
    """Number of queries of a run for which a landmark is predicted."""
    tables = read_predictions(run, ["landmark_id"])
    return sum(len(table) - table.column("landmark_id").null_count for table in tables)


def read_prediction_unit(uri: str, num_to_rerank: int) -> CandidateUnit:
    """The queries of a prediction shard as they were before they were scored, with the `num_to_rerank`
    candidates of each that are most similar. Places of local features and failures are not in it.
    """
    queries = []
    for row in files.read_parquet(uri, ["image_id", "candidates", "verified"]).to_pylist():
        known = sorted(row["candidates"], key=lambda c: (-c["similarity"], c["image_id"]))
        candidates = tuple(
            Candidate(
                c["image_id"],
                c["landmark_id"],
                c["similarity"],
                _NOWHERE,
                c["inliers"],
                augmented=c.get("augmented"),
            )
            for c in known[:num_to_rerank]
        )
        queries.append(QueryCandidates(row["image_id"], _NOWHERE, candidates, row["verified"]))
    return CandidateUnit(uri.rsplit("/", 1)[-1].removesuffix(".parquet"), tuple(queries))


_NOWHERE = FeatureLocation("", 0, 0)

CANDIDATES = "candidates"

_LOCATION = [("unit", pa.string()), ("offset", pa.int64()), ("size", pa.int32())]
_CANDIDATE = pa.struct(
    [("image_id", pa.string()), ("landmark_id", pa.string()), ("similarity", pa.float32()), *_LOCATION]
)
CANDIDATES_SCHEMA = pa.schema([("image_id", pa.string()), *_LOCATION, ("candidates", pa.list_(_CANDIDATE))])


def part_uri(run: str, block: str, first: int) -> str:
    """Where the part of `block` that begins with its query number `first` lies."""
    return files.join(run, CANDIDATES, f"{block}-{first:06d}.parquet")


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
    files.write_parquet(uri, pa.Table.from_pylist(rows, CANDIDATES_SCHEMA))


def delete_candidates(run: str) -> None:
    """Deletes the candidates of a run, and their folder."""
    folder = files.join(run, CANDIDATES)
    for uri in files.list_files(folder, ".parquet"):
        files.delete(uri)
    files.delete_empty(folder)


def delete_blocks(run: str, blocks: Container[str]) -> None:
    """Deletes what a run has of some blocks of queries: predictions, failures and candidates."""
    for part in ("predictions", "failures", CANDIDATES):
        for uri in files.list_files(files.join(run, part), ".parquet"):
            name = uri.rsplit("/", 1)[-1].removeprefix("verify-")
            if name.partition("-")[0].removesuffix(PROVISIONAL) in blocks:
                files.delete(uri)


def read_candidates(uri: str) -> list[QueryCandidates]:
    """Reads what write_candidates wrote, in its order."""

    def location(row: dict[str, Any]) -> FeatureLocation:
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
