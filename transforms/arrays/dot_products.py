"""Dot products of unit rows: fast ones, the proof of how far they can be from the exact ones, and the exact
ones.

Let q and x be a query and an index row of length at most 1 + t (t = UNIT_TOLERANCE) and width D, u = 2^-24
float32's unit roundoff.

1. Operands. q becomes q', x becomes x'; a = |q' - q| and b = |x' - x| are measured for each row. By Cauchy
   and Schwarz |q'.x' - q.x| = |q.(x' - x) + (q' - q).x'| <= (1 + t) b + a (1 + t + b).
2. Sum. Each term goes through at most m roundings in float32, so that the sum errs by at most m u / (1 - m u)
   times the sum of the terms' absolute values (Higham, Accuracy and Stability of Numerical Algorithms,
   section 3.1), which by Cauchy and Schwarz is at most (1 + t + a) (1 + t + b). m is D for a product in
   float32, in any order, with or without fused multiply-add, and 3 where whole numbers are added up exactly
   and then scaled. Flushed subnormals add at most D 2^-125.
3. The exact score too is rounded: to float32 by at most u (1 + t)^2, and before to float64 by less than as
   much again.

Rows in 8 bits. Whole numbers times a scale of the row's own stand for its components. So that no component
needs a coarse scale for all of them, they are mixed first: with H a Hadamard matrix of order g, H / sqrt(g)
is orthogonal, so of two rows mixed alike the dot product stays, while a component D / g places from g - 1
others shares its size with them. In float32 that moves a row by at most g sqrt(g) u of its length, since a
sum of g terms errs by at most g u times the sum of their sizes.
"""

import dataclasses
import functools
import math
import time
from typing import Any, Protocol

import numpy as np

from transforms.arrays import integer_product

UNIT_TOLERANCE = 1e-3
_U = 2.0**-24
_MIXED = 64  # components that share their size; more would cost more than they narrow the bound
_MIXED_ROWS = 128  # at a time, about what a core's cache holds


@dataclasses.dataclass(frozen=True)
class Operand:
    """Rows in the form that a product takes.

    Attributes:
      values: what it multiplies.
      scale: float64 [N], what its scores are to be multiplied with where the rows are queries.
      error: float64 [N], how far what stands for a row can be from it.
    """

    values: Any
    scale: np.ndarray
    error: np.ndarray


class Product(Protocol):
    """A way to compute dot products of many rows, fast and with a bounded error.

    Attributes:
      name: for a person.
    """

    name: str

    def roundings(self, width: int) -> int:
        """m of the module's text."""

    def of_queries(self, rows: np.ndarray) -> Operand:
        """Rows, float32 [Q, D], as the first operand of `scores`."""

    def of_index(self, rows: np.ndarray) -> Operand:
        """Rows, float32 [N, D], as its second operand."""

    def scores(self, queries: Operand, index: Operand) -> np.ndarray:
        """float32 [Q, N], their dot products in units of each query's scale; from one thread."""


class NumpyProduct:
    """NumPy's float32 product."""

    name = "NumPy float32"

    def roundings(self, width: int) -> int:
        return width

    def of_queries(self, rows: np.ndarray) -> Operand:
        return Operand(rows, np.ones(len(rows)), np.zeros(len(rows)))

    of_index = of_queries

    def scores(self, queries: Operand, index: Operand) -> np.ndarray:
        return queries.values @ index.values.T


class EightBitProduct:
    """ONNX Runtime's product of whole numbers of 8 bits."""

    name = "ONNX Runtime 8 bits"

    def roundings(self, width: int) -> int:
        return 3  # the sum and two scales

    def of_queries(self, rows: np.ndarray) -> Operand:
        codes, scale, error = in_eight_bits(rows, pairs=False)
        return Operand(integer_product.unsigned(codes), scale.astype(np.float64), error)

    def of_index(self, rows: np.ndarray) -> Operand:
        codes, scale, error = in_eight_bits(rows, pairs=integer_product.saturates())
        return Operand((integer_product.transposed(codes), scale), np.ones(len(rows)), error)

    def scores(self, queries: Operand, index: Operand) -> np.ndarray:
        return integer_product.scaled_product(queries.values, *index.values)


