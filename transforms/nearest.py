"""Exact nearest neighbours by cosine: a fast pass with a proven error bound, then an exact re-score of what lies inside it.

The order of neighbours is defined by one number per pair, the exact score

    float32( sum_i float64(q_i) * float64(x_i)  -  penalty_x )

summed by NumPy's pairwise rule, whose order depends on the width alone, and by the index image's id where two are equal. The
fast pass only decides which pairs that number is computed for, so the answer is the same whatever computes the fast pass and
however queries and index are cut into blocks. Duplicate images tie exactly.

Error bound. Let q and x be rows of length at most 1 + t (t = UNIT_TOLERANCE, so |q||x| <= n = (1 + t)^2) and width D, p the
penalty of x, u = 2^-24 float32's unit roundoff (round to nearest), v that of the operands' type and w that of the result's
(bfloat16 keeps 8 significant bits: 2^-8; float32: none beyond u).

1. Operands. Rounded, q_i' = q_i (1 + a_i), |a_i| <= v, likewise x. |q'.x' - q.x| <= sum |q_i x_i| (2 v + v^2)
   <= n (2 v + v^2), by Cauchy and Schwarz. Products of two bfloat16 are exact in float32.
2. Sum. In any order, with or without fused multiply-add, a sum of m = D + 3 products of float32 accumulated in float32 errs by at
   most g = m u / (1 - m u) times the sum of the absolute products (Higham, Accuracy and Stability, section 3.1), which is
   at most n (1 + v)^2 + |p|. Flushed subnormals add at most m 2^-125.
3. Penalty. It rides along as further columns (1 in the query, parts of -p in the row) that represent a float32 exactly:
   three bfloat16 hold 24 bits. It adds nothing beyond step 2.
4. Result. The accumulated value r becomes s, |s - r| <= w |r|, so |s - r| <= w' |s| with w' = w / (1 - w).
5. The exact score itself is rounded to float32, by at most u (n + |p|) and less than as much again for float64 and the
   subtraction.

So |s - exact| <= w' |s| + c, with c the sum of 1, 2 and 5. If t_k is the k-th best fast score of some rows, k rows have exact
scores of at least t_k - w' |t_k| - c, and a row can only be among the k best when s + w' |s| + c is at least that.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any, Optional, Protocol

import numpy as np

from transforms.types import Neighbors

UNIT_TOLERANCE = 1e-3
TILE_ROWS = 4096
TILE_QUERIES = 1024
# Products of fewer multiplications than this are over before a library that is faster at them would be imported.
SMALL_PRODUCT = 1e10


@dataclasses.dataclass(frozen=True)
class DescriptorBlock:
    """Images with their global descriptors.

    Attributes:
      image_ids: bytes [N], UTF-8.
      descriptors: float32 [N, D], rows of unit length.
    """

    image_ids: np.ndarray
    descriptors: np.ndarray

    def __post_init__(self) -> None:
        if self.descriptors.ndim != 2 or len(self.descriptors) != len(self.image_ids) or self.descriptors.dtype != np.float32:
            raise ValueError(
                f"{len(self.image_ids)} images need descriptors of float32 [{len(self.image_ids)}, D], "
                f"not {self.descriptors.dtype} {list(self.descriptors.shape)}"
            )

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclasses.dataclass(frozen=True)
class IndexBlock(DescriptorBlock):
    """Index images with what their neighbours' records need.

    Attributes:
      landmark_ids: bytes [N].
      units: bytes [N], name of the index shard.
      local_offset: int64 [N], see FeatureLocation.
      local_size: int32 [N], see FeatureLocation.
      penalty: float32 [N], subtracted from the cosine before the k best are taken; None for none.
    """

    landmark_ids: np.ndarray
    units: np.ndarray
    local_offset: np.ndarray
    local_size: np.ndarray
    penalty: Optional[np.ndarray] = None


class Product(Protocol):
    """A way to compute the fast pass. Scores come as sortable keys: an array whose order is the scores' order.

    Attributes:
      name: for a person.
      operand_roundoff: v of the module's text.
      result_roundoff: w of the module's text.
    """

    name: str
    operand_roundoff: float
    result_roundoff: float

    def operand(self, rows: np.ndarray) -> Any:
        """Rows, float32 [N, D], in the form that `scores` takes."""

    def penalty_columns(self, penalty: np.ndarray) -> np.ndarray:
        """float32 [N, C] of values that `operand` keeps exactly and whose sum is -penalty."""

    def scores(self, queries: Any, rows: Any) -> np.ndarray:
        """Keys [Q, N] of the dot products of two operands."""

    def keys(self, scores: np.ndarray) -> np.ndarray:
        """Keys of float32 scores, rounded down."""

    def values(self, keys: np.ndarray) -> np.ndarray:
        """float32 scores of keys."""


class Float32Product:
    """NumPy's float32 matrix product; a key is the score."""

    name = "float32"
    operand_roundoff = 0.0
    result_roundoff = 0.0

    def operand(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def penalty_columns(self, penalty: np.ndarray) -> np.ndarray:
        return -penalty[:, None]

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return queries @ rows.T

    def keys(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def values(self, keys: np.ndarray) -> np.ndarray:
        return keys


class Bfloat16Product:
    """TensorFlow's bfloat16 matrix product, which sums in float32; a key is the result's bits as int16, negative ones flipped."""

    name = "bfloat16"
    operand_roundoff = 2.0**-8
    result_roundoff = 2.0**-8

    def __init__(self) -> None:
        import tensorflow as tf

        self._tf = tf

    def operand(self, rows: np.ndarray) -> Any:
        return self._tf.cast(rows, self._tf.bfloat16)

    def penalty_columns(self, penalty: np.ndarray) -> np.ndarray:
        columns, rest = [], -penalty
        for _ in range(3):
            columns.append((rest.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))  # the 8 leading bits, exactly
            rest = rest - columns[-1]
        return np.stack(columns, axis=1)

    def scores(self, queries: Any, rows: Any) -> np.ndarray:
        bits = self._tf.matmul(queries, rows, transpose_b=True).numpy().view(np.int16)
        return bits ^ ((bits >> 15) & np.int16(0x7FFF))

    def keys(self, scores: np.ndarray) -> np.ndarray:
        bits = scores.astype(np.float32).view(np.int32)
        return ((bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))) >> 16).astype(np.int16)

    def values(self, keys: np.ndarray) -> np.ndarray:
        bits = keys ^ ((keys >> 15) & np.int16(0x7FFF))
        return (bits.astype(np.int32) << 16).view(np.float32)


