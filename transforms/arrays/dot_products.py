"""Dot products of unit rows: fast ones, the proof of how far they can be from the exact ones, and the exact
ones.

Let q and x be a query and an index row of length at most 1 + t (t = UNIT_TOLERANCE) and width D. Let v be
the unit roundoff of the operands' type, w that of the result's type, u = 2^-24 float32's, all rounding to
nearest. bfloat16 keeps 8 significant bits: v = w = 2^-8. For float32 operands v = w = 0, since the sum's own
rounding is counted in step 2.

1. Operands. q becomes q', x becomes x', x_i' = x_i (1 + b_i), |b_i| <= v. By Cauchy and Schwarz
   |q'.x' - q.x| = |(q' - q).x' + q.(x' - x)| <= |q' - q| (1 + v) (1 + t) + (1 + t)^2 v.
   |q' - q| is measured for each query: it is about 0.4 v where the worst case is v (1 + t).
2. Sum. Products of two bfloat16 are exact in float32. In any order, with or without fused multiply-add, a sum
   of D products accumulated in float32 errs by at most D u / (1 - D u) times the sum of their absolute values
   (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), which by Cauchy and Schwarz is at
   most (1 + t)^2 (1 + v)^2. Flushed subnormals add at most D 2^-125.
3. Result. The accumulated r becomes s with |s - r| <= w |r|, so |s - r| <= w / (1 - w) |s|.
4. The exact score too is rounded: to float32 by at most u (1 + t)^2, and before to float64 by less than as
   much again.

So |s - exact| <= a |s| + c, with a = w / (1 - w) and c the sum of 1, 2 and 4.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from transforms.processes.tensorflow_runtime import import_tensorflow

UNIT_TOLERANCE = 1e-3


class Product(Protocol):
    """A way to compute dot products of many rows, fast and with a bounded error.

    Scores come as sortable keys: numbers in the order of the scores.

    Attributes:
      name: for a person.
      roundoff: v and w of the module's text.
    """

    name: str
    roundoff: float

    def operand(self, rows: np.ndarray) -> Any:
        """Rows, float32 [N, D], in the form that `scores` takes."""

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        """Rows, float32 [N, D], with the values that `operand` gives them."""

    def scores(self, queries: Any, rows: Any) -> np.ndarray:
        """Keys [Q, N] of the dot products of two operands, for the caller to write to; those below 0 are not
        in order yet.
        """

    def ordered(self, scores: np.ndarray) -> np.ndarray:
        """What `scores` gave, or a part of it, with those below 0 in order too; once."""

    def keys(self, scores: np.ndarray) -> np.ndarray:
        """Keys of float32 scores: of two scores the higher never has the lower key."""

    def values(self, keys: np.ndarray) -> np.ndarray:
        """float32 scores of keys."""


class NumpyProduct:
    """NumPy's float32 product; a key is the score."""

    name = "NumPy float32"
    roundoff = 0.0

    def operand(self, rows: np.ndarray) -> Any:
        return rows

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def scores(self, queries: Any, rows: Any) -> np.ndarray:
        return queries @ rows.T

    def ordered(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def keys(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def values(self, keys: np.ndarray) -> np.ndarray:
        return keys


class TensorFlowProduct(NumpyProduct):
    """TensorFlow's float32 product; on the processor, since on a GPU TensorFlow would round the operands to
    TensorFloat-32.
    """

    name = "TensorFlow float32"

    def __init__(self) -> None:
        self._tf = import_tensorflow()

    def operand(self, rows: np.ndarray) -> Any:
        with self._tf.device("CPU:0"):
            return self._tf.constant(rows)

    def scores(self, queries: Any, rows: Any) -> np.ndarray:
        with self._tf.device("CPU:0"):
            return self._tf.matmul(queries, rows, transpose_b=True).numpy()


class Bfloat16Product:
    """TensorFlow's bfloat16 product, summed in float32; a key is the result's bits as int16, those of
    negative numbers flipped.
    """

    name = "TensorFlow bfloat16"
    roundoff = 2.0**-8

    def __init__(self) -> None:
        tf = import_tensorflow()
        self._tf, self._type = tf, tf.bfloat16.as_numpy_dtype

    def operand(self, rows: np.ndarray) -> Any:
        # TensorFlow takes the memory as it is, without a copy; DLPack knows no bfloat16 of NumPy's.
        bits = _aligned(rows.shape, np.uint16)
        np.copyto(bits.view(self._type), rows, casting="unsafe")
        return self._tf.bitcast(
            self._tf.experimental.dlpack.from_dlpack(bits.__dlpack__()), self._tf.bfloat16
        )

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(self._type).astype(np.float32)

    def scores(self, queries: Any, rows: Any) -> np.ndarray:
        return np.asarray(self._tf.matmul(queries, rows, transpose_b=True)).view(np.int16)

    def ordered(self, scores: np.ndarray) -> np.ndarray:
        return scores ^ ((scores >> 15) & np.int16(0x7FFF))

    def keys(self, scores: np.ndarray) -> np.ndarray:
        bits = scores.view(np.int32)
        return ((bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))) >> 16).astype(np.int16)

    def values(self, keys: np.ndarray) -> np.ndarray:
        return (self.ordered(keys).astype(np.int32) << 16).view(np.float32)  # ordering twice undoes it


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An empty array whose memory begins where TensorFlow's begins: at a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class ErrorBound:
    """How far fast scores s can be from exact ones: at most relative * |s| + absolute.

    Attributes:
      relative: a of the module's text.
      absolute: c of the module's text, float64 [Q], by query.
    """

    relative: float
    absolute: np.ndarray

    def least_exact(self, fast: np.ndarray) -> np.ndarray:
        """float64 [Q]: no exact score is lower where the fast score is `fast`."""
        fast = fast.astype(np.float64)
        return np.where(fast >= 0, fast * (1 - self.relative), fast * (1 + self.relative)) - self.absolute

    def least_fast(self, exact: np.ndarray) -> np.ndarray:
        """float32 [Q]: no fast score is lower where the exact score is at least `exact`."""
        least = exact.astype(np.float64) - self.absolute
        least = np.where(least >= 0, least / (1 + self.relative), least / (1 - self.relative))
        # Rounded down, and by one step more for the float64 arithmetic here.
        return np.nextafter(least.astype(np.float32), np.float32(-np.inf))


