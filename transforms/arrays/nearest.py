"""Exact nearest neighbours by cosine: a fast pass with a proven error, then an exact score for what lies
within it.

The order of neighbours is defined by one number per pair, the exact score

    float32( float64( sum_i q_i x_i ) )

of the true sum, which no order of adding up can change, and by the index image's id where two are equal. So
duplicate images tie exactly. The fast pass (`transforms.products`) only decides for which pairs that number
is computed, and its error is bounded: if T is the k-th best fast score of some rows, k rows have exact scores
of at least least_exact(T), and a row whose fast score is below least_fast(least_exact(T)) cannot be among the
k best. So the answer is the same whatever computes the fast pass, and however queries and index are cut into
blocks.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from transforms.arrays.dot_products import (
    UNIT_TOLERANCE,
    NumpyProduct,
    Product,
    error_bound,
    exact_scores,
    fastest_product,
)
from transforms.types import Neighbors

# A tile of scores, 4 MB in bfloat16, stays in the cache between the product and the selection.
TILE_ROWS = 4096
TILE_QUERIES = 512
_EXACT_STEP = 2**17  # products at a time, 1 MB in float64
# Products of fewer multiplications than this are over before TensorFlow would be imported.
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
      keep: whether the index stays in the form that a product takes, for bfloat16 half as large as its
        descriptors again, from one search to the next.
    """

    def __init__(self, index: IndexBlock, keep: bool = False) -> None:
        self._index, self._keep = index, keep
        self._operands: dict[tuple[str, int], Any] = {}
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
        scans = [
            _Scan(queries.descriptors[start : start + TILE_QUERIES], index, self._rank, k, product)
            for start in range(0, len(queries), TILE_QUERIES)
        ]
        with ThreadPoolExecutor(min(_cores(), len(scans)) + 1) as pool:
            self._scan(scans, product, pool)
            query, row, score = zip(*pool.map(_Scan.finish, scans))
        query = np.concatenate([q + TILE_QUERIES * i for i, q in enumerate(query)])
        return _table(index, query, np.concatenate(row), np.concatenate(score), len(queries), k)

    def _scan(self, scans: "Sequence[_Scan]", product: Product, pool: Executor) -> None:
        """Takes every scan through all tiles, in their order.

        No scan waits for another: while one selects, another multiplies, on this tile or the next. The pool
        begins what it is given in that order, so what a task waits for has begun before it.
        """

        def tile(scan: _Scan, low: int, operand: Future[Any], before: Future[None] | None) -> None:
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

    def _operand(self, low: int, product: Product) -> Any:
        operand = self._operands.get((product.name, low))
        if operand is None:
            index, high = self._index, low + TILE_ROWS
            _check_unit(index, "index", low, high)
            rows = index.descriptors[low:high]
            operand = product.operand(rows)
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

    `_best` holds fast scores of k pairs of each query, nearly its best ones so far, the least first. It rises
    as pairs are kept, and with it the least fast score that a pair needs to be kept; it may lag behind, since
    a lower limit only keeps more.
    """

    def __init__(
        self, queries: np.ndarray, index: IndexBlock, rank: np.ndarray, k: int, product: Product
    ) -> None:
        self._queries, self._index, self._rank, self._product = queries, index, rank, product
        self._bound = error_bound(product, queries)
        self._operand = product.operand(queries)
        self._best = np.full((len(queries), k), -np.inf, np.float32)
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._raised = 0  # of _kept, those before this are in _best

    def tile(self, low: int, operand: Any) -> None:
        """Keeps the pairs of a tile that can be among the k best; its first row is row `low` of the index."""
        keys, least = self._product.scores(self._operand, operand), self._least()
        if least.min() <= 0:
            keys = self._product.ordered(keys)
        width, k = keys.shape[1], self._best.shape[1]
        if not self._kept:
            # The best of each of some parts of the tile: the k best of them are a good limit, and cheaper
            # than the tile's k best.
            parts = max(64, 2 ** (16 * k - 1).bit_length())
            peaks = keys.reshape(len(keys), -1, parts).max(axis=1) if width % parts == 0 else keys
            self._raise_best(self._product.values(peaks))
            self._raised, least = 1, self._least()
        query, row = np.divmod(np.flatnonzero(keys >= least[:, None]), width)
        self._kept.append((query, row + low, self._product.values(keys[query, row])))
        if sum(len(kept[0]) for kept in self._kept[self._raised :]) >= self._best.size // 2:
            self._raise_from_kept()

    def _raise_from_kept(self) -> None:
        """Takes the pairs into `_best` that were kept since the last time; each pair is taken once."""
        if self._raised == len(self._kept):
            return
        query, _, fast = (np.concatenate(parts) for parts in zip(*self._kept[self._raised :]))
        self._raised = len(self._kept)
        order = np.argsort(query, kind="stable")
        query, fast = query[order], fast[order]
        place = _place(query)
        table = np.full((len(self._best), place.max(initial=-1) + 1), -np.inf, np.float32)
        table[query, place] = fast
        self._raise_best(table)

    def _raise_best(self, fast: np.ndarray) -> None:
        """Takes fast scores [Q, P] of new pairs into `_best`."""
        k = self._best.shape[1]
        both = np.hstack([self._best, fast])
        self._best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k best pairs (query, row) of each query and their exact scores, float32, in order."""
        self._raise_from_kept()
        query, row, fast = (np.concatenate(parts) for parts in zip(*self._kept))
        order = np.argsort(query, kind="stable")
        query, row, fast = query[order], row[order], fast[order]
        first = fast >= self._best[:, 0][query]
        exact = np.full(len(query), -np.inf, np.float32)
        exact[first] = self._exact(query[first], row[first])
        # At least k exact scores are known now, or all there are: the least of them is a better limit for the
        # rest.
        limit = np.full(len(self._queries), np.inf)
        np.minimum.at(limit, query[first], exact[first])
        rest = ~first & (fast >= self._bound.least_fast(limit)[query])
        exact[rest] = self._exact(query[rest], row[rest])
        scored = np.flatnonzero(first | rest)
        order = scored[np.lexsort((self._rank[row[scored]], -exact[scored], query[scored]))]
        order = order[_place(query[order]) < self._best.shape[1]]
        return query[order], row[order], exact[order]

    def _least(self) -> np.ndarray:
        """The least key that each query keeps."""
        return self._product.keys(self._bound.least_fast(self._bound.least_exact(self._best[:, 0])))

    def _exact(self, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Exact scores, float32, of pairs in the order of their queries."""
        queries, rows, sums = self._queries.astype(np.float64), self._index.descriptors, np.empty(len(query))
        width = rows.shape[1]
        step = max(1, _EXACT_STEP // width)
        gathered, widened = np.empty((step, width), np.float32), np.empty((step, width))
        ends = np.searchsorted(query, np.arange(len(queries)), "right")
        for q, (start, end) in enumerate(zip(np.append(0, ends), ends)):
            for at in range(start, end, step):
                part = slice(at, min(at + step, end))
                few, wide = gathered[: part.stop - at], widened[: part.stop - at]
                np.take(
                    rows, row[part], axis=0, out=few, mode="clip"
                )  # unlike "raise", writes to `out` itself
                np.copyto(wide, few)
                np.vecdot(wide, queries[q], out=sums[part])

        def terms(pair: int) -> list[float]:
            return (queries[query[pair]] * rows[row[pair]]).tolist()

        return exact_scores(sums, width, terms)


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
