"""Scores: what is known of the candidates of queries becomes a landmark and its confidence.

Arrays have a row for each query and a column for each of its candidates.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from transforms.types import ScoringSettings, landmark_order


@dataclasses.dataclass(frozen=True)
class CandidateTable:
    """What is known of the candidates of Q queries, K at most; a row with fewer is padded at its end.

    Attributes:
      similarity: float64 [Q, K], cosine of the global descriptors; -inf is padding.
      augmented: float64 [Q, K], see Candidate; NaN where it is not known.
      inliers: int64 [Q, K]; 0 where they are not known.
      image: int64 [Q, K], numbers of the images in the order of their ids.
      landmark: int64 [Q, K], numbers of the landmarks in their order; equal for equal landmarks.
    """

    similarity: np.ndarray
    augmented: np.ndarray
    inliers: np.ndarray
    image: np.ndarray
    landmark: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """bool [Q, K], False for padding."""
        return self.similarity > -np.inf


@dataclasses.dataclass(frozen=True)
class Votes:
    """What the candidates of Q queries say together.

    Attributes:
      total: float64 [Q, K], see `total_scores`.
      order: int64 [Q, K], columns of the table, best total score first; among equal ones the first image.
      landmark: int64 [Q], the one whose candidates have the highest sum, among equal sums the first; -1 where
        there is no candidate.
      score: float64 [Q], its sum; -inf where there is no candidate.
    """

    total: np.ndarray
    order: np.ndarray
    landmark: np.ndarray
    score: np.ndarray


def total_scores(table: CandidateTable, settings: ScoringSettings) -> np.ndarray:
    """float64 [Q, K]: min(inliers, max_inlier_score) / max_inlier_score + global_weight * similarity +
    augmented_weight * augmented; -inf for padding.

    Raises:
      ValueError: augmented_weight is not 0, and an augmented cosine is not known.
    """
    limit = settings.max_inlier_score
    total = np.minimum(table.inliers, limit) / limit
    present = table.present
    total = total + settings.global_weight * np.where(present, table.similarity, 0.0)
    if settings.augmented_weight:
        if np.isnan(table.augmented[present]).any():
            raise ValueError("augmented_weight is given, and cosines to augmented descriptors are not known")
        total = total + settings.augmented_weight * np.where(present, table.augmented, 0.0)
    return np.where(present, total, -np.inf)


def class_sums(landmark: np.ndarray, total: np.ndarray) -> np.ndarray:
    """float64 [Q, V]: for each of V voters the sum over those of its landmark, in their order.

    Args:
      landmark: int64 [Q, V].
      total: float64 [Q, V]; -inf votes for nothing.
    """
    votes = np.where(total > -np.inf, total, 0.0)
    sums = np.zeros(total.shape)
    for at in range(total.shape[1]):
        sums += np.where(landmark == landmark[:, at, None], votes[:, at, None], 0.0)
    return np.where(total > -np.inf, sums, -np.inf)


def vote(table: CandidateTable, settings: ScoringSettings) -> Votes:
    """Ranks candidates by total score, and lets the best `top_k` of each query vote, each with its total
    score for its landmark.

    Raises:
      ValueError: see `total_scores`.
    """
    total = total_scores(table, settings)
    order = np.lexsort((table.image, -total), axis=-1)
    voters = order[:, : settings.top_k]
    landmark, weight = (np.take_along_axis(values, voters, 1) for values in (table.landmark, total))
    sums = class_sums(landmark, weight)
    if not sums.shape[1]:
        return Votes(total, order, np.full(len(total), -1), np.full(len(total), -np.inf))
    best = np.lexsort((landmark, -sums), axis=-1)[:, :1]
    score = np.take_along_axis(sums, best, 1)[:, 0]
    found = np.where(score > -np.inf, np.take_along_axis(landmark, best, 1)[:, 0], -1)
    return Votes(total, order, found, score)


def best_landmarks(landmark_ids: Sequence[str], totals: Sequence[float], top_k: int, count: int) -> list[str]:
    """The landmarks of one query's candidates, the best first, `count` at most: those that have votes by
    their sums, as `vote` has it, then the others by the total score of their best candidate; among equal ones
    in their order.

    Args:
      landmark_ids, totals: of the candidates, best total score first.
      top_k: so many of these vote.
    """
    sums: dict[str, float] = {}
    for landmark_id, total in zip(landmark_ids[:top_k], totals):
        sums[landmark_id] = sums.get(landmark_id, 0.0) + total
    voted = frozenset(sums)
    for landmark_id, total in zip(landmark_ids[top_k:], totals[top_k:]):
        sums.setdefault(landmark_id, total)
    order = landmark_order(sums)
    return sorted(sums, key=lambda name: (name not in voted, -sums[name], order(name)))[:count]