def in_eight_bits(rows: np.ndarray, pairs: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as whole numbers, mixed and scaled as the module's text says.

    Args:
      rows: float32 [N, D], of unit length within UNIT_TOLERANCE.
      pairs: whether the sizes of two numbers of a pair, the first of a row and the second and so on, add up
        to at most 128: what `integer_product` needs of one side where the processor adds in 16 bits.

    Returns:
      int8 [N, D] within +-127; float32 [N], the scales; float64 [N], how far each row can be from these
      numbers times its scale.
    """
    count, width = rows.shape
    order = next(order for order in (_MIXED, 16, 4, 1) if not width % order)  # whose roots are powers of 2
    hadamard = np.ones((1, 1), np.float32)
    while len(hadamard) < order:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= np.float32(math.sqrt(order))
    codes, scale = np.empty((count, width), np.int8), np.empty(count, np.float32)
    error = np.empty(count)
    for start in range(0, count, _MIXED_ROWS):
        part = slice(start, start + _MIXED_ROWS)
        few = rows[part]
        mixed = (hadamard @ few.reshape(len(few), order, -1)).reshape(few.shape)
        size = np.abs(mixed)
        if pairs:
            size[:, : width - 1 : 2] += size[:, 1::2]
        scale[part] = size.max(axis=1) / np.float32(127)
        np.multiply(mixed, 1 / scale[part, None], out=size)
        np.rint(size, out=size)
        np.copyto(codes[part], size, casting="unsafe")
        size *= scale[part, None]
        mixed -= size
        error[part] = np.sqrt(np.vecdot(mixed, mixed))
    # What is measured is itself rounded, as is the mixing, and the product of number and scale.
    measured = error * (1 + width * _U)
    return codes, scale, measured + (order * math.sqrt(order) + 4) * _U * (1 + UNIT_TOLERANCE)


def error_bounds(
    product: Product, width: int, queries: Operand, index: Operand
) -> tuple[np.ndarray, np.ndarray]:
    """How far fast scores can be from exact ones, by the module's text: float64 [Q] and [N], the part of a
    pair's query and that of its index row, to be added up.
    """
    t = UNIT_TOLERANCE
    longest = 1 + t + index.error.max(initial=0)
    of_query = queries.error * longest + _roundings(
        product.roundings(width), (1 + t + queries.error) * longest, width
    )
    return of_query, (1 + t) * index.error


def float32_bound(width: int) -> float:
    """How far a float32 product can be from the exact score."""
    return _roundings(width, (1 + UNIT_TOLERANCE) ** 2, width)


def _roundings(m: int, terms: Any, width: int) -> Any:
    """Steps 2 and 3 of the module's text, and more than float64's own rounding of bounds and limits."""
    return m * _U / (1 - m * _U) * terms + width * 2.0**-125 + 2 * _U * (1 + UNIT_TOLERANCE) ** 2 + 1e-12


def exact_scores(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Exact scores of pairs of rows, float64 [P, D] with float32's values: float32 [P].

    A sum of m = D products, each exact in float64, errs by at most m u / (1 - m u) times the sum of their
    sizes, u = 2^-53, as in step 2 of the module's text. Nearly always all numbers so near round to one
    float32; else the sum is made anew, exactly.
    """
    sums = np.vecdot(queries, rows)
    error = (rows.shape[1] + 2) * 2.0**-53 * (1 + UNIT_TOLERANCE) ** 2
    scores = (sums - error).astype(np.float32)
    for p in np.flatnonzero(scores != (sums + error).astype(np.float32)):
        scores[p] = math.fsum((queries[p] * rows[p]).tolist())
    return scores


@functools.cache
def fastest_product() -> Product:
    """The fastest of the products on this machine, measured once per process on a small one.

    Those are left out that break their bound on rows of positive numbers.
    """
    rows = np.abs(np.random.default_rng(0).standard_normal((2048, 2048), np.float32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    exact = rows[:512].astype(np.float64) @ rows.T.astype(np.float64)
    seconds = {}
    products: tuple[Product, ...] = (NumpyProduct(), EightBitProduct())
    for product in products:
        queries, index = product.of_queries(rows[:512]), product.of_index(rows)
        of_query, of_row = error_bounds(product, 2048, queries, index)
        scores = product.scores(queries, index) * queries.scale[:, None]
        if np.all(np.abs(scores - exact) <= of_query[:, None] + of_row):
            seconds[product] = min(_seconds(product, queries, index) for _ in range(3))
    return min(seconds, key=seconds.__getitem__)


def _seconds(product: Product, queries: Operand, index: Operand) -> float:
    start = time.thread_time()
    product.scores(queries, index)
    return time.thread_time() - start
