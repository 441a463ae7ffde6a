"""Putative matches: each local feature of a query with the candidate's nearest one, where that is near
enough.

Descriptors are compared as they are stored, in 8 bits, by products of all with all in whole numbers, so
that nothing depends on the machine. The cosine of two rows is q.c / sqrt(q.q c.c), in float64, and the
distance of rows of unit length is sqrt(2 - 2 cos).

Few pairs are near, and the product itself says which: a cosine of at least t means that q.c is at least
t |q| |c|, so at least t times the lengths of the shortest descriptors. `transforms.arrays.quantization` makes
all of an image about equally long. What is nearest to a feature that has a near one is among these pairs. In
the same way few can be the nearest: of two products the higher one belongs to the nearer descriptor unless
that is longer.

Most images that are compared show different things, which a part of their features tells: the strongest ones
of both come first, and the others only where these give reason to.
"""

import math

import numpy as np

from transforms.arrays.integer_product import integer_product
from transforms.types import QuantizedFeatures, VerificationSettings

_MANY = 8  # near pairs per feature that take as long as finding out which of them matter
MIN_STRONGEST = 350
MIN_NEAR = 2
"""Where fewer of the query's strongest local features than this have a near one among the candidate's
strongest, half of each but at least MIN_STRONGEST, no match is sought (benchmarks/README.md, "Choices").
"""


def putative_matches(
    query: QuantizedFeatures, candidate: QuantizedFeatures, settings: VerificationSettings
) -> np.ndarray:
    """Pairs each local feature of the query with the candidate's nearest one; among equally near ones with
    that of the lowest index. None are paired where MIN_NEAR says so.

    Args:
      query, candidate: N and M local features, the strongest first.
      settings: max_distance, ratio_test and mutual_check are used.

    Returns:
      int32 [P, 2]: query index, candidate index; in ascending order of the query index.

    Raises:
      ValueError: the descriptors of the two differ in width.
    """
    none = np.zeros((0, 2), np.int32)
    if not len(query) or not len(candidate):
        return none
    if query.descriptors.shape[1] != candidate.descriptors.shape[1]:
        raise ValueError(
            f"local descriptors of width {query.descriptors.shape[1]} and {candidate.descriptors.shape[1]} "
            "cannot be matched"
        )
    limit = _least_product(query, candidate, settings.max_distance)
    of_query, of_candidate = (max(MIN_STRONGEST, len(features) // 2) for features in (query, candidate))
    parts = [_near(query, candidate, slice(of_query), slice(of_candidate), limit)]
    if of_query < len(query) or of_candidate < len(candidate):
        row, _, cosine = parts[0]
        if np.count_nonzero(np.bincount(row[_distance(cosine) < settings.max_distance])) < MIN_NEAR:
            return none
        parts.append(_near(query, candidate, slice(of_query), slice(of_candidate, None), limit))
        parts.append(_near(query, candidate, slice(of_query, None), slice(None), limit))
    row, column, cosine = (np.concatenate(arrays) for arrays in zip(*parts))
    nearest, highest = _nearest(row, column, cosine, len(query))
    rows = np.flatnonzero(_distance(highest) < settings.max_distance)
    if settings.mutual_check:
        returned, _ = _nearest(column, row, cosine, len(candidate))
        rows = rows[returned[nearest[rows]] == rows]
    if settings.ratio_test is not None:
        dots = integer_product(query.descriptors[rows], candidate.descriptors)
        cosines = _cosine(dots, query.squared_lengths[rows, None], candidate.squared_lengths)
        cosines[np.arange(len(rows)), nearest[rows]] = -np.inf
        second = _distance(cosines.max(axis=1))
        rows = rows[_distance(highest[rows]) < settings.ratio_test * second]
    return np.stack([rows, nearest[rows]], axis=1).astype(np.int32)


def _least_product(query: QuantizedFeatures, candidate: QuantizedFeatures, max_distance: float) -> int:
    """A number that the product of two descriptors reaches where they are nearer than max_distance."""
    least = 1 - max_distance**2 / 2 - 1e-12  # more than the rounding of cosines and distances
    lengths = zip(query.shortest_and_longest, candidate.shortest_and_longest)
    shortest, longest = (a * b for a, b in lengths)
    return max(math.floor(least * shortest), 1) if least > 0 else math.floor(least * longest)


def _near(
    query: QuantizedFeatures, candidate: QuantizedFeatures, rows: slice, columns: slice, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of these features of the query and of the candidate whose product is at least `limit`; where
    these are many, only those that can be the nearest of one of the two. Their rows and columns, int64 [P]
    each, and their cosines, float64 [P].
    """
    dots = integer_product(candidate.descriptors[columns], query.descriptors[rows], query.has_small_pairs)
    place = np.flatnonzero(dots >= limit)
    if len(place) > _MANY * sum(dots.shape):
        of_candidate = _lag(dots.max(axis=1), *query.shortest_and_longest)
        of_query = _lag(dots.max(axis=0), *candidate.shortest_and_longest)
        place = place[((dots >= of_candidate[:, None]) | (dots >= of_query)).reshape(-1)[place]]
    column = place // max(dots.shape[1], 1)
    row = place - column * dots.shape[1] + (rows.start or 0)
    column += columns.start or 0
    cosine = _cosine(dots.reshape(-1)[place], query.squared_lengths[row], candidate.squared_lengths[column])
    return row, column, cosine


def _lag(peak: np.ndarray, shortest: float, longest: float) -> np.ndarray:
    """int32 [N]: what the product with the nearest descriptor reaches, the highest product being `peak`,
    int32 [N], and the descriptors of these lengths; those of length 0 do not count.
    """
    lag = np.where(peak > 0, shortest / longest, longest / shortest) - 1e-12
    return np.maximum(np.floor(peak * lag), np.iinfo(np.int32).min).astype(np.int32)


def _nearest(
    of: np.ndarray, other: np.ndarray, cosine: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each of `count` features that of the highest cosine in these pairs, of several the first, int64
    [count], and that cosine, float64 [count]; for those in no pair -inf.
    """
    highest = np.full(count, -np.inf)
    np.maximum.at(highest, of, cosine)
    best = np.flatnonzero(cosine == highest[of])
    nearest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(nearest, of[best], other[best])
    return nearest, highest


def _cosine(dots: np.ndarray, squared_lengths: np.ndarray, others: np.ndarray) -> np.ndarray:
    return dots / np.sqrt(np.maximum(squared_lengths * others, 1.0))


def _distance(cosine: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0))
