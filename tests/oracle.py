"""The whole algorithm once more, slow and obvious: from features to predicted landmarks with SciPy and
scikit-image.

Nothing of the product is imported, so that the two can only agree by both being right.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from skimage.measure import ransac
from skimage.transform import ProjectiveTransform


class OracleImage(NamedTuple):
    """Features of an image: float [D] of unit length; float [N, 2], (y, x); float [N, D'], rows of unit
    length.
    """

    image_id: str
    landmark_id: str | None
    global_descriptor: np.ndarray
    keypoints: np.ndarray
    descriptors: np.ndarray


class OracleCandidate(NamedTuple):
    image_id: str
    landmark_id: str
    similarity: float
    inliers: int
    score: float


class OracleParameters(NamedTuple):
    """The hyperparameters under their usual names; `trials` are scikit-image's, which tries fewer than a C++
    program can.
    """

    num_to_rerank: int = 3
    top_k: int = 3
    max_distance: float = 0.9
    max_inlier_score: int = 60
    max_reprojection_error: float = 16.5
    homography_confidence: float = 0.999
    mutual_check: bool = False
    ratio_test: float | None = None
    global_weight: float = 1.0
    trials: int = 1000


def nearest_images(
    query: OracleImage, index: list[OracleImage], count: int
) -> list[tuple[OracleImage, float]]:
    """The `count` index images of the highest cosine similarity; ties by id."""
    if not index:
        return []
    matrix = np.array([image.global_descriptor for image in index], np.float64)
    similarities = 1 - cdist(np.array([query.global_descriptor], np.float64), matrix, "cosine")[0]
    best = sorted(zip(index, similarities), key=lambda pair: (-pair[1], pair[0].image_id))[:count]
    return [(image, float(similarity)) for image, similarity in best]


def putative_matches(
    query: OracleImage, candidate: OracleImage, p: OracleParameters
) -> list[tuple[int, int]]:
    """For each query descriptor its nearest candidate descriptor, where that is near enough and passes the
    tests asked for.
    """
    if not len(query.descriptors) or not len(candidate.descriptors):
        return []
    there, back = cKDTree(candidate.descriptors), cKDTree(query.descriptors)
    matches = []
    for q, descriptor in enumerate(query.descriptors):
        (first, second), (nearest, _) = there.query(
            descriptor, k=2
        )  # a missing second neighbour is infinitely far
        if not first < p.max_distance:
            continue
        if p.ratio_test is not None and not first < p.ratio_test * second:
            continue
        if p.mutual_check and back.query(candidate.descriptors[nearest])[1] != q:
            continue
        matches.append((q, int(nearest)))
    return matches


def count_inliers(
    query: OracleImage, candidate: OracleImage, matches: list[tuple[int, int]], p: OracleParameters
) -> int:
    """Matches that agree with the best homography from the candidate to the query.

    Both points of a match may be off: for views of one size that is an error of sqrt(2)
    max_reprojection_error in the query image.
    """
    if len(matches) < 5:
        return 0
    source = np.array([candidate.keypoints[c][::-1] for _, c in matches], np.float64)
    target = np.array([query.keypoints[q][::-1] for q, _ in matches], np.float64)
    _, inliers = ransac(
        (source, target),
        ProjectiveTransform,
        min_samples=4,
        residual_threshold=2**0.5 * p.max_reprojection_error,
        max_trials=p.trials,
        stop_probability=p.homography_confidence,
        rng=0,
    )
    return 0 if inliers is None else int(inliers.sum())


def rank(query: OracleImage, index: list[OracleImage], p: OracleParameters) -> list[OracleCandidate]:
    """The candidates of a query, verified, best total score first."""
    candidates = []
    for image, similarity in nearest_images(query, index, p.num_to_rerank):
        inliers = count_inliers(query, image, putative_matches(query, image, p), p)
        score = min(inliers, p.max_inlier_score) / p.max_inlier_score + p.global_weight * similarity
        candidates.append(OracleCandidate(image.image_id, image.landmark_id, similarity, inliers, score))
    return sorted(candidates, key=lambda c: (-c.score, c.image_id))


def predict(candidates: list[OracleCandidate], top_k: int) -> tuple[str | None, float | None]:
    """The landmark with the highest sum over the best `top_k` candidates, and the sum."""
    sums: dict[str, float] = {}
    for candidate in candidates[:top_k]:
        sums[candidate.landmark_id] = sums.get(candidate.landmark_id, 0.0) + candidate.score
    if not sums:
        return None, None
    highest = max(sums.values())
    best = [landmark for landmark, total in sums.items() if total == highest]
    numeric = all(landmark.isdecimal() for landmark in sums)
    return min(best, key=int if numeric else None), highest


def best_landmarks(candidates: list[OracleCandidate], top_k: int, count: int) -> list[str]:
    """The predicted landmark, the one that would be predicted were its votes not there, and so on; then those
    without a vote, each by its best candidate alone.
    """
    found: list[str] = []
    numeric = all(c.landmark_id.isdecimal() for c in candidates)
    voters, others = candidates[:top_k], candidates[top_k:]
    while voters:
        found.append(predict(voters, top_k)[0])
        voters = [c for c in voters if c.landmark_id != found[-1]]
    while others := [c for c in others if c.landmark_id not in found]:
        highest = max(c.score for c in others)
        found.append(min((c.landmark_id for c in others if c.score == highest), key=int if numeric else None))
    return found[:count]


def recognize(
    index: list[OracleImage], queries: list[OracleImage], parameters: OracleParameters = OracleParameters()
) -> dict[str, tuple[list[OracleCandidate], str | None, float | None]]:
    """Query id -> ranked candidates, predicted landmark, its score."""
    results = {}
    for query in queries:
        candidates = rank(query, index, parameters)
        results[query.image_id] = (candidates, *predict(candidates, parameters.top_k))
    return results
