"""Pseudo-labels: photographs of one label that verify geometrically with RootSIFT, and the points where they
agree.

They give the network what no warp of a single photograph has: other light, other seasons, other viewpoints.
"""

import dataclasses

import numpy as np

from training.photographs import load as load_photographs
from training.split import Photograph, order
from transforms.features import load_model
from transforms.models import catalog
from transforms.models.card import read_card, settings_from_card
from transforms.quantization import quantized
from transforms.types import LocalFeatures, VerificationSettings
from transforms.verification import verify_pair

MIN_INLIERS = 18  # RootSIFT with a mutual check gives unrelated photographs 4 to 8
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


def find(folder: str, photographs: list[Photograph]) -> list[Correspondences]:
    """Verifies the most similar pairs of every label; deterministic."""
    model_folder = catalog.model_folder(catalog.ROOTSIFT_VLAD)
    card = read_card(model_folder)
    extraction = settings_from_card(card)
    model = load_model(model_folder, extraction)
    settings = VerificationSettings(
        max_distance=card["max_distance"], mutual_check=True, max_reprojection_error=5.7
    )
    by_label: dict[str, list[int]] = {}
    for number, photograph in enumerate(photographs):
        if photograph.label:
            by_label.setdefault(photograph.label, []).append(number)
    found = []
    for _, members in sorted(by_label.items()):
        if len(members) < 2:
            continue
        features, sizes, descriptors = [], [], []
        for number in members:
            (pixels,) = load_photographs(folder, [photographs[number]], extraction.max_image_side)
            extracted = model.extract(pixels)
            features.append(quantized(LocalFeatures(extracted.keypoints, extracted.descriptors)))
            sizes.append(pixels.shape[:2])
            descriptors.append(extracted.global_descriptor)
        similarity = np.stack(descriptors) @ np.stack(descriptors).T
        np.fill_diagonal(similarity, -np.inf)
        pairs = {
            (min(a, b), max(a, b))
            for a in range(len(members))
            for b in np.argsort(-similarity[a])[:NEIGHBOURS]
            if a != b
        }
        for a, b in sorted(pairs):
            verified = verify_pair(
                photographs[members[a]].id, features[a], photographs[members[b]].id, features[b], settings
            )
            if verified.inliers < MIN_INLIERS:
                continue
            matches = verified.matches[verified.inlier_mask]
            points = np.concatenate(
                [
                    features[a].keypoints[matches[:, 0]] / sizes[a],
                    features[b].keypoints[matches[:, 1]] / sizes[b],
                ],
                1,
            )
            rng = np.random.default_rng(order(photographs[members[a]].id, photographs[members[b]].id))
            points = points[rng.permutation(len(points))[:MAX_POINTS]]
            found.append(Correspondences(members[a], members[b], points.astype(np.float32)))
    return found


def save(path: str, found: list[Correspondences]) -> None:
    """Writes correspondences to one .npz file."""
    lengths = np.array([len(pair.points) for pair in found])
    np.savez_compressed(
        path,
        first=[pair.first for pair in found],
        second=[pair.second for pair in found],
        lengths=lengths,
        points=np.concatenate([pair.points for pair in found]),
    )


def load(path: str) -> list[Correspondences]:
    """Reads what `save` wrote."""
    with np.load(path) as data:
        points = np.split(data["points"], np.cumsum(data["lengths"])[:-1])
        return [Correspondences(int(a), int(b), p) for a, b, p in zip(data["first"], data["second"], points)]
