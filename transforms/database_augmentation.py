"""Augmentation as Beam steps: an index's augmented descriptors, made once and kept beside its features, and
the cosines of queries to those of their candidates. See `transforms.arrays.database_augmentation`.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from transforms.arrays.database_augmentation import Augmented, augment, augmented_cosines, without_query
from transforms.storage.derived_shards import DerivedShards, list_name, shard_name, unit_state
from transforms.storage.feature_store import FeatureStore, descriptors_of
from transforms.types import Candidate, CandidateUnit, LostError, QueryCandidates

KIND = "augmented"

_COLUMNS = ("image_id", "landmark_id", "global_descriptor")
SHARDS_HELD = 1024  # shards of 64 images in memory: 34 MB of descriptors 512 wide in 8 bits

_Unit = tuple[str, int]  # by `unit_state`, and the number of its landmarks


def augmented_shards(index: str) -> DerivedShards:
    """The augmented descriptors of an index: image_id, length, least, and descriptor, as `Augmented` has
    them.
    """
    return DerivedShards(index, KIND)


@dataclasses.dataclass
class AugmentIndex(beam.PTransform):
    """Names (str) of all units of an index that have images -> the name of the list of its augmented shards,
    once all that it lacked are written; nothing where it is too late.

    Attributes:
      index: folder of the index.
      deadline: as time.time() tells it; nothing is begun after it.
    """

    index: str
    deadline: float = math.inf

    def expand(self, units: beam.PCollection[str]) -> beam.PCollection[str]:
        store, shards, deadline = FeatureStore(self.index), augmented_shards(self.index), self.deadline

        def labels(unit: str) -> list[tuple[str, _Unit]]:
            column = store.read_images(unit, ["landmark_id"]).column("landmark_id")
            landmarks = column.unique().to_pylist()
            return [(label, (unit_state(unit, len(column)), len(landmarks))) for label in landmarks]

        def together(label: str, units: Iterable[_Unit]) -> list[tuple[_Unit, tuple[str, ...]]]:
            members = sorted(units)
            states = tuple(state for state, _ in members)
            return [(unit, states) for unit in members]

        def write_list(names: list[tuple[str, str]]) -> Iterator[str]:
            if names and time.time() < deadline:
                listed = list_name(state for state, _ in names)
                shards.write_list(listed, {state.partition(":")[0]: name for state, name in names})
                yield listed

        pair = tuple[str, str]
        return (
            units
            | "Labels" >> beam.FlatMap(labels).with_input_types(str).with_output_types(tuple[str, _Unit])
            | "ByLabel" >> beam.GroupByKey()
            | "Together" >> beam.FlatMapTuple(together).with_output_types(tuple[_Unit, tuple[str, ...]])
            | "ByUnit" >> beam.GroupByKey()
            | "Augment" >> beam.ParDo(_Augment(store, shards, deadline))
            | "Gather" >> beam.combiners.ToList()
            | "List" >> beam.FlatMap(write_list).with_input_types(list[pair]).with_output_types(str)
        )


@beam.typehints.with_input_types(tuple[_Unit, Iterable[tuple[str, ...]]])
@beam.typehints.with_output_types(tuple[str, str])
class _Augment(beam.DoFn):
    """A unit with all that have each of its landmarks, see `unit_state` -> the unit and the name of its
    shard, which is there then.

    Raises:
      LostError: landmarks of the unit are missing.
    """

    def __init__(self, store: FeatureStore, shards: DerivedShards, deadline: float) -> None:
        self._store, self._shards, self._deadline = store, shards, deadline
        self._milliseconds = Metrics.distribution("landmarks", "augment_milliseconds")

    def process(self, element: tuple[_Unit, Iterable[tuple[str, ...]]]) -> Iterator[tuple[str, str]]:
        (state, landmarks), groups = element[0], list(element[1])
        unit, made_of = state.partition(":")[0], sorted(set(itertools.chain.from_iterable(groups)))
        if lost := landmarks - len(groups):
            raise LostError(f"{lost:,} of {landmarks:,} landmarks of unit {unit} were lost by the engine")
        others = [other.partition(":")[0] for other in made_of]
        name = shard_name(unit, made_of)
        if not self._shards.has(name):
            if time.time() >= self._deadline:
                return
            started = time.monotonic()
            self._shards.write(name, augmented_table(self._store, unit, others))
            self._milliseconds.update(round(1000 * (time.monotonic() - started)))
        yield state, name


def augmented_table(store: FeatureStore, unit: str, others: Iterable[str]) -> pa.Table:
    """The augmented descriptors of the images of `unit`, in its order; `others`, the unit among them, have
    all images of its landmarks.
    """
    tables = {name: store.read_images(name, _COLUMNS) for name in others}
    own = tables[unit]
    wanted = own.column("landmark_id").unique()
    parts = [table.filter(pc.is_in(table.column("landmark_id"), wanted)) for table in tables.values()]
    known = pa.concat_tables(parts).sort_by("image_id")
    descriptors, landmarks = descriptors_of(known), np.array(known.column("landmark_id").to_pylist())
    place = {name: at for at, name in enumerate(known.column("image_id").to_pylist())}
    at = np.array([place[name] for name in own.column("image_id").to_pylist()])
    made = Augmented(
        np.empty((len(own), descriptors.shape[1]), np.int8),
        np.empty(len(own), np.float32),
        np.empty(len(own), np.float32),
    )
    for landmark in wanted.to_pylist():
        members = np.flatnonzero(landmarks == landmark)
        rows = np.flatnonzero(landmarks[at] == landmark)
        found = augment(np.searchsorted(members, at[rows]), descriptors[members])
        for field in dataclasses.fields(Augmented):
            getattr(made, field.name)[rows] = getattr(found, field.name)
    values = pa.array(made.descriptors.reshape(-1))
    return pa.table(
        {
            "image_id": own.column("image_id"),
            "length": made.length,
            "least": made.least,
            "descriptor": pa.FixedSizeListArray.from_arrays(values, descriptors.shape[1]),
        }
    )


@dataclasses.dataclass
class AugmentCandidates(beam.PTransform):
    """CandidateUnits -> the same, their candidates with cosines to the augmented descriptors.

    Attributes:
      index: folder of the index.
      queries: folder of the queries' feature store.
      listed: name of the list of the index's augmented shards; None where it has none, and nothing is done.
      leave_out: the queries are images of the index: each is left out of the sums of its own landmark.

    Raises:
      ValueError: in the pipeline, the list is of other units than those of the candidates.
    """

    index: str
    queries: str
    listed: str | None
    leave_out: bool = False

    def expand(self, units: beam.PCollection[CandidateUnit]) -> beam.PCollection[CandidateUnit]:
        if self.listed is None:
            return units
        queries = FeatureStore(self.queries)
        return units | "Augmented" >> beam.ParDo(
            _Cosines(augmented_shards(self.index), self.listed, queries, self.leave_out)
        )


@beam.typehints.with_input_types(CandidateUnit)
@beam.typehints.with_output_types(CandidateUnit)
class _Cosines(beam.DoFn):
    def __init__(self, shards: DerivedShards, listed: str, queries: FeatureStore, leave_out: bool) -> None:
        self._shards, self._listed, self._queries, self._leave_out = shards, listed, queries, leave_out

    def setup(self) -> None:
        names = self._shards.read_list(self._listed)

        def augmented(unit: str) -> tuple[dict[str, int], Augmented]:
            if unit not in names:
                raise ValueError(f"the augmented descriptors of {self._listed} lack those of unit {unit}")
            return read_augmented(self._shards, names[unit])

        self._augmented = functools.lru_cache(SHARDS_HELD)(augmented)
        self._query = functools.lru_cache(SHARDS_HELD // 16)(lambda unit: _query_rows(self._queries, unit))

    def teardown(self) -> None:
        del self._augmented, self._query

    def process(self, unit: CandidateUnit) -> Iterator[CandidateUnit]:
        yield dataclasses.replace(unit, queries=tuple(map(self._with_cosines, unit.queries)))

    def _with_cosines(self, query: QueryCandidates) -> QueryCandidates:
        landmark, descriptor = self._query(query.location.unit)[query.image_id]
        return dataclasses.replace(
            query, candidates=tuple(self._with_cosine(c, landmark, descriptor) for c in query.candidates)
        )

    def _with_cosine(self, candidate: Candidate, landmark: str | None, descriptor: np.ndarray) -> Candidate:
        places, shard = self._augmented(candidate.location.unit)
        at = places[candidate.image_id]
        row = slice(at, at + 1)
        augmented = Augmented(shard.descriptors[row], shard.length[row], shard.least[row])
        cosine = augmented_cosines(descriptor, augmented)
        if self._leave_out and candidate.landmark_id == landmark:
            plain = np.array([candidate.similarity], np.float32)
            cosine = without_query(cosine, augmented, plain)
        return dataclasses.replace(candidate, augmented=float(cosine[0]))


def read_augmented(shards: DerivedShards, name: str) -> tuple[dict[str, int], Augmented]:
    """The rows of an augmented shard, and where they are by id."""
    table = shards.read(name)
    column = table.column("descriptor").combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(table), -1)
    length, least = (table.column(part).to_numpy() for part in ("length", "least"))
    places = {image_id: at for at, image_id in enumerate(table.column("image_id").to_pylist())}
    return places, Augmented(rows, length, least)


def _query_rows(store: FeatureStore, unit: str) -> dict[str, tuple[str | None, np.ndarray]]:
    """Landmark and descriptor of the images of a shard, by id."""
    table = store.read_images(unit, _COLUMNS)
    names, landmarks = (table.column(part).to_pylist() for part in ("image_id", "landmark_id"))
    return dict(zip(names, zip(landmarks, descriptors_of(table))))
