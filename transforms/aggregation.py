"""Aggregation: the verified candidates of a query become one predicted landmark and its confidence."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Optional

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.types import CandidateUnit, Prediction, PredictionUnit, QueryCandidates, landmark_order


def aggregate(query: QueryCandidates, top_k: int) -> Prediction:
    """Predicts the landmark whose candidates have the highest sum of scores.

    Args:
      query: candidates in their final order, best score first.
      top_k: so many of them vote, each with its `score` for its landmark.

    Returns:
      The landmark and its sum; among equal sums the lowest landmark id, as a number where all of the query's
      are decimal integers, else by code points. Without candidates the landmark is None.
    """
    sums: dict[str, float] = defaultdict(float)
    for candidate in query.candidates[:top_k]:
        sums[candidate.landmark_id] += candidate.score
    if not sums:
        return Prediction(query.image_id, None, None, verified=query.verified)
    order = landmark_order(sums)
    best = min(sums, key=lambda landmark: (-sums[landmark], order(landmark)))
    return Prediction(query.image_id, best, sums[best], query.candidates, query.verified)


@dataclasses.dataclass
class AggregatePredictions(beam.PTransform):
    """CandidateUnits in their final order -> PredictionUnits, a Prediction for each query; see `aggregate`.

    Attributes:
      top_k: how many candidates vote; at least 1.
    """

    top_k: int

    def __post_init__(self) -> None:
        super().__init__()
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")

    def expand(self, units: beam.PCollection[CandidateUnit]) -> beam.PCollection[PredictionUnit]:
        return units | "Aggregate" >> beam.ParDo(_Aggregate(self.top_k))


@beam.typehints.with_input_types(CandidateUnit)
@beam.typehints.with_output_types(PredictionUnit)
class _Aggregate(beam.DoFn):
    def __init__(self, top_k: int):
        self._top_k = top_k
        self._predicted = Metrics.counter("landmarks", "aggregate_predicted")
        self._empty = Metrics.counter("landmarks", "aggregate_empty")

    def process(self, unit: CandidateUnit) -> Iterable[PredictionUnit]:
        predictions = tuple(aggregate(query, self._top_k) for query in unit.queries)
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
