"""Exact nearest neighbours by cosine: a fast pass with a proven error, then an exact score for what lies
within it.

The order of neighbours is defined by one number per pair, the exact score

    float32( float64( sum_i q_i x_i ) )

of the true sum, which no order of adding up can change, and by the index image's id where two are equal. So
duplicate images tie exactly. The fast pass (`transforms.arrays.dot_products`) only decides for which pairs
that number is computed: with its error it gives a lower and an upper bound of each pair's exact score. A pair
whose upper bound is below k lower bounds of the same query cannot be among its k best. So the answer is the
same whatever computes the fast pass, and however queries and index are cut into blocks.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np

from transforms.arrays.dot_products import (
    UNIT_TOLERANCE,
    NumpyProduct,
    Operand,
    Product,
    error_bounds,
    exact_scores,
    fastest_product,
    float32_bound,
)
from transforms.processes.settings import one_thread
from transforms.types import Neighbors

# A tile of scores, 8 MB, stays in the cache between the product and the selection.
TILE_ROWS = 4096
TILE_QUERIES = 512
_STEP = 2**17  # components of rows from memory at a time, half a MB
# Products of fewer multiplications than this are over before the fastest product is known.
SMALL_PRODUCT = 2e10


@dataclasses.dataclass(frozen=True)
class DescriptorBlock:
    """Images with their global descriptors.

    Attributes:
      image_ids: bytes [N], UTF-8.
      descriptors: float32 [N, D], rows of unit length.

    Raises:
      ValueError: the arrays do not fit together, or descriptors are not float32.
    """

    image_ids: np.ndarray
    descriptors: np.ndarray

    def __post_init__(self) -> None:
        shape, count = self.descriptors.shape, len(self.image_ids)
        if len(shape) != 2 or shape[0] != count or self.descriptors.dtype != np.float32:
            raise ValueError(
                f"{count} images need descriptors of float32 [{count}, D], not {self.descriptors.dtype} "
                f"{list(shape)}"
            )

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclasses.dataclass(frozen=True)
class IndexBlock(DescriptorBlock):
    """Index images with what the records of their neighbours need.

    Attributes:
      landmark_ids: bytes [N].
      units: bytes [N], name of the index shard.
      local_offset: int64 [N], see FeatureLocation.
      local_size: int32 [N], see FeatureLocation.
    """

    landmark_ids: np.ndarray
    units: np.ndarray
    local_offset: np.ndarray
    local_size: np.ndarray


def nearest(queries: DescriptorBlock, index: IndexBlock, k: int, product: Product | None = None) -> Neighbors:
    """The k best index images of each query, exactly.

    Queries and index are two sets: equal ids are two photographs. Equal scores are ordered by image_id.

    Args:
      queries: Q images.
      index: N images; N may be 0 or less than k.
      k: neighbours per query.
      product: for the fast pass; by default the fastest on this machine, or NumPy's where there is little to
        compute. The result does not depend on it.

    Returns:
      Neighbors [Q, k], padded as Neighbors says.

    Raises:
      ValueError: k < 1, widths differ, or a descriptor is not of unit length within UNIT_TOLERANCE.
    """
    return Searcher(index).nearest(queries, k, product)


class Searcher:
    """Searches one block of an index for several blocks of queries.

    Args:
      index: N images.
      keep: whether the index stays in the form that a product takes, in 8 bits a quarter as large as its
        descriptors again, from one search to the next.
    """

    def __init__(self, index: IndexBlock, keep: bool = False) -> None:
        self._index, self._keep = index, keep
        self._operands: dict[tuple[str, int], Operand] = {}
        self._rank = np.empty(len(index), np.int64)
        self._rank[np.argsort(index.image_ids, kind="stable")] = np.arange(len(index))

    def nearest(self, queries: DescriptorBlock, k: int, product: Product | None = None) -> Neighbors:
        """See the function of this name."""
        index = self._index
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if not len(queries) or not len(index):
            return _table(
                index, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), len(queries), k
            )
        width = queries.descriptors.shape[1]
        if index.descriptors.shape[1] != width:
            raise ValueError(
                f"queries have descriptors of width {width}, the index of width {index.descriptors.shape[1]}"
            )
        _check_unit(queries, "query")
        if product is None:
            product = (
                fastest_product() if len(queries) * len(index) * width >= SMALL_PRODUCT else NumpyProduct()
            )
        parts = max(_cores(), -(-len(queries) // TILE_QUERIES))
        starts = np.unique(np.linspace(0, len(queries), parts, endpoint=False, dtype=np.int64))
        with one_thread, ThreadPoolExecutor(min(_cores(), len(starts))) as pool:
            scans = [
                _Scan(descriptors, index, self._rank, k, product)
                for descriptors in np.split(queries.descriptors, starts[1:])
            ]
            self._scan(scans, product, pool)
            query, row, score = zip(*pool.map(_Scan.finish, scans))
        query = np.concatenate([q + start for q, start in zip(query, starts)])
        return _table(index, query, np.concatenate(row), np.concatenate(score), len(queries), k)

    def _scan(self, scans: "Sequence[_Scan]", product: Product, pool: Executor) -> None:
        """Takes every scan through all tiles, in their order.

        No scan waits for another: while one selects, another multiplies, on this tile or the next. The pool
        begins what it is given in that order, so what a task waits for has begun before it.
        """

        def tile(scan: _Scan, low: int, operand: Future[Operand], before: Future[None] | None) -> None:
            if before:
                before.result()
            scan.tile(low, operand.result())

        starts = range(0, len(self._index), TILE_ROWS)
        following = pool.submit(self._operand, 0, product)
        before: Sequence[Future[None] | None] = [None] * len(scans)
        for low in starts:
            operand = following
            if low != starts[-1]:
                following = pool.submit(self._operand, low + TILE_ROWS, product)
            tasks = [pool.submit(tile, scan, low, operand, task) for scan, task in zip(scans, before)]
            for done in filter(None, before):
                done.result()  # so that there are no more than three tiles at a time
            before = tasks
        for done in filter(None, before):
            done.result()

    def _operand(self, low: int, product: Product) -> Operand:
        operand = self._operands.get((product.name, low))
        if operand is None:
            index, high = self._index, low + TILE_ROWS
            _check_unit(index, "index", low, high)
            operand = product.of_index(index.descriptors[low:high])
            if self._keep:
                self._operands[product.name, low] = operand
        return operand


def merge(a: Neighbors, b: Neighbors, k: int) -> Neighbors:
    """The k best of two sets of neighbours of the same queries, found in different parts of an index.

    Associative and commutative, so parts may be merged in any order.

    Raises:
      ValueError: a and b have different numbers of queries.
    """
    if len(a.similarity) != len(b.similarity):
        raise ValueError(
            f"neighbours of {len(a.similarity)} queries cannot be merged with those of {len(b.similarity)}"
        )
    both = {
        f.name: np.concatenate([getattr(a, f.name), getattr(b, f.name)], axis=1)
        for f in dataclasses.fields(Neighbors)
    }
    order = np.argsort(-both["similarity"], axis=1, kind="stable")
    ordered = np.take_along_axis(both["similarity"], order, axis=1)
    tied = np.flatnonzero(np.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > -np.inf), axis=1))
    order[tied] = np.lexsort((both["image_id"][tied], -both["similarity"][tied]), axis=1)
    merged = {name: np.take_along_axis(values, order[:, :k], axis=1) for name, values in both.items()}
    missing = max(0, k - order.shape[1])
    return Neighbors(
        **{
            n: np.pad(v, ((0, 0), (0, missing)), constant_values=_PADDING.get(n, b""))
            for n, v in merged.items()
        }
    )


_PADDING = {"similarity": -np.inf, "local_offset": 0, "local_size": 0}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_unit(block: DescriptorBlock, what: str, start: int = 0, stop: int | None = None) -> None:
    rows = block.descriptors[start:stop]
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # so that NaN is wrong
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} {what} descriptors are not of unit length within {UNIT_TOLERANCE:g}; "
            f"the first is that of {block.image_ids[start + wrong[0]].decode()}, of length "
            f"{lengths[wrong[0]]:g}"
        )


class _Scan:
    """The search for the neighbours of a few hundred queries, tile by tile of the index.

    `_limit`, float64 [Q], is a score that the k-th best of each query reaches at least: the least of `_best`,
    k lower bounds of exact scores of different pairs. It rises as pairs are kept, and may lag behind, since a
    lower limit only keeps more.
    """

    def __init__(
        self, queries: np.ndarray, index: IndexBlock, rank: np.ndarray, k: int, product: Product
    ) -> None:
        self._queries, self._index, self._rank, self._product = queries, index, rank, product
        self._operand = product.of_queries(queries)
        self._best = np.full((len(queries), k), -np.inf)
        self._limit = self._best[:, 0]
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, row, upper bound
        self._new: list[tuple[np.ndarray, np.ndarray]] = []  # query, lower bound; not in _best yet

    def tile(self, low: int, operand: Operand) -> None:
        """Keeps the pairs of a tile that can be among the k best; its first row is row `low` of the index."""
        scores, scale = self._product.scores(self._operand, operand), self._operand.scale
        (count, width), k = scores.shape, self._best.shape[1]
        of_query, of_row = error_bounds(self._product, self._queries.shape[1], self._operand, operand)
        widest = of_query + of_row.max()
        first = not self._kept
        if first:
            # The best of each of some parts of the tile: the k best of them are a good limit, and cheaper
            # than the tile's k best.
            parts = max(64, 2 ** (16 * k - 1).bit_length())
            peaks = scores.reshape(count, -1, parts).max(axis=1) if width % parts == 0 else scores
            self._raise(peaks * scale[:, None] - widest[:, None])
        least = ((self._limit - widest) / scale).astype(np.float32)
        least = np.nextafter(least, np.float32(-np.inf))  # rounded down
        places = np.flatnonzero(scores >= least[:, None])
        starts = np.arange(count) * width
        pairs = np.diff(np.searchsorted(places, starts), append=len(places))  # of each query
        query, row = np.repeat(np.arange(count, dtype=np.int16), pairs), places - np.repeat(starts, pairs)
        fast = scores.reshape(-1)[places] * np.repeat(scale, pairs)
        bound, limit = np.repeat(of_query, pairs) + of_row[row], np.repeat(self._limit, pairs)
        keep = np.flatnonzero(fast + bound >= limit)
        self._kept.append((query[keep], (row[keep] + low).astype(np.int32), (fast + bound)[keep]))
        if not first:  # whose best are in _best, if with a wider bound
            higher = np.flatnonzero(fast - bound > limit)
            self._new.append((query[higher], (fast - bound)[higher]))
            if sum(len(query) for query, _ in self._new) >= self._best.size // 2:
                self._raise_from_new()

    def _raise_from_new(self) -> None:
        if self._new:
            query, lower = (np.concatenate(parts) for parts in zip(*self._new))
            self._new = []
            order = np.argsort(query, kind="stable")
            query, lower = query[order], lower[order]
            place = _place(query)
            table = np.full((len(self._best), place.max(initial=-1) + 1), -np.inf)
            table[query, place] = lower
            self._raise(table)

    def _raise(self, lower: np.ndarray) -> None:
        """Takes lower bounds [Q, P] of new pairs into `_best`."""
        k = self._best.shape[1]
        both = np.hstack([self._best, lower])
        self._best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
        self._limit = self._best[:, 0]

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k best pairs (query, row) of each query and their exact scores, float32, in order."""
        self._raise_from_new()
        query, row, upper = (np.concatenate(parts) for parts in zip(*self._kept))
        possible = np.flatnonzero(upper >= self._limit[query])
        order = possible[np.argsort(query[possible], kind="stable")]  # of int16, so a radix sort
        query, row, upper = query[order], row[order], upper[order]
        starts, k = np.searchsorted(query, np.arange(len(self._queries))), self._best.shape[1]
        # The k of each query that are likely its best tell a better limit for the others than bounds do.
        likely = np.concatenate(
            [
                start + np.argpartition(-part, min(k, len(part)) - 1)[:k]
                for start, part in zip(starts, np.split(upper, starts[1:]))
            ]
        )
        score = np.full(len(query), -np.inf, np.float32)
        score[likely] = self._exact(query[likely], row[likely])
        least = np.minimum.reduceat(score[likely], np.searchsorted(query[likely], np.arange(len(starts))))
        others = np.flatnonzero((score == -np.inf) & (upper >= least[query]))
        others = others[self._reach(query[others], row[others], least)]
        score[others] = self._exact(query[others], row[others])
        scored = np.flatnonzero(score > -np.inf)
        order = scored[np.lexsort((self._rank[row[scored]], -score[scored], query[scored]))]
        order = order[_place(query[order]) < k]
        return query[order].astype(np.int64), row[order], score[order]

    def _exact(self, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Exact scores, float32, of pairs."""
        scores = np.empty(len(query), np.float32)
        for some, queries, rows in self._gathered(query, row):
            scores[some] = exact_scores(queries.astype(np.float64), rows.astype(np.float64))
        return scores

    def _reach(self, query: np.ndarray, row: np.ndarray, least: np.ndarray) -> np.ndarray:
        """bool [P], false only where the exact score of a pair is below `least` of its query: by a product in
        float32, so that few pairs need one in float64.
        """
        reach, least = np.empty(len(query), bool), least - float32_bound(self._queries.shape[1])
        for some, queries, rows in self._gathered(query, row):
            reach[some] = np.vecdot(queries, rows) >= least[query[some]]
        return reach

    def _gathered(
        self, query: np.ndarray, row: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The descriptors of pairs, some pairs at a time: their places, queries and index rows.

        Rows come in their order, so that those of several pairs come once from memory; queries are few and
        stay in the cache.
        """
        order, step = np.argsort(row), max(1, _STEP // self._queries.shape[1])
        for low in range(0, len(order), step):
            some = order[low : low + step]
            queries = np.take(self._queries, query[some], axis=0, mode="clip")
            yield some, queries, np.take(self._index.descriptors, row[some], axis=0, mode="clip")


def _place(query: np.ndarray) -> np.ndarray:
    """int64 [P]: place of each pair among those of its query, from 0, for pairs in the order of their
    queries.
    """
    return np.arange(len(query)) - np.searchsorted(query, query)


def _table(
    index: IndexBlock, query: np.ndarray, row: np.ndarray, score: np.ndarray, count: int, k: int
) -> Neighbors:
    """Neighbors [count, k] of at most k pairs of each query, in the order of query, best first."""
    place = _place(query)

    def filled(name: str, values: np.ndarray) -> np.ndarray:
        table = np.full((count, k), _PADDING.get(name, b""), values.dtype)
        table[query, place] = values
        return table

    columns = {
        "similarity": score,
        "image_id": index.image_ids[row],
        "landmark_id": index.landmark_ids[row],
        "unit": index.units[row],
        "local_offset": index.local_offset[row],
        "local_size": index.local_size[row],
    }
    return Neighbors(**{name: filled(name, values) for name, values in columns.items()})
