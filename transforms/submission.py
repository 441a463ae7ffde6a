"""The submission: one row per query image matched, predicted or not, as the competition wants it."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa

from transforms import files, tables
from transforms.stores import PREDICTION_SCHEMA, read_predictions
from transforms.units import planned_image_ids

SUBMISSION = "submission.csv"
_UNPREDICTED = "unpredicted"


def write_submission(run: str) -> int:
    """Writes RUN/submission.csv from the prediction shards and the plan of a run.

    Images that failed get null predictions, in a shard of their own, and an empty row.

    Returns:
      Number of rows.
    """
    columns = ["image_id", "landmark_id", "score"]
    schema = pa.schema([PREDICTION_SCHEMA.field(c) for c in columns])
    predicted = pa.concat_tables([schema.empty_table(), *read_predictions(run, columns)])
    known = set(predicted.column("image_id").to_pylist())
    missing = [image_id for image_id in planned_image_ids(run) if image_id not in known]
    if missing:
        empty = [{"image_id": image_id, "landmark_id": None, "score": None, "candidates": []} for image_id in missing]
        table = pa.Table.from_pylist(empty, PREDICTION_SCHEMA)
        files.write_parquet(files.join(run, "predictions", _UNPREDICTED + ".parquet"), table)
        predicted = pa.concat_tables([predicted, table.select(columns)])
    tables.write_submission_csv(files.join(run, SUBMISSION), predicted)
    return len(predicted)


@dataclasses.dataclass
class WriteSubmission(beam.PTransform):
    """Names of prediction shards (str) -> number of rows (int) of the submission, written once all of them are there.

    Attributes:
      run: folder of the run.
    """

    run: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, names: beam.PCollection[str]) -> beam.PCollection[int]:
        run = self.run
        return (
            names
            | "AwaitAll" >> beam.combiners.Count.Globally()
            | "Write" >> beam.Map(lambda _: write_submission(run)).with_output_types(int)
        )
