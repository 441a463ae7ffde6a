"""Putative matches: each local feature of a query with the candidate's nearest one, where that is near
enough.

Descriptors are compared as they are stored, in 8 bits, by one product of all with all in whole numbers, so
that nothing depends on the machine. The cosine of two rows is q.c / sqrt(q.q c.c), in float64, and the
distance of rows of unit length is sqrt(2 - 2 cos).

Few features have a near one, and the product itself says which: a cosine of at least t means that q.c is at
least t |q| |c|, so at least t |q| times the length of the candidate's shortest descriptor. In the same way
few can be the nearest: of two dot products the higher one belongs to the nearer descriptor unless that is
longer. `transforms.arrays.quantization` makes all of an image about equally long.
"""

import numpy as np

from transforms.arrays.integer_product import integer_product
from transforms.types import QuantizedFeatures, VerificationSettings

_LEAST = np.iinfo(np.int32).min


def putative_matches(
    query: QuantizedFeatures, candidate: QuantizedFeatures, settings: VerificationSettings
) -> np.ndarray:
    """Pairs each local feature of the query with the candidate's nearest one; among equally near ones with
    that of the lowest index.

    Args:
      query, candidate: N and M local features.
      settings: max_distance, ratio_test and mutual_check are used.

    Returns:
      int32 [P, 2]: query index, candidate index; in ascending order of the query index.

    Raises:
      ValueError: the descriptors of the two differ in width.
    """
    if not len(query) or not len(candidate):
        return np.zeros((0, 2), np.int32)
    if query.descriptors.shape[1] != candidate.descriptors.shape[1]:
        raise ValueError(
            f"local descriptors of width {query.descriptors.shape[1]} and {candidate.descriptors.shape[1]} "
            "cannot be matched"
        )
    dots = integer_product(query.descriptors, candidate.descriptors)
    peak = dots.max(axis=1)
    least = 1 - settings.max_distance**2 / 2 - 1e-12  # more than the rounding of cosines and distances
    if least > 0:
        shortest, _ = candidate.shortest_and_longest
        rows = np.flatnonzero(
            peak >= np.maximum(np.floor(least * shortest * np.sqrt(query.squared_lengths)), 1)
        )
    else:
        rows = np.arange(len(query))
    near = dots[rows] if len(rows) < len(dots) else dots
    nearest, cosine = _nearest(
        near,
        peak[rows],
        query.squared_lengths[rows],
        candidate.squared_lengths,
        *candidate.shortest_and_longest,
    )
    keep = _distance(cosine) < settings.max_distance
    if settings.mutual_check:
        columns, place = np.unique(nearest, return_inverse=True)
        back = dots[:, columns].T
        returned, _ = _nearest(
            back,
            back.max(axis=1),
            candidate.squared_lengths[columns],
            query.squared_lengths,
            *query.shortest_and_longest,
        )
        keep &= rows == returned[place]
    if settings.ratio_test is not None:
        cosines = _cosine(near, query.squared_lengths[rows, None], candidate.squared_lengths)
        cosines[np.arange(len(rows)), nearest] = -np.inf
        keep &= _distance(cosine) < settings.ratio_test * _distance(cosines.max(axis=1))
    matches = np.empty((np.count_nonzero(keep), 2), np.int32)
    matches[:, 0], matches[:, 1] = rows[keep], nearest[keep]
    return matches


def _nearest(
    dots: np.ndarray,
    peak: np.ndarray,
    squared_lengths: np.ndarray,
    others: np.ndarray,
    shortest: float,
    longest: float,
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the column of the highest cosine, int64 [R], of several the first, and that cosine,
    float64 [R].

    Args:
      dots: int32 [R, C], with C > 0.
      peak: int32 [R], the highest of each row.
      squared_lengths, others: float64 [R] and [C], of the descriptors of rows and of columns.
      shortest, longest: of the lengths of columns; those of length 0 do not count.
    """
    if not len(dots):
        return np.zeros(0, np.int64), np.zeros(0)
    lag = np.where(peak > 0, shortest / longest, longest / shortest) - 1e-12
    limit = np.maximum(np.floor(peak * lag), _LEAST).astype(np.int32)
    row, column = np.divmod(np.flatnonzero(dots >= limit[:, None]), dots.shape[1])
    cosine = _cosine(dots[row, column], squared_lengths[row], others[column])
    rows = np.arange(len(dots))
    highest = np.maximum.reduceat(cosine, np.searchsorted(row, rows))
    best = np.flatnonzero(cosine == highest[row])
    return column[best[np.searchsorted(row[best], rows)]], highest


def _cosine(dots: np.ndarray, squared_lengths: np.ndarray, others: np.ndarray) -> np.ndarray:
    return dots / np.sqrt(np.maximum(squared_lengths * others, 1.0))


def _distance(cosine: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0))
