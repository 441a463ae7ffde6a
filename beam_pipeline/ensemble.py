"""Ensembles: several runs of the same queries, by other models or settings, whose candidates are joined by
image. What is joined is scored, tuned and calibrated like the candidates of one run.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms.storage import run_store
from transforms.types import Candidate, CandidateUnit, LostError, QueryCandidates

_STEPS = 4  # weights that are tried are multiples of 1 / _STEPS


def weightings(runs: int) -> list[tuple[float, ...]]:
    """The weights of runs that are tried: each sums to 1, that of the first run is never 0; the more of it,
    the earlier.
    """
    parts = itertools.product(range(_STEPS + 1), repeat=runs)
    found = [part for part in parts if sum(part) == _STEPS and part[0]]
    return [tuple(n / _STEPS for n in part) for part in sorted(found, reverse=True)]


def joined(found: Sequence[QueryCandidates | None], weights: Sequence[float]) -> QueryCandidates:
    """One query of several runs, as one: of each image the weighted means of what the runs know of it. A run
    that did not propose an image is taken to have found it as little similar as its last candidate, without
    inliers.

    Args:
      found: the query in each run; None where a run lacks it, but for the first.
      weights: of the runs.

    Raises:
      ValueError: an image has another label in another run.
    """
    known = [(query, weight) for query, weight in zip(found, weights) if query is not None and weight]
    total = sum(weight for _, weight in known)
    images: dict[str, Candidate] = {}
    for query, _ in known:
        for c in query.candidates:
            other = images.setdefault(c.image_id, c)
            if other.landmark_id != c.landmark_id:
                raise ValueError(
                    f"image {c.image_id} shows {other.landmark_id} in one run and {c.landmark_id} in "
                    "another: an ensemble is of indexes of the same photographs and labels"
                )
    sums = {name: [0.0, 0.0, 0.0] for name in images}
    augmented = all(c.augmented is not None for query, _ in known for c in query.candidates)
    for query, weight in known:
        if not query.candidates:
            continue
        of = {c.image_id: c for c in query.candidates}
        least = min(c.similarity for c in query.candidates), min(c.augmented or 0.0 for c in query.candidates)
        for name, sum_ in sums.items():
            own, part = of.get(name), weight / total
            sum_[0] += part * (least[0] if own is None else own.similarity)
            sum_[1] += part * (least[1] if own is None else own.augmented or 0.0)
            sum_[2] += part * (0 if own is None else own.inliers or 0)
    verified = all(query.verified for query, _ in known)
    candidates = [
        dataclasses.replace(
            c,
            similarity=float(np.float32(sums[name][0])),  # as a run keeps it
            augmented=float(np.float32(sums[name][1])) if augmented else None,
            inliers=round(sums[name][2]) if verified else None,
        )
        for name, c in images.items()
    ]
    first = known[0][0]
    ranked = tuple(sorted(candidates, key=lambda c: (-c.similarity, c.image_id)))
    return dataclasses.replace(first, candidates=ranked, verified=verified)


@dataclasses.dataclass
class JoinRuns(beam.PTransform):
    """Begins a pipeline: the queries of several runs, joined, in the units of the first.

    Attributes:
      shards: the prediction shards of each run.
      weights: of the runs.
      num_to_rerank: candidates of each run that count.
      lacking: ids of the first run's queries that each run lacks.
    """

    shards: Sequence[Sequence[str]]
    weights: Sequence[float]
    num_to_rerank: int
    lacking: Sequence[frozenset[str]]

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[CandidateUnit]:
        count, weights, lacking = self.num_to_rerank, tuple(self.weights), tuple(self.lacking)
        pair, named = tuple[str, tuple[str, QueryCandidates]], tuple[str, QueryCandidates]

        def read(uri: str) -> Iterator[tuple[str, tuple[str, QueryCandidates]]]:
            unit = run_store.read_prediction_unit(uri, count)
            yield from ((query.image_id, (unit.name, query)) for query in unit.queries)

        def join(
            image_id: str, sides: dict[int, Iterable[tuple[str, QueryCandidates]]]
        ) -> Iterator[tuple[str, QueryCandidates]]:
            found = [next(iter(sides[run]), None) for run in range(len(weights))]
            if found[0] is not None:
                for number, side in enumerate(found):
                    if side is None and image_id not in lacking[number]:
                        raise LostError(f"query {image_id} of run {number + 1} was lost by the engine")
                yield found[0][0], joined([side and side[1] for side in found], weights)

        def unit(name: str, queries: Iterable[QueryCandidates]) -> CandidateUnit:
            return CandidateUnit(name, tuple(sorted(queries, key=lambda query: query.image_id)))

        runs = {
            number: begin
            | f"Shards {number}" >> beam.Create(list(shards)).with_output_types(str)
            | f"Read {number}" >> beam.FlatMap(read).with_output_types(pair)
            for number, shards in enumerate(self.shards)
        }
        return (
            runs
            | "ByQuery" >> beam.CoGroupByKey()
            | "Join" >> beam.FlatMapTuple(join).with_output_types(named)
            | "ByUnit" >> beam.GroupByKey()
            | "Unit" >> beam.MapTuple(unit).with_output_types(CandidateUnit)
        )
