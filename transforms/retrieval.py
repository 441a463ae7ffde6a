"""Retrieval as a Beam step: blocks of queries against groups of index shards, read where they lie, merged per
query.

What is shuffled are ids, similarities and locations. A worker holds one group and one block at a time, never
the index.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from transforms.arrays.nearest import DescriptorBlock, IndexBlock, Searcher, merge
from transforms.storage import files, run_store
from transforms.storage.feature_store import FeatureStore, descriptors_of
from transforms.storage.run_store import PROVISIONAL
from transforms.types import CandidateUnit, FeatureLocation, LostError, Neighbors, QueryCandidates

# Index images in memory at a time: 268 MB of descriptors 2,048 wide. In a larger group more is left out by
# the fast pass.
GROUP_ROWS = 32768
# Queries that are searched at once: each reading of the index serves all of a block.
IMAGES_PER_BLOCK = 4096
# Blocks that meet a group while it is in memory: more blocks than this share the reading of a group less, and
# workers more.
BLOCKS_PER_TASK = 8
# Shards read at a time: an object store answers each only after a while, on a disk more readers get in each
# other's way.
LOCAL_READERS, REMOTE_READERS = 2, 16
# Neighbours in one shuffled element, at some 70 bytes each.
ELEMENT_NEIGHBORS = 50_000
# Queries that are verified, and whose predictions are written, as one.
UNIT_QUERIES = 32

# Of a worker, the whole process, with room to spare (benchmarks/README.md, "Choices").
MIN_RAM = "4GB"

# Tasks at a time in one process, whatever its threads: one computes, on all cores, and one reads.
_TURNS = threading.BoundedSemaphore(2)

_UNIT, _DESCRIPTOR = "unit", "global_descriptor"
_LOCATION_COLUMNS = ("image_id", "local_offset", "local_size")


@dataclasses.dataclass(frozen=True)
class QueryBlock:
    """Query images that are searched together.

    Attributes:
      name: unique among the blocks, deterministic.
      units: shards of the query store, whose images in this order are the block.
      share: the part of these images that is asked for, chosen by a hash of their ids.
    """

    name: str
    units: tuple[str, ...]
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class IndexGroup:
    """Index shards that are read together.

    Attributes:
      name: unique among the groups, deterministic.
      units: shards of the index.
    """

    name: str
    units: tuple[str, ...]


def plan_groups(unit_rows: Iterable[tuple[str, int]], rows: int = GROUP_ROWS) -> list[IndexGroup]:
    """Consecutive index shards, given as (name, images), in groups of at most `rows` images; a larger shard
    is a group of its own.

    Raises:
      ValueError: rows < 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, not {rows}")
    groups: list[list[str]] = []
    held = 0
    for unit, count in unit_rows:
        if not groups or held + count > rows:
            groups.append([])
            held = 0
        groups[-1].append(unit)
        held += count
    return [
        IndexGroup(hashlib.sha256("\n".join(units).encode()).hexdigest()[:16], tuple(units))
        for units in groups
    ]


def plan_blocks(unit_images: Iterable[tuple[str, int]], images: int = IMAGES_PER_BLOCK) -> dict[str, str]:
    """The name of the query block of each unit, given as (name, images): consecutive units, with `images` of
    them or a little more in a block.
    """
    block_of: dict[str, str] = {}
    block, held = 0, 0
    for unit, count in unit_images:
        if held >= images:
            block, held = block + 1, 0
        held += count
        block_of[unit] = f"{block:05d}"
    return block_of


