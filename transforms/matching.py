"""Putative matches: each local feature of a query with the candidate's nearest one, where that is near enough.

Descriptors are compared as they are stored, in 8 bits, by one product of all with all in whole numbers, so that nothing depends on the
machine. The cosine of two rows is q.c / sqrt(q.q c.c), in float64, and the distance of rows of unit length is sqrt(2 - 2 cos).

Few pairs are near, and the product itself says which: a cosine of at least t means that q.c is at least t |q| |c|, so at least t |q| times the
length of the candidate's shortest descriptor. `transforms.quantization` makes all of them about equally long.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.integer_product import integer_product
from transforms.types import QuantizedFeatures, VerificationSettings


def putative_matches(query: QuantizedFeatures, candidate: QuantizedFeatures, settings: VerificationSettings) -> np.ndarray:
    """Pairs each local feature of the query with the candidate's nearest one; among equally near ones with that of the lowest index.

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
            f"local descriptors of width {query.descriptors.shape[1]} and {candidate.descriptors.shape[1]} cannot be matched")
    rows, q, c, cosine = _near_pairs(query, candidate, settings.max_distance)
    best = _first_of_highest(q, len(rows), cosine)
    keep = _distance(cosine[best]) < settings.max_distance
    if settings.mutual_check:
        # Whatever is nearer to a matched feature of the candidate is near enough to be among the pairs.
        columns, column = np.unique(c, return_inverse=True)
        order = np.argsort(column, kind="stable")
        keep &= np.isin(best, order[_first_of_highest(column[order], len(columns), cosine[order])])
    best = best[keep]
    if settings.ratio_test is not None:
        second = _second_nearest(query, candidate, rows[q[best]], c[best])
        best = best[_distance(cosine[best]) < settings.ratio_test * second]
    matches = np.empty((len(best), 2), np.int32)
    matches[:, 0], matches[:, 1] = rows[q[best]], c[best]
    return matches


def _near_pairs(
    query: QuantizedFeatures, candidate: QuantizedFeatures, max_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs whose distance is below max_distance, and a few more.

    Returns:
      The query features that have such pairs, int64 [R]; of each pair the place of its query feature among these and the
      candidate's feature, int64 [P] each, in this order, and the cosine, float64 [P].
    """
    least = 1 - max_distance**2 / 2 - 1e-12  # more than the rounding of cosines and distances
    if least <= 0:  # half of all pairs or more
        q, c = (i.ravel() for i in np.indices((len(query), len(candidate))))
        return np.arange(len(query)), q, c, _cosines(query, candidate).ravel()
    dots = integer_product(query.descriptors, candidate.descriptors)
    lengths = candidate.squared_lengths
    shortest = np.where(lengths > 0, lengths, lengths.max()).min()  # but 0, which is near to none
    limit = np.maximum(np.floor(least * np.sqrt(query.squared_lengths * shortest)), 1).astype(np.int32)
    rows = np.flatnonzero(dots.max(axis=1) >= limit)
    q, c = np.divmod(np.flatnonzero(dots[rows] >= limit[rows, None]), len(candidate))
    row = rows[q]
    return rows, q, c, _cosine(dots[row, c], query.squared_lengths[row], lengths[c])


def _cosines(query: QuantizedFeatures, candidate: QuantizedFeatures) -> np.ndarray:
    """float64 [N, M]."""
    return _cosine(integer_product(query.descriptors, candidate.descriptors), query.squared_lengths[:, None], candidate.squared_lengths)


def _cosine(dots: np.ndarray, squared_length: np.ndarray, other_squared_length: np.ndarray) -> np.ndarray:
    return dots / np.sqrt(np.maximum(squared_length * other_squared_length, 1.0))


def _distance(cosine: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0))


def _first_of_highest(group: np.ndarray, groups: int, values: np.ndarray) -> np.ndarray:
    """int64 [groups]: place of the first of the highest values of each group; int64 [P] in ascending order, none of them empty."""
    if not groups:
        return np.zeros(0, np.int64)
    numbers = np.arange(groups)
    highest = np.maximum.reduceat(values, np.searchsorted(group, numbers))
    places = np.flatnonzero(values == highest[group])
    return places[np.searchsorted(group[places], numbers)]


def _second_nearest(query: QuantizedFeatures, candidate: QuantizedFeatures, q: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """float64 [P]: distance of query features q to their second nearest of the candidate; infinite where there is no second."""
    part = QuantizedFeatures(query.keypoints[q], query.descriptors[q], query.squared_lengths[q])
    cosines = _cosines(part, candidate)
    cosines[np.arange(len(q)), nearest] = -np.inf
    return _distance(cosines.max(axis=1, initial=-np.inf))