def error_bound(product: Product, queries: np.ndarray) -> ErrorBound:
    """The bound of the module's text for these queries (float32 [Q, D])."""
    v, t, u, width = product.roundoff, UNIT_TOLERANCE, 2.0**-24, queries.shape[1]
    moved = (
        np.linalg.norm(product.rounded(queries).astype(np.float64) - queries, axis=1)
        if v
        else np.zeros(len(queries))
    )
    operands = moved * (1 + v) * (1 + t) + (1 + t) ** 2 * v
    accumulation = width * u / (1 - width * u) * (1 + t) ** 2 * (1 + v) ** 2 + width * 2.0**-125
    return ErrorBound(v / (1 - v), operands + accumulation + 2 * u * (1 + t) ** 2)


def exact_scores(sums: np.ndarray, width: int, terms: Callable[[int], Iterable[float]]) -> np.ndarray:
    """Exact scores from float64 sums: the true sum, rounded to float64 and to float32, in whatever order the
    sums were added up.

    A sum of m = width products, each exact in float64, errs by at most m u / (1 - m u) times the sum of their
    sizes, u = 2^-53, as in step 2 of the module's text. Nearly always all numbers so near round to one
    float32; else the sum is made anew, exactly.

    Args:
      sums: float64 [P], each of the products of two rows of this width.
      terms: gives the numbers whose sum sums[p] is.

    Returns:
      float32 [P].
    """
    error = (width + 2) * 2.0**-53 * (1 + UNIT_TOLERANCE) ** 2
    scores = (sums - error).astype(np.float32)
    for p in np.flatnonzero(scores != (sums + error).astype(np.float32)).tolist():
        scores[p] = math.fsum(terms(p))
    return scores


@functools.cache
def fastest_product() -> Product:
    """The fastest of the products on this machine, measured once per process on a small one.

    Those are left out that break their bound on rows of positive numbers, as a sum kept in bfloat16 would.
    """
    rows = np.abs(np.random.default_rng(0).standard_normal((2048, 2048), np.float32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:512]
    exact = queries.astype(np.float64) @ rows.T.astype(np.float64)
    products: list[Product] = [NumpyProduct()]
    if "tensorflow" in sys.modules:  # importing it would take longer than it saves
        products += [TensorFlowProduct(), Bfloat16Product()]
    seconds = {}
    for product in products:
        a, b = product.operand(queries), product.operand(rows)
        bound = error_bound(product, queries)
        scores = product.values(product.ordered(product.scores(a, b)))
        if np.all(np.abs(scores - exact) <= bound.relative * np.abs(scores) + bound.absolute[:, None]):
            seconds[product] = min(_seconds(product, a, b) for _ in range(3))
    return min(seconds, key=seconds.__getitem__)


def _seconds(product: Product, queries: Any, rows: Any) -> float:
    start = time.perf_counter()
    product.scores(queries, rows)
    return time.perf_counter() - start