@dataclasses.dataclass
class GroupIntoBlocks(beam.PTransform):
    """Names of finished units (str) of queries -> QueryBlocks, each as soon as all of its units are there.

    A block that lacks units, since time ran out, is PROVISIONAL by name, and so are the prediction shards
    made from it.

    Attributes:
      block_of: name of the block by name of the unit, see `plan_blocks`; None for a block per unit, which
        reads the index more often.
    """

    block_of: Mapping[str, str] | None = None

    def expand(self, names: beam.PCollection[str]) -> beam.PCollection[QueryBlock]:
        block_of = self.block_of
        if block_of is None:
            alone = beam.Map(lambda unit: QueryBlock(unit, (unit,))).with_output_types(QueryBlock)
            return names | "BlockPerUnit" >> alone
        units_of = collections.Counter(block_of.values())

        def block(name: str, units: Iterable[str]) -> QueryBlock:
            members = tuple(sorted(units))
            return QueryBlock(name if len(members) == units_of[name] else name + PROVISIONAL, members)

        return (
            names
            | "KeyByBlock" >> beam.Map(lambda unit: (block_of[unit], unit)).with_output_types(tuple[str, str])
            | beam.GroupByKey()
            | "Block" >> beam.MapTuple(block).with_output_types(QueryBlock)
        )


def read_index_block(store: FeatureStore, units: Sequence[str]) -> IndexBlock:
    """The images of some shards of an index, in order.

    Raises:
      ValueError: the shards hold descriptors of different widths.
    """
    images, descriptors = _read(store, units, (*_LOCATION_COLUMNS, "landmark_id", _DESCRIPTOR))
    locations = _locations(images)
    return IndexBlock(
        image_ids=locations.image_ids,
        descriptors=descriptors,
        landmark_ids=_bytes(images, "landmark_id"),
        units=locations.units,
        local_offset=locations.local_offset,
        local_size=locations.local_size,
    )


def read_query_block(store: FeatureStore, block: QueryBlock) -> DescriptorBlock:
    """The images of a block, in order; errors as `read_index_block`."""
    images, descriptors = _read(store, block.units, ("image_id", _DESCRIPTOR))
    ids = _bytes(images, "image_id")
    chosen = _in_share(ids, block.share)
    return DescriptorBlock(ids[chosen], descriptors[chosen])


def count_queries(store: FeatureStore, block: QueryBlock) -> int:
    """Number of queries of a block."""
    ids = _bytes(_read(store, block.units, ("image_id",))[0], "image_id")
    return len(ids[_in_share(ids, block.share)])


def unit_sizes(store: FeatureStore, block: QueryBlock, k: int) -> dict[str, int]:
    """The units that RetrieveNearest makes of a block for k candidates per query, by name, and the number of
    queries of each.
    """
    queries, step = count_queries(store, block), _queries_per_element(k)
    parts = [(first, min(first + step, queries)) for first in range(0, queries, step)]
    return {
        _unit_name(block.name, start): min(UNIT_QUERIES, end - start)
        for first, end in parts
        for start in range(first, end, UNIT_QUERIES)
    }


def _queries_per_element(k: int) -> int:
    return max(1, ELEMENT_NEIGHBORS // k)


def _unit_name(block: str, first: int) -> str:
    return f"{block}-{first:06d}"


def _in_share(image_ids: np.ndarray, share: float) -> np.ndarray | slice:
    """Rows of the images, bytes [N], that are in a share."""
    if share >= 1:
        return slice(None)
    limit = int(share * 2**64)
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in image_ids.tolist())
    return np.array([int.from_bytes(digest, "big") < limit for digest in digests], bool)


@dataclasses.dataclass(frozen=True)
class _Locations:
    """Images and where their local features lie; see IndexBlock for the fields."""

    image_ids: np.ndarray
    units: np.ndarray
    local_offset: np.ndarray
    local_size: np.ndarray


def _locations(images: pa.Table) -> _Locations:
    return _Locations(
        image_ids=_bytes(images, "image_id"),
        units=_bytes(images, _UNIT),
        local_offset=images.column("local_offset").to_numpy(),
        local_size=images.column("local_size").to_numpy(),
    )


def _bytes(images: pa.Table, column: str) -> np.ndarray:
    """A string column as bytes [N]; null becomes empty."""
    return np.array(images.column(column).cast(pa.binary()).fill_null(b"").to_pylist(), "S")


