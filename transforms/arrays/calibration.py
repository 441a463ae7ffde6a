"""Calibration: how probable it is that a prediction is right, learned from queries whose truth is known.

A logistic regression on the two numbers that tell most and mean the same in every index. More of them, such
as the other landmarks' candidates or the share of the predicted one, fit the known queries better, and are
wrong about queries of a kind that the index does not know (docs/accuracy-and-speed.md).
"""

import dataclasses
import math

import numpy as np

from transforms.arrays.scoring import CandidateTable, Votes

_ENOUGH = 60  # inliers; more say nothing more
_RIDGE = 0.001  # on coefficients of standardised evidence, beside the mean loss
_STEPS = 50  # of Newton's method; a few are enough


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Log-odds of a prediction: constant + augmented * highest augmented cosine + geometry * min(most
    inliers, 60) / 60, of the candidates of its landmark.
    """

    constant: float
    augmented: float
    geometry: float


def evidence(table: CandidateTable, votes: Votes) -> np.ndarray:
    """float64 [Q, 2]: the highest augmented cosine and min(most inliers, 60) / 60 of the candidates of the
    predicted landmark; 0 where there are none.
    """
    own = table.present & (table.landmark == votes.landmark[:, None])
    augmented = np.where(own, table.augmented, -np.inf).max(axis=1, initial=-np.inf)
    inliers = np.where(own, table.inliers, 0).max(axis=1, initial=0)
    return np.stack(
        [np.where(own.any(axis=1), augmented, 0.0), np.minimum(inliers, _ENOUGH) / _ENOUGH], axis=1
    )


def probabilities(found: np.ndarray, calibration: Calibration) -> np.ndarray:
    """float64 [Q] of `evidence` [Q, 2]."""
    odds = calibration.constant + calibration.augmented * found[:, 0] + calibration.geometry * found[:, 1]
    return 1 / (1 + np.exp(-odds))


def fit(found: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> Calibration:
    """The logistic regression of `correct` on evidence with a ridge, by Newton's method.

    Args:
      found: float64 [Q, 2], see `evidence`.
      correct: bool [Q].
      weights: float64 [Q], of the queries.
    """
    weights = weights / weights.sum()
    mean = weights @ found
    deviation = np.sqrt(weights @ (found - mean) ** 2)
    deviation[deviation == 0] = 1.0
    inputs = np.column_stack([(found - mean) / deviation, np.ones(len(found))])
    ridge = np.diag([_RIDGE] * found.shape[1] + [0.0])
    theta = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        probable = 1 / (1 + np.exp(-inputs @ theta))
        slope = inputs.T @ (weights * (probable - correct)) + ridge @ theta
        curvature = (inputs * (weights * probable * (1 - probable))[:, None]).T @ inputs + ridge
        theta -= np.linalg.solve(curvature + 1e-9 * np.eye(len(theta)), slope)
    coefficients = theta[:-1] / deviation
    return Calibration(float(theta[-1] - coefficients @ mean), *coefficients.tolist())


def with_prior(calibration: Calibration, share: float) -> Calibration:
    """A calibration that was fitted where queries without a landmark have half of the weight, for queries of
    which another part, `share`, has none.
    """
    shift = math.log((1 - share) / share)
    return dataclasses.replace(calibration, constant=calibration.constant + shift)


def weights_for(
    has_landmark: np.ndarray, share: float | None, counted: np.ndarray | None = None
) -> np.ndarray:
    """float64 [Q], weights of queries with which `share` of those that are `counted`, by default all, have no
    landmark and the others weigh 1; all 1 for None, or where queries of one of the two kinds are lacking.
    """
    weights = np.ones(len(has_landmark))
    others = ~has_landmark if counted is None else ~has_landmark & counted
    if share is not None and has_landmark.any() and others.any():
        weights[others] = share / (1 - share) * has_landmark.sum() / others.sum()
    return weights


def weighted_gap(correct: np.ndarray, weights: np.ndarray, landmark_queries: int) -> float | None:
    """GAP of predictions that are in order, where a prediction counts `weights` times in the precision; None
    where no query has a landmark.

    Args:
      correct: bool [N], the first prediction first.
      weights: float64 [N]; 1 for queries with a landmark.
      landmark_queries: M, predicted or not.
    """
    if not landmark_queries:
        return None
    precision = np.cumsum(correct * weights) / np.cumsum(weights)
    return math.fsum(precision[correct]) / landmark_queries


@dataclasses.dataclass(frozen=True)
class Bin:
    """Predictions whose probability lies in one of equal parts of [0, 1].

    Attributes:
      low, high: its ends.
      weight: of its predictions.
      probability: their mean.
      correct: the part of them that is right.
    """

    low: float
    high: float
    weight: float
    probability: float
    correct: float


def reliability(
    probability: np.ndarray, correct: np.ndarray, weights: np.ndarray, bins: int = 10
) -> list[Bin]:
    """The bins that are not empty."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    found = []
    for at in np.unique(place).tolist():
        members = place == at
        weight = float(weights[members].sum())
        mean, right = (float(v[members] @ weights[members]) / weight for v in (probability, correct))
        found.append(Bin(at / bins, (at + 1) / bins, weight, mean, right))
    return found


def calibration_error(table: list[Bin]) -> float | None:
    """The expected calibration error (Naeini et al. 2015): the mean distance of probability and part right
    over the bins; None where there are none.
    """
    total = sum(bin_.weight for bin_ in table)
    if not total:
        return None
    return sum(bin_.weight * abs(bin_.probability - bin_.correct) for bin_ in table) / total
