"""Aggregation: the candidates of a query are scored and ranked, and become one predicted landmark and its
confidence.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Optional

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from transforms.arrays.calibration import Calibration, evidence, probabilities
from transforms.arrays.scoring import CandidateTable, vote
from transforms.types import (
    CandidateUnit,
    Prediction,
    PredictionUnit,
    QueryCandidates,
    ScoringSettings,
    landmark_order,
)


def candidate_table(queries: Sequence[QueryCandidates]) -> tuple[CandidateTable, list[str]]:
    """The candidates of queries as arrays, and the landmark ids by their numbers there.

    The order of landmarks is as numbers where all of these are decimal integers, else by code points.
    """
    shape = len(queries), max((len(query.candidates) for query in queries), default=0)
    names = {c.landmark_id for query in queries for c in query.candidates}
    landmarks = sorted(names, key=landmark_order(names))
    images = sorted({c.image_id for query in queries for c in query.candidates})
    number_of = {name: n for n, name in enumerate(landmarks)}, {name: n for n, name in enumerate(images)}
    table = CandidateTable(
        np.full(shape, -np.inf), np.full(shape, np.nan), *(np.zeros(shape, np.int64) for _ in range(3))
    )
    for row, query in enumerate(queries):
        for column, c in enumerate(query.candidates):
            at = row, column
            table.similarity[at] = c.similarity
            table.augmented[at] = np.nan if c.augmented is None else c.augmented
            table.inliers[at] = c.inliers or 0
            table.landmark[at], table.image[at] = number_of[0][c.landmark_id], number_of[1][c.image_id]
    return table, landmarks


def aggregate(
    query: QueryCandidates,
    settings: ScoringSettings,
    calibration: Calibration | None = None,
    min_probability: float = 0.0,
) -> Prediction:
    """Predicts the landmark whose best candidates have the highest sum of total scores.

    Args:
      query: candidates in any order.
      settings: how they are scored, and how many of them vote.
      calibration: what makes a probability of them; None for none.
      min_probability: below it the landmark is None.

    Returns:
      The landmark, its sum, and the candidates by their total score, best first; equal ones in ascending
      order of image_id. Among equal sums the lowest landmark id wins, as a number where all of the query's
      are decimal integers, else by code points. Without candidates the landmark is None.
    """
    table, landmarks = candidate_table([query])
    votes = vote(table, settings)
    if votes.landmark[0] < 0:
        return Prediction(query.image_id, None, None, verified=query.verified)
    total, order = votes.total[0], votes.order[0]
    ranked = tuple(dataclasses.replace(query.candidates[at], score=float(total[at])) for at in order)
    landmark, score = landmarks[votes.landmark[0]], float(votes.score[0])
    probability = None
    if calibration is not None:
        probability = float(probabilities(evidence(table, votes), calibration)[0])
        if probability < min_probability:
            return Prediction(query.image_id, None, None, ranked, query.verified, probability)
    return Prediction(query.image_id, landmark, score, ranked, query.verified, probability)


@dataclasses.dataclass
class AggregatePredictions(beam.PTransform):
    """CandidateUnits -> PredictionUnits, a Prediction for each query; see `aggregate`.

    Attributes:
      settings, calibration, min_probability: see `aggregate`.
    """

    settings: ScoringSettings = ScoringSettings()
    calibration: Calibration | None = None
    min_probability: float = 0.0

    @property
    def of_query(self) -> Callable[[QueryCandidates], Prediction]:
        """`aggregate` with these attributes."""
        return functools.partial(
            aggregate,
            settings=self.settings,
            calibration=self.calibration,
            min_probability=self.min_probability,
        )

    def expand(self, units: beam.PCollection[CandidateUnit]) -> beam.PCollection[PredictionUnit]:
        return units | "Aggregate" >> beam.ParDo(_Aggregate(self.of_query))


@beam.typehints.with_input_types(CandidateUnit)
@beam.typehints.with_output_types(PredictionUnit)
class _Aggregate(beam.DoFn):
    def __init__(self, aggregate: Callable[[QueryCandidates], Prediction]):
        self._aggregate = aggregate
        self._predicted = Metrics.counter("landmarks", "aggregate_predicted")
        self._empty = Metrics.counter("landmarks", "aggregate_empty")

    def process(self, unit: CandidateUnit) -> Iterable[PredictionUnit]:
        predictions = tuple(map(self._aggregate, unit.queries))
        empty = sum(prediction.landmark_id is None for prediction in predictions)
        self._empty.inc(empty)
        self._predicted.inc(len(predictions) - empty)
        yield PredictionUnit(unit.name, predictions, unit.failures, unit.final)


class PredictionRow(NamedTuple):
    """A prediction as a row of Beam's, which SQL, YAML and its sinks take.

    Attributes:
      image_id, landmark_id, score, verified: see Prediction.
    """

    image_id: str
    landmark_id: Optional[str]  # noqa: UP045  (Beam's schemas do not know `X | None`)
    score: Optional[float]  # noqa: UP045
    verified: bool


class PredictionRows(beam.PTransform):
    """PredictionUnits -> PredictionRows, one per query; candidates and failures are left out."""

    def expand(self, units: beam.PCollection[PredictionUnit]) -> beam.PCollection[PredictionRow]:
        return units | "Rows" >> beam.FlatMap(_rows).with_output_types(PredictionRow)


def _rows(unit: PredictionUnit) -> Iterator[PredictionRow]:
    for p in unit.predictions:
        yield PredictionRow(p.image_id, p.landmark_id, p.score, p.verified)