def _read(store: FeatureStore, units: Sequence[str], columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
    """Columns of the images of some shards in order, with their unit, and apart from them the descriptors [N,
    D].

    Each shard's descriptors are copied to their place as it comes, so that they are in memory only once.
    """
    tables: list[pa.Table] = []
    rows, filled = np.empty((0, 0), np.float32), 0
    readers = LOCAL_READERS if files.is_local(store.root) else REMOTE_READERS
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        for unit, table in zip(units, pool.map(lambda unit: store.read_images(unit, columns), units)):
            if _DESCRIPTOR in columns:
                part = descriptors_of(table)
                table = table.drop_columns(_DESCRIPTOR)
                if not tables:
                    rows = np.empty(
                        (max(GROUP_ROWS, len(part)), part.shape[1]), np.float32
                    )  # takes memory only where filled
                if part.shape[1] != rows.shape[1]:
                    raise ValueError(
                        f"shard {unit} holds descriptors of width {part.shape[1]}, shard {units[0]} of "
                        f"{rows.shape[1]}"
                    )
                if filled + len(part) > len(rows):
                    rows = np.concatenate(
                        [rows[:filled], np.empty((filled + len(part), rows.shape[1]), np.float32)]
                    )
                rows[filled : filled + len(part)] = part
            filled += len(table)
            tables.append(table.append_column(_UNIT, pa.repeat(unit, len(table))))
    return pa.concat_tables(tables), rows[:filled]


_Merged: TypeAlias = tuple[Neighbors | None, int]


@beam.typehints.with_input_types(Neighbors)
@beam.typehints.with_output_types(tuple[Neighbors, int])
class MergeNeighbors(beam.CombineFn):
    """The k best of the neighbours found in the parts of an index, and the number of these parts."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self._k = k

    def create_accumulator(self) -> _Merged:
        return None, 0

    def add_input(self, accumulator: _Merged, element: Neighbors) -> _Merged:
        return self.merge_accumulators((accumulator, (element, 1)))

    def merge_accumulators(self, accumulators: Iterable[_Merged]) -> _Merged:
        merged, parts = self.create_accumulator()
        for neighbors, count in accumulators:
            if merged is None:
                merged = neighbors
            elif neighbors is not None:
                merged = merge(merged, neighbors, self._k)
            parts += count
        return merged, parts

    def extract_output(self, accumulator: _Merged) -> _Merged:
        return accumulator


@dataclasses.dataclass(eq=False)
class RetrieveNearest(beam.PTransform):
    """Exact k nearest index images of every query: PCollection[QueryBlock] to PCollection[CandidateUnit].

    Every query of the blocks comes out once, also where the index has nothing for it.

    Attributes:
      index: folder of the index, a feature store that is finished.
      queries: folder of the queries' feature store.
      k: candidates per query.
      groups: what is searched of the index, see `plan_groups`; None for all the units that it has when the
        pipeline is built.
      deadline: as time.time() tells it; no search begins after it, and queries make do with what was found
        before.
      run: folder where candidates are kept, so that a block whose candidates lie there is not searched again;
        None for nowhere.
    """

    index: str
    queries: str
    k: int
    groups: Sequence[IndexGroup] | None = None
    deadline: float = math.inf
    run: str | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")

    def expand(self, blocks: beam.PCollection[QueryBlock]) -> beam.PCollection[CandidateUnit]:
        index, queries, groups = FeatureStore(self.index), FeatureStore(self.queries), self.groups
        if groups is None:
            groups = plan_groups(index.current())
        step = _queries_per_element(self.k)
        known, blocks = blocks | "Known" >> beam.ParDo(_Known(queries, step, self.run)).with_outputs(
            _UNKNOWN, main="known"
        )
        found = (
            blocks.pipeline
            | "Groups" >> beam.Create(list(groups)).with_output_types(IndexGroup)
            | "WithBlocks"
            >> beam.FlatMap(_tasks, beam.pvalue.AsList(blocks)).with_output_types(
                tuple[IndexGroup, tuple[QueryBlock, ...]]
            )
            | "Spread" >> beam.Reshuffle()
            | "Nearest" >> beam.ParDo(_Nearest(index, queries, self.k, step, self.deadline))
            | "Merge"
            >> beam.CombinePerKey(MergeNeighbors(self.k)).with_output_types(
                tuple[tuple[str, int], tuple[Neighbors, int]]
            )
        )
        asked = blocks | "Queries" >> beam.ParDo(_Queries(queries, step))
        joined = {"queries": asked, "neighbors": found} | "Join" >> beam.CoGroupByKey()
        return (
            known,
            joined | "Candidates" >> beam.ParDo(_Candidates(len(groups), self.deadline, self.run)),
        ) | "All" >> beam.Flatten()


def _tasks(
    group: IndexGroup, blocks: Sequence[QueryBlock]
) -> Iterator[tuple[IndexGroup, tuple[QueryBlock, ...]]]:
    blocks = sorted(blocks, key=lambda b: b.name)
    for at in range(0, len(blocks), BLOCKS_PER_TASK):
        yield group, tuple(blocks[at : at + BLOCKS_PER_TASK])


def _rows(record: Any, rows: np.ndarray | slice) -> Any:
    """A record of arrays (Neighbors or _Locations) with some rows of each."""
    return dataclasses.replace(
        record, **{f.name: getattr(record, f.name)[rows] for f in dataclasses.fields(record)}
    )


@beam.typehints.with_input_types(tuple[IndexGroup, tuple[QueryBlock, ...]])
@beam.typehints.with_output_types(tuple[tuple[str, int], Neighbors])
class _Nearest(beam.DoFn):
    """Searches one group for some blocks; yields ((block, first query), neighbours) for every `step`
    queries.
    """

    def __init__(
        self, index: FeatureStore, queries: FeatureStore, k: int, step: int, deadline: float
    ) -> None:
        self._index, self._queries, self._k, self._step, self._deadline = index, queries, k, step, deadline
        self._block: tuple[str, DescriptorBlock] | None = None  # the last one read
        self._milliseconds = Metrics.distribution("landmarks", "retrieve_milliseconds")
        self._bytes = Metrics.counter("landmarks", "retrieve_descriptor_bytes_read")

    def process(
        self, task: tuple[IndexGroup, tuple[QueryBlock, ...]]
    ) -> Iterator[tuple[tuple[str, int], Neighbors]]:
        group, blocks = task
        held = self._block and self._block[0]
        with _TURNS:
            if time.time() >= self._deadline:
                return
            start = time.monotonic()
            index = read_index_block(self._index, group.units)
            self._bytes.inc(index.descriptors.nbytes)
            searcher = Searcher(index, keep=len(blocks) > 1)
            for block in sorted(blocks, key=lambda b: b.name != held):  # the one in memory first
                if time.time() >= self._deadline:
                    return
                neighbors = searcher.nearest(self._read(block), self._k)
                self._milliseconds.update(round(1000 * (time.monotonic() - start)))
                for first in range(0, len(neighbors.similarity), self._step):
                    yield (block.name, first), _rows(neighbors, slice(first, first + self._step))
                start = time.monotonic()

    def _read(self, block: QueryBlock) -> DescriptorBlock:
        if self._block is None or self._block[0] != block.name:
            self._block = None  # one block in memory, not two
            self._block = block.name, read_query_block(self._queries, block)
            self._bytes.inc(self._block[1].descriptors.nbytes)
        return self._block[1]


@beam.typehints.with_input_types(QueryBlock)
@beam.typehints.with_output_types(tuple[tuple[str, int], _Locations])
class _Queries(beam.DoFn):
    """The queries of a block in the parts that `_Nearest` makes."""

    def __init__(self, queries: FeatureStore, step: int) -> None:
        self._queries, self._step = queries, step
        self._in = Metrics.counter("landmarks", "retrieve_in")

    def process(self, block: QueryBlock) -> Iterator[tuple[tuple[str, int], _Locations]]:
        columns = _locations(_read(self._queries, block.units, _LOCATION_COLUMNS)[0])
        columns = _rows(columns, _in_share(columns.image_ids, block.share))
        self._in.inc(len(columns.image_ids))
        for first in range(0, len(columns.image_ids), self._step):
            yield (block.name, first), _rows(columns, slice(first, first + self._step))


_UNKNOWN = "unknown"


@beam.typehints.with_input_types(QueryBlock)
@beam.typehints.with_output_types(CandidateUnit, **{_UNKNOWN: QueryBlock})
class _Known(beam.DoFn):
    """Blocks whose candidates are kept -> their units; the other blocks go to the output _UNKNOWN."""

    def __init__(self, queries: FeatureStore, step: int, run: str | None) -> None:
        self._queries, self._step, self._run = queries, step, run

    def process(self, block: QueryBlock) -> Iterator[Any]:
        run = self._run
        if run is not None and PROVISIONAL not in block.name:
            kept = files.exists(run_store.part_uri(run, block.name, 0))
            parts = {
                first: run_store.part_uri(run, block.name, first)
                for first in range(0, count_queries(self._queries, block) if kept else 1, self._step)
            }
            if all(files.exists(uri) for uri in parts.values()):
                for first, uri in parts.items():
                    yield from _units(block.name, first, run_store.read_candidates(uri))
                return
        yield beam.pvalue.TaggedOutput(_UNKNOWN, block)


@beam.typehints.with_output_types(CandidateUnit)
class _Candidates(beam.DoFn):
    """Queries joined with their neighbours, kept where they are complete, in units.

    Raises:
      LostError: there was time for all, and yet queries or groups of the index are missing.
    """

    def __init__(self, groups: int, deadline: float, run: str | None) -> None:
        self._groups, self._deadline, self._run = groups, deadline, run
        self._out = Metrics.counter("landmarks", "retrieve_out")

    def process(self, joined: tuple[tuple[str, int], dict[str, Iterable[Any]]]) -> Iterator[CandidateUnit]:
        (block, first), sides = joined
        in_time = time.time() < self._deadline  # so that no search was left out
        neighbors, searched = next(iter(sides["neighbors"]), (None, 0))
        queries = next(iter(sides["queries"]), None)
        if queries is None or (in_time and searched < self._groups):
            what = (
                "the queries"
                if queries is None
                else f"{self._groups - searched:,} of {self._groups:,} groups"
            )
            raise LostError(f"{what} of block {block} from {first} on were lost by the engine")
        found = [_query_candidates(queries, neighbors, q) for q in range(len(queries.image_ids))]
        self._out.inc(len(found))
        if self._run is not None and in_time and PROVISIONAL not in block:
            run_store.write_candidates(run_store.part_uri(self._run, block, first), found)
        yield from _units(block, first, found)


def _units(block: str, first: int, queries: Iterable[QueryCandidates]) -> Iterator[CandidateUnit]:
    """Queries in units that are small enough to be verified, written and lost one by one.

    A unit holds queries of like promise, so that verification can begin with the most promising ones.
    """
    queries = sorted(queries, key=lambda query: (-query.promise, query.image_id))
    for start in range(0, len(queries), UNIT_QUERIES):
        members = sorted(queries[start : start + UNIT_QUERIES], key=lambda query: query.image_id)
        yield CandidateUnit(_unit_name(block, first + start), tuple(members))


def _query_candidates(queries: _Locations, neighbors: Neighbors | None, q: int) -> QueryCandidates:
    location = FeatureLocation(
        queries.units[q].decode(), int(queries.local_offset[q]), int(queries.local_size[q])
    )
    return QueryCandidates(
        queries.image_ids[q].decode(), location, () if neighbors is None else neighbors.candidates(q)
    )