@functools.lru_cache(maxsize=None)
def fastest_product() -> Product:
    """The faster of the products on this machine, measured once per process on a small product.

    bfloat16 is taken only where it beats float32 and keeps its bound on rows whose products all have one sign, which a sum kept
    in bfloat16 would break.
    """
    rng = np.random.default_rng(0)
    rows = np.abs(rng.standard_normal((2048, 2048), np.float32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:512]
    try:
        bfloat16: Product = Bfloat16Product()
    except ImportError:
        return Float32Product()
    seconds = {}
    for product in (Float32Product(), bfloat16):
        a, b = product.operand(queries), product.operand(rows)
        keys = product.scores(a, b)
        runs = []
        for _ in range(2):
            start = time.perf_counter()
            product.scores(a, b)
            runs.append(time.perf_counter() - start)
        fast, exact = product.values(keys), queries.astype(np.float64) @ rows.T.astype(np.float64)
        result_error, error = _error_bound(product, rows.shape[1], 0.0)
        if np.all(np.abs(fast - exact) <= result_error * np.abs(fast) + error):
            seconds[product] = min(runs)
    return min(seconds, key=seconds.__getitem__)


def nearest(queries: DescriptorBlock, index: IndexBlock, k: int, product: Optional[Product] = None) -> Neighbors:
    """The k best index images of each query, exactly; see the module's text for what that means and why it holds.

    An index image with the query's own id is never its neighbour. Equal scores are ordered by image_id. `similarity` is the
    cosine less the index image's penalty.

    Args:
      queries: Q images.
      index: N images; N may be 0 or less than k.
      k: neighbours per query.
      product: computes the fast pass; by default the fastest here, or float32 where there is little to compute. It has no
        influence on the result.

    Returns:
      Neighbors [Q, k], padded as Neighbors says.

    Raises:
      ValueError: k < 1, widths differ, or a descriptor is not of unit length within UNIT_TOLERANCE.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not len(queries) or not len(index):
        return _gather(index, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), len(queries), k)
    width = queries.descriptors.shape[1]
    if index.descriptors.shape[1] != width:
        raise ValueError(f"queries have descriptors of width {width}, the index of width {index.descriptors.shape[1]}")
    _check_unit(queries, "query")
    if product is None:
        product = fastest_product() if len(queries) * len(index) * width >= SMALL_PRODUCT else Float32Product()
    by_id = np.argsort(index.image_ids, kind="stable")
    own = _own_rows(queries.image_ids, index.image_ids, by_id)
    penalty = 0.0 if index.penalty is None else float(np.abs(index.penalty).max())
    bound = _error_bound(product, width, penalty)
    query, row, fast = _candidates(queries.descriptors, index, own, k, product, bound)
    query, row, exact = _rescore(queries.descriptors, index, query, row, fast, k, bound)
    id_rank = np.empty(len(index), np.int64)
    id_rank[by_id] = np.arange(len(index))
    order = np.lexsort((id_rank[row], -exact, query))
    return _gather(index, query[order], row[order], exact[order], len(queries), k)


def merge(a: Neighbors, b: Neighbors, k: int) -> Neighbors:
    """The k best of two sets of neighbours of the same queries, found in different parts of an index.

    Associative and commutative, so parts may be merged in any order.

    Raises:
      ValueError: a and b have different numbers of queries.
    """
    if len(a.similarity) != len(b.similarity):
        raise ValueError(f"neighbours of {len(a.similarity)} queries cannot be merged with those of {len(b.similarity)}")
    both = {f.name: np.concatenate([getattr(a, f.name), getattr(b, f.name)], axis=1) for f in dataclasses.fields(Neighbors)}
    order = np.argsort(-both["similarity"], axis=1, kind="stable")
    ordered = np.take_along_axis(both["similarity"], order, axis=1)
    tied = np.flatnonzero(np.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > -np.inf), axis=1))
    if len(tied):
        order[tied] = np.lexsort((both["image_id"][tied], -both["similarity"][tied]), axis=1)
    order = order[:, :k]
    merged = Neighbors(**{name: np.take_along_axis(values, order, axis=1) for name, values in both.items()})
    return merged if merged.similarity.shape[1] == k else _pad(merged, k)


def _error_bound(product: Product, width: int, penalty: float) -> tuple[float, float]:
    """(w', c) of the module's text for rows of `width` and penalties of at most `penalty` in size."""
    u, v, w = 2.0**-24, product.operand_roundoff, product.result_roundoff
    n, m = (1 + UNIT_TOLERANCE) ** 2, width + 3
    accumulation = m * u / (1 - m * u) * (n * (1 + v) ** 2 + penalty) + m * 2.0**-125
    return w / (1 - w), n * (2 * v + v * v) + accumulation + 2 * u * (n + penalty)


def _lowest_candidate(kth: np.ndarray, bound: tuple[float, float]) -> np.ndarray:
    """The least fast score that can still be among the k best where the k-th best fast score is `kth`, float64."""
    relative, absolute = bound
    kth = kth.astype(np.float64)
    return _least_fast(np.where(kth >= 0, kth * (1 - relative), kth * (1 + relative)) - absolute, bound)


def _least_fast(exact: np.ndarray, bound: tuple[float, float]) -> np.ndarray:
    """The least fast score of a row whose exact score is at least `exact`."""
    relative, absolute = bound
    least = exact - absolute
    return np.where(least >= 0, least / (1 + relative), least / (1 - relative))


def _check_unit(block: DescriptorBlock, what: str, start: int = 0, stop: Optional[int] = None) -> None:
    rows = block.descriptors[start:stop]
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))
    if len(wrong):
        image_id = block.image_ids[start + wrong[0]].decode()
        raise ValueError(
            f"{len(wrong)} {what} descriptors are not of unit length within {UNIT_TOLERANCE:g}; "
            f"the first is that of {image_id!r}, of length {lengths[wrong[0]]:g}"
        )


def _own_rows(query_ids: np.ndarray, index_ids: np.ndarray, by_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, row) of the same id, as two int64 arrays ordered by row."""
    ordered = index_ids[by_id]
    first, last = np.searchsorted(ordered, query_ids, "left"), np.searchsorted(ordered, query_ids, "right")
    count = last - first
    query = np.repeat(np.arange(len(query_ids)), count)
    row = by_id[np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())]
    order = np.argsort(row, kind="stable")
    return query[order], row[order]


def _candidates(
    queries: np.ndarray, index: IndexBlock, own: tuple[np.ndarray, np.ndarray], k: int, product: Product, bound: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (query, row) that can be among the k best, with their fast scores; every one of the k best is among them.

    Tile by tile, each query's k-th best fast score so far rises, and so does the least score that is kept.
    """
    count, extra = len(queries), index.penalty is not None
    best = np.full((count, k), -np.inf, np.float32)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    if extra:
        columns = product.penalty_columns(index.penalty)
        queries = np.concatenate([queries, np.ones((count, columns.shape[1]), np.float32)], axis=1)
    chunks = [(start, product.operand(queries[start : start + TILE_QUERIES])) for start in range(0, count, TILE_QUERIES)]
    for low in range(0, len(index), TILE_ROWS):
        high = min(low + TILE_ROWS, len(index))
        _check_unit(index, "index", low, high)
        rows = index.descriptors[low:high]
        operand = product.operand(np.concatenate([rows, columns[low:high]], axis=1) if extra else rows)
        own_here = slice(*np.searchsorted(own[1], [low, high]))
        for start, chunk in chunks:
            keys = product.scores(chunk, operand)
            stop = start + len(keys)
            mine = (own[0][own_here] >= start) & (own[0][own_here] < stop)
            keys[own[0][own_here][mine] - start, own[1][own_here][mine] - low] = product.keys(np.float32([-np.inf]))[0]
            kth = best[start:stop, -1]
            if low == 0 and high > k:
                kth = product.values(np.partition(keys, high - k, axis=1)[:, high - k])
            least = product.keys(_round_down(_lowest_candidate(kth, bound)))
            at = np.flatnonzero(keys >= least[:, None])
            query, row = np.divmod(at, high - low)
            fast = product.values(keys.reshape(-1)[at])
            real = fast > -np.inf
            query, row, fast = query[real], row[real], fast[real]
            best[start:stop] = _raise_best(best[start:stop], query, fast)
            kept.append((query + start, row + low, fast))
    query, row, fast = (np.concatenate(parts) for parts in zip(*kept))
    inside = fast >= _lowest_candidate(best[:, -1], bound)[query]
    return query[inside], row[inside], fast[inside]


def _round_down(values: np.ndarray) -> np.ndarray:
    """float32 values not above those given."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _raise_best(best: np.ndarray, query: np.ndarray, fast: np.ndarray) -> np.ndarray:
    """The k best fast scores per query, best first, of those so far [Q, k] and new ones; `query` is ascending."""
    if not len(query):
        return best
    k = best.shape[1]
    order = np.lexsort((-fast, query))
    place = _places(query)
    few = place < k
    new = np.full_like(best, -np.inf)
    new[query[few], place[few]] = fast[order][few]
    return -np.sort(-np.concatenate([best, new], axis=1), axis=1)[:, :k]


def _places(query: np.ndarray) -> np.ndarray:
    """Position of each element within its run of equal values; `query` is ascending."""
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    return np.arange(len(query)) - np.repeat(starts, np.diff(np.r_[starts, len(query)]))


def _rescore(
    queries: np.ndarray,
    index: IndexBlock,
    query: np.ndarray,
    row: np.ndarray,
    fast: np.ndarray,
    k: int,
    bound: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that can be among the k best, with exact scores.

    The k best by the fast pass come first: the least of their exact scores is a better limit for the rest.
    """
    if not len(query):
        return query, row, fast
    order = np.lexsort((-fast, query))
    query, row, fast = query[order], row[order], fast[order]
    first = _places(query) < k
    exact = np.full(len(query), np.inf, np.float32)
    exact[first] = _exact(queries, index, query[first], row[first])
    limit = np.full(len(queries), np.inf)
    np.minimum.at(limit, query[first], exact[first])
    rest = ~first & (fast >= _least_fast(limit, bound)[query])
    exact[rest] = _exact(queries, index, query[rest], row[rest])
    keep = first | rest
    return query[keep], row[keep], exact[keep]


def _exact(queries: np.ndarray, index: IndexBlock, query: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Exact scores of pairs, float32 [P]."""
    scores = np.empty(len(query))
    step = max(1, 2**18 // max(1, queries.shape[1]))
    for at in range(0, len(query), step):
        part = slice(at, at + step)
        products = queries[query[part]].astype(np.float64)
        products *= index.descriptors[row[part]]
        scores[part] = products.sum(axis=1)
    if index.penalty is not None:
        scores -= index.penalty[row]
    return scores.astype(np.float32)


def _gather(index: IndexBlock, query: np.ndarray, row: np.ndarray, score: np.ndarray, count: int, k: int) -> Neighbors:
    """Neighbors [count, k] of pairs ordered by query, best first."""
    place = _places(query)
    few = place < k
    query, row, score, place = query[few], row[few], score[few], place[few]

    def table(values: np.ndarray, fill: Any) -> np.ndarray:
        filled = np.full((count, k), fill, values.dtype)
        filled[query, place] = values
        return filled

    return Neighbors(
        similarity=table(score, -np.inf),
        image_id=table(index.image_ids[row], b""),
        landmark_id=table(index.landmark_ids[row], b""),
        unit=table(index.units[row], b""),
        local_offset=table(index.local_offset[row], 0),
        local_size=table(index.local_size[row], 0),
    )


def _pad(neighbors: Neighbors, k: int) -> Neighbors:
    """Neighbors with columns added up to k."""
    missing = k - neighbors.similarity.shape[1]
    fills = {"similarity": -np.inf, "local_offset": 0, "local_size": 0}
    return Neighbors(**{
        f.name: np.pad(v := getattr(neighbors, f.name), ((0, 0), (0, missing)), constant_values=fills.get(f.name, b""))
        for f in dataclasses.fields(Neighbors)
    })
