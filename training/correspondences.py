"""Pairs of photographs of one label that RootSIFT verifies, and the points where they agree.

They give the network what no warp of a single photograph has: other light, other seasons, other viewpoints.
"""

import dataclasses

import cv2
import numpy as np

from training.split import Photograph, order

FEATURES = 600
RATIO = 0.85  # of the nearest to the second nearest distance of RootSIFT (Arandjelovic and Zisserman 2012)
MAX_ERROR = 8.0  # px
MIN_INLIERS = 18
NEIGHBOURS = 12  # of the same label, the most similar, are tried
MAX_POINTS = 128  # kept of a pair


@dataclasses.dataclass(frozen=True)
class Correspondences:
    """Points of a photograph that are seen in another one.

    Attributes:
      first, second: numbers of the photographs in the list that was given.
      points: float32 [N, 4], (y, x) in the first and (y, x) in the second, in fractions of height and width.
    """

    first: int
    second: int
    points: np.ndarray


def find(
    photographs: list[Photograph], pixels: list[np.ndarray], descriptors: np.ndarray
) -> list[Correspondences]:
    """Verifies the most similar pairs of every label; deterministic.

    Args:
      photographs: P of them.
      pixels: uint8 [H, W, 3] each.
      descriptors: float32 [P, D], global, unit length: which photographs are similar.
    """
    sift = cv2.SIFT_create(FEATURES)
    by_label: dict[str, list[int]] = {}
    for number, photograph in enumerate(photographs):
        if photograph.label:
            by_label.setdefault(photograph.label, []).append(number)
    found = []
    for _, members in sorted(by_label.items()):
        local = [_root_sift(sift, pixels[number]) for number in members]
        similarity = descriptors[members] @ descriptors[members].T
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argsort(-similarity, kind="stable")[:, : min(NEIGHBOURS, len(members) - 1)]
        for a, b in sorted({(min(a, b), max(a, b)) for a, row in enumerate(nearest) for b in row.tolist()}):
            points = _agreeing(local[a], local[b])
            if len(points) >= MIN_INLIERS:
                seed = order(photographs[members[a]].id, photographs[members[b]].id)
                kept = np.random.default_rng(seed).permutation(len(points))[:MAX_POINTS]
                found.append(Correspondences(members[a], members[b], points[kept]))
    return found


def _root_sift(sift: cv2.SIFT, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (y, x) [N, 2], descriptors [N, 128] of unit length, and (height, width)."""
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None)
    points = np.array([k.pt[::-1] for k in keypoints], np.float32).reshape(-1, 2)
    descriptors = np.zeros((0, 128), np.float32) if descriptors is None else descriptors
    return (
        points,
        np.sqrt(descriptors / (descriptors.sum(1, keepdims=True) + 1e-9)),
        np.array(pixels.shape[:2]),
    )


def _agreeing(first: tuple, second: tuple) -> np.ndarray:
    """Inliers of a homography, float32 [N, 4], (y, x) in either photograph in fractions of its sides."""
    (points1, rows1, size1), (points2, rows2, size2) = first, second
    if min(len(points1), len(points2)) < MIN_INLIERS:
        return np.zeros((0, 4), np.float32)
    cosine = rows1 @ rows2.T
    nearest = cosine.argmax(1)
    two = -np.sort(-cosine, axis=1)[:, :2]
    distances = np.sqrt(np.maximum(2 - 2 * two, 0))
    kept = (distances[:, 0] < RATIO * distances[:, 1]) & (
        cosine.argmax(0)[nearest] == np.arange(len(nearest))
    )
    points1, points2 = points1[kept], points2[nearest[kept]]
    if len(points1) < MIN_INLIERS:
        return np.zeros((0, 4), np.float32)
    source, target = (np.ascontiguousarray(points[:, ::-1]) for points in (points1, points2))
    params = cv2.UsacParams()
    params.threshold, params.maxIterations, params.randomGeneratorState = MAX_ERROR, 2000, 0
    homography, mask = cv2.findHomography(source, target, params)
    if homography is None:
        return np.zeros((0, 4), np.float32)
    inliers = mask.ravel().astype(bool)
    return np.concatenate([points1[inliers] / size1, points2[inliers] / size2], 1).astype(np.float32)


def save(path: str, found: list[Correspondences]) -> None:
    """Writes correspondences to one .npz file."""
    lengths = np.array([len(pair.points) for pair in found])
    pairs = np.array([[pair.first, pair.second] for pair in found], np.int32).reshape(-1, 2)
    points = np.concatenate([pair.points for pair in found]) if found else np.zeros((0, 4), np.float32)
    np.savez(path, pairs=pairs, lengths=lengths, points=points)


def load(path: str) -> list[Correspondences]:
    """Reads what `save` wrote."""
    with np.load(path) as data:
        pairs, lengths, points = data["pairs"], data["lengths"], data["points"]
    parts = np.split(points, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return [Correspondences(int(first), int(second), part) for (first, second), part in zip(pairs, parts)]
