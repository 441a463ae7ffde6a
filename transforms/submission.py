"""The submission: one row per query image matched, predicted or not, as the competition wants it."""

import dataclasses

import apache_beam as beam
import pyarrow as pa

from transforms.storage import files, tables
from transforms.storage.run_store import (
    PREDICTION_SCHEMA,
    UNPREDICTED,
    prediction_table,
    read_predictions,
    write_predictions,
)
from transforms.storage.worklist import listed_image_ids
from transforms.types import Prediction, PredictionUnit

SUBMISSION = "submission.csv"
WANTED = "wanted.parquet"  # ids of the submission's rows, in their order


def write_submission(run: str) -> None:
    """Writes RUN/submission.csv from the prediction shards and the plan of a run, for the images that it says
    are wanted, or all.

    Predictions are ranked by their probability where they have one. Images without a prediction get null
    predictions, in a shard of their own, and an empty row. May be called again when there are more
    predictions.
    """
    unpredicted = files.join(run, "predictions", UNPREDICTED + ".parquet")
    files.delete(unpredicted)
    columns = ["image_id", "landmark_id", "score", "probability"]
    schema = pa.schema([PREDICTION_SCHEMA.field(c) for c in columns])
    predicted = pa.concat_tables([schema.empty_table(), *read_predictions(run, columns)])
    known = set(predicted.column("image_id").to_pylist())
    missing = [image_id for image_id in listed_image_ids(run) if image_id not in known]
    if missing:
        table = prediction_table(Prediction(image_id, None, None) for image_id in missing)
        files.write_parquet(unpredicted, table)
        predicted = pa.concat_tables([predicted, table.select(columns)])
    ids = None
    if files.exists(files.join(run, WANTED)):
        ids = files.read_parquet(files.join(run, WANTED))["image_id"].combine_chunks()
    tables.write_submission_csv(files.join(run, SUBMISSION), tables.ranked_by_probability(predicted), ids)


@dataclasses.dataclass
class WritePredictions(beam.PTransform):
    """PredictionUnits -> names (str) of their shards, written to a run.

    Attributes:
      run: folder of the run.
    """

    run: str

    def expand(self, units: beam.PCollection[PredictionUnit]) -> beam.PCollection[str]:
        run = self.run

        def write(unit: PredictionUnit) -> str:
            write_predictions(run, unit)
            return unit.name

        return units | "WriteShard" >> beam.Map(write).with_input_types(PredictionUnit).with_output_types(str)
