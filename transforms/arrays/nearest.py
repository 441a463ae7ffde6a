"""Exact nearest neighbours by cosine: a fast pass with a proven error, then an exact score for what lies
within it.

The order of neighbours is defined by one number per pair, the exact score

    float32( float64( sum_i q_i x_i ) )

of the true sum, which no order of adding up can change, and by the index image's id where two are equal. So
duplicate images tie exactly. The fast pass (`transforms.arrays.dot_products`) only decides for which pairs
that number is computed: with its error it gives an upper bound of each pair's exact score. A pair whose upper
bound is below k exact scores of the same query cannot be among its k best. So the answer is the same whatever
computes the fast pass, and however queries and index are cut into blocks.
"""

import dataclasses
import math
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
# The part of its bound that an error is guessed to have at most; it errs to both sides.
_LIKELY_ERROR = 0.25
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
                index, np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32), k
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
        found = min(k, len(index))
        row, score, sure = self._search(queries.descriptors, found, product, guess=self._tiles > 1)
        again = np.flatnonzero(~sure)
        if len(again):
            some = queries.descriptors[again]  # few, for which nothing is worth preparing
            row[again], score[again], _ = self._search(some, found, NumpyProduct(), guess=False)
        return _table(index, row, score, k)

    def _search(
        self, queries: np.ndarray, k: int, product: Product, guess: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index rows of the k best, int64 [Q, k], their exact scores, float32, and whether they are proven,
        bool [Q]: see _Scan.
        """
        parts = max(_cores(), -(-len(queries) // TILE_QUERIES))
        starts = np.unique(np.linspace(0, len(queries), parts, endpoint=False, dtype=np.int64))
        with one_thread, ThreadPoolExecutor(min(_cores(), len(starts))) as pool:
            scans = [
                _Scan(part, self._index, self._rank, k, self._tiles, guess, product)
                for part in np.split(queries, starts[1:])
            ]
            self._scan(scans, product, pool)
            row, score, sure = zip(*pool.map(_Scan.finish, scans))
        return np.concatenate(row), np.concatenate(score), np.concatenate(sure)

    def _scan(self, scans: "Sequence[_Scan]", product: Product, pool: Executor) -> None:
        """Takes every scan through all tiles, in their order.

        No scan waits for another: while one selects, another multiplies, on this tile or the next. The pool
        begins what it is given in that order, so what a task waits for has begun before it.
        """

        def tile(scan: _Scan, number: int, operand: Future[Operand], before: Future[None] | None) -> None:
            if before:
                before.result()
            scan.tile(number, operand.result())

        following = pool.submit(self._operand, 0, product)
        before: Sequence[Future[None] | None] = [None] * len(scans)
        for number in range(self._tiles):
            operand = following
            if number + 1 < self._tiles:
                following = pool.submit(self._operand, number + 1, product)
            tasks = [pool.submit(tile, scan, number, operand, task) for scan, task in zip(scans, before)]
            for done in filter(None, before):
                done.result()  # so that there are no more than three tiles at a time
            before = tasks
        for done in filter(None, before):
            done.result()

    @property
    def _tiles(self) -> int:
        """Number of tiles T; tile t has every T-th row from row t, so that each is a sample of the index."""
        return -(-len(self._index) // TILE_ROWS)

    def _operand(self, tile: int, product: Product) -> Operand:
        operand = self._operands.get((product.name, tile))
        if operand is None:
            rows = slice(tile, None, self._tiles)
            _check_unit(self._index, "index", rows)
            operand = product.of_index(self._index.descriptors[rows])
            if self._keep:
                self._operands[product.name, tile] = operand
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
    return _padded(
        {name: np.take_along_axis(values, order[:, :k], axis=1) for name, values in both.items()}, k
    )


_PADDING = {"similarity": -np.inf, "local_offset": 0, "local_size": 0}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_unit(block: DescriptorBlock, what: str, some: slice = slice(None)) -> None:
    rows = block.descriptors[some]
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # so that NaN is wrong
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} {what} descriptors are not of unit length within {UNIT_TOLERANCE:g}; "
            f"the first is that of {block.image_ids[some][wrong[0]].decode()}, of length "
            f"{lengths[wrong[0]]:g}"
        )


def sample_rank(k: int, samples: int) -> int:
    """The place, from 1, in one of so many samples of an index, of a score that the k-th best of the whole
    reaches: a sample holds k / samples of the k best in the mean, and as many as this, where it is less than
    k, for fewer than one query in 10,000.
    """
    mean = k / samples
    return min(k, math.ceil(mean + 4 * math.sqrt(mean) + 2))


class _Scan:
    """The search for the neighbours of a few hundred queries, tile by tile of the index.

    Kept are the pairs that can reach `_limit`, float64 [Q], which the first tile tells: its k-th best score
    less the error, which the k best of the whole reach. A guess is higher, and the k best found are proven
    where they reach it.

    Args:
      queries: float32 [Q, D].
      index: N images.
      rank: int64 [N], order of the images among equals.
      k: neighbours per query, at most N.
      tiles: number of tiles, see Searcher.
      guess: whether the limit is one.
      product: for the fast pass.
    """

    def __init__(
        self,
        queries: np.ndarray,
        index: IndexBlock,
        rank: np.ndarray,
        k: int,
        tiles: int,
        guess: bool,
        product: Product,
    ) -> None:
        self._queries, self._index, self._rank, self._product = queries, index, rank, product
        self._k, self._tiles, self._guess = k, tiles, guess
        self._operand = product.of_queries(queries)
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, row, upper bound

    def tile(self, number: int, operand: Operand) -> None:
        """Keeps the pairs of a tile that can be among the k best."""
        scores, scale = self._product.scores(self._operand, operand), self._operand.scale
        count, width = scores.shape
        of_query, of_row = error_bounds(self._product, self._queries.shape[1], self._operand, operand)
        widest = of_query + of_row.max()
        if not self._kept:
            place = sample_rank(self._k, self._tiles) if self._guess else self._k
            self._limit = ranked(scores, place) * scale
            if place == self._k:
                self._limit -= widest * (_LIKELY_ERROR if self._guess else 1)
        least = ((self._limit - widest) / scale).astype(np.float32)
        least = np.nextafter(least, np.float32(-np.inf))  # rounded down
        places = np.flatnonzero(scores >= least[:, None])
        starts = np.arange(count) * width
        pairs = np.diff(np.searchsorted(places, starts), append=len(places))  # of each query
        column = places - np.repeat(starts, pairs)
        upper = scores.reshape(-1)[places] * np.repeat(scale, pairs) + np.repeat(of_query, pairs)
        upper += of_row[column]
        query = np.repeat(np.arange(count, dtype=np.int16), pairs)
        self._kept.append((query, (number + self._tiles * column).astype(np.int32), upper))

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index rows of the k best of each query, int64 [Q, k], their exact scores, float32 [Q, k], and
        whether they are proven, bool [Q].
        """
        query, row, upper = (np.concatenate(parts) for parts in zip(*self._kept))
        order = np.argsort(query, kind="stable")  # of int16, so a radix sort
        query, row, upper = query[order], row[order], upper[order]
        starts, k = np.searchsorted(query, np.arange(len(self._queries))), self._k
        # The likely best of each query, a few more than k, tell a better limit for the others than bounds do.
        few = k + k // 4
        likely = np.concatenate(
            [
                start + np.argpartition(-part, min(few, len(part)) - 1)[:few]
                for start, part in zip(starts, np.split(upper, starts[1:]))
            ]
        )
        score = np.full(len(query), -np.inf, np.float32)
        score[likely] = self._exact(query[likely], row[likely])
        best = np.full((len(starts), few), -np.inf, np.float32)
        best[query[likely], _place(query[likely])] = score[likely]
        least = np.partition(best, -k, axis=1)[:, -k]
        others = np.flatnonzero((score == -np.inf) & (upper >= least[query]))
        others = others[self._reach(query[others], row[others], least)]
        score[others] = self._exact(query[others], row[others])
        scored = np.flatnonzero(score > -np.inf)
        order = scored[np.lexsort((self._rank[row[scored]], -score[scored], query[scored]))]
        place = _place(query[order])
        order, place = order[place < k], place[place < k]
        rows, scores = np.zeros((len(starts), k), np.int64), np.full((len(starts), k), -np.inf, np.float32)
        rows[query[order], place], scores[query[order], place] = row[order], score[order]
        return rows, scores, scores[:, -1] >= self._limit

    def _exact(self, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Exact scores, float32, of pairs."""
        scores = np.empty(len(query), np.float32)
        for some, queries, rows in self._gathered(query, row, np.float64):
            scores[some] = exact_scores(queries, rows)
        return scores

    def _reach(self, query: np.ndarray, row: np.ndarray, least: np.ndarray) -> np.ndarray:
        """bool [P], false only where the exact score of a pair is below `least` of its query: by a product in
        float32, so that few pairs need one in float64.
        """
        reach, least = np.empty(len(query), bool), least - float32_bound(self._queries.shape[1])
        for some, queries, rows in self._gathered(query, row, np.float32):
            reach[some] = np.vecdot(queries, rows) >= least[query[some]]
        return reach

    def _gathered(
        self, query: np.ndarray, row: np.ndarray, dtype: type[np.floating]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The descriptors of pairs, some pairs at a time: their places, queries and index rows, the latter
        two in the same memory each time, which costs less than new memory.

        Rows come in their order, so that those of several pairs come once from memory; queries are few and
        stay in the cache.
        """
        width = self._queries.shape[1]
        order, step = np.argsort(row), max(1, _STEP // width)
        taken = np.empty((2, min(step, len(order)), width), np.float32)
        cast = taken if dtype == np.float32 else np.empty(taken.shape, dtype)
        for low in range(0, len(order), step):
            some = order[low : low + step]
            np.take(self._queries, query[some], axis=0, mode="clip", out=taken[0, : len(some)])
            np.take(self._index.descriptors, row[some], axis=0, mode="clip", out=taken[1, : len(some)])
            if cast is not taken:
                cast[:, : len(some)] = taken[:, : len(some)]
            yield some, cast[0, : len(some)], cast[1, : len(some)]


def ranked(scores: np.ndarray, rank: int) -> np.ndarray:
    """About the `rank`-th best of each query's scores, float32 [Q, N]: float64 [Q], which at least so many
    scores reach; -inf where there are fewer.
    """
    count, width = scores.shape
    if rank > width:
        return np.full(count, -np.inf)
    # Of the best of each of many parts: nearly as high, and cheaper than of all.
    parts = max(64, 2 ** (16 * rank - 1).bit_length())
    whole = width // parts * parts
    if whole > parts:
        peaks = scores[:, :whole].reshape(count, -1, parts).max(axis=1)
        scores = np.hstack([peaks, scores[:, whole:]])
    return np.partition(scores, -rank, axis=1)[:, -rank].astype(np.float64)


def _place(query: np.ndarray) -> np.ndarray:
    """int64 [P]: place of each pair among those of its query, from 0, for pairs in the order of their
    queries.
    """
    return np.arange(len(query)) - np.searchsorted(query, query)


def _table(index: IndexBlock, row: np.ndarray, score: np.ndarray, k: int) -> Neighbors:
    """Neighbors [Q, k] of the rows [Q, at most k] of each query, best first."""
    columns = {"similarity": score} | {
        name: getattr(index, plural)[row]
        for name, plural in (
            ("image_id", "image_ids"),
            ("landmark_id", "landmark_ids"),
            ("unit", "units"),
            ("local_offset", "local_offset"),
            ("local_size", "local_size"),
        )
    }
    return _padded(columns, k)


def _padded(columns: dict[str, np.ndarray], k: int) -> Neighbors:
    """Neighbors [Q, k] of columns [Q, at most k], padded as Neighbors says."""
    return Neighbors(
        **{
            name: np.pad(values, ((0, 0), (0, k - values.shape[1])), constant_values=_PADDING.get(name, b""))
            for name, values in columns.items()
        }
    )
