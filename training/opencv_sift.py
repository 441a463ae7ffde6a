"""An outside yardstick: OpenCV's SIFT, 1,000 features of a photograph, and their VLAD over 16 centroids."""

from collections.abc import Iterator

import cv2
import numpy as np

from training import photographs, split
from training.features import Features
from transforms.arrays.quantization import quantized
from transforms.types import LocalFeatures

NAME = "opencv-sift"
MAX_DISTANCE = 0.9
MAX_SIDE = 640  # px
FEATURES = 1000
CENTROIDS = 16
LEARNED_FROM = 300  # photographs of the training part


class Extractor:
    """SIFT with a vocabulary learned on the part that is trained on."""

    def __init__(self, folder: str, everything: list[split.Photograph]):
        self._sift = cv2.SIFT_create(FEATURES)
        chosen = sorted(
            (p for p in everything if p.part == "train"), key=lambda p: split.order("sift", p.id)
        )[:LEARNED_FROM]
        sample = np.concatenate([self._local(folder, photograph).descriptors for photograph in chosen])
        criteria = (cv2.TERM_CRITERIA_MAX_ITER, 25, 0)
        cv2.setRNGSeed(0)
        self._centroids = cv2.kmeans(sample, CENTROIDS, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]

    def features(self, _: str, folder: str, chosen: list[split.Photograph]) -> Iterator[Features]:
        """Features of photographs."""
        for photograph in chosen:
            local = self._local(folder, photograph)
            yield Features(photograph.id, photograph.label, self._vlad(local.descriptors), quantized(local))

    def _local(self, folder: str, photograph: split.Photograph) -> LocalFeatures:
        (pixels,) = photographs.load(folder, [photograph], MAX_SIDE)
        keypoints, descriptors = self._sift.detectAndCompute(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None)
        if not keypoints:
            return LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
        points = np.array([keypoint.pt[::-1] for keypoint in keypoints], np.float32)[:FEATURES]
        return LocalFeatures(points, _unit(descriptors[:FEATURES]))

    def _vlad(self, descriptors: np.ndarray) -> np.ndarray:
        """Residuals to the nearest centroid, signed square roots, unit length (Jegou et al. 2010)."""
        nearest = (
            (descriptors @ self._centroids.T - 0.5 * (self._centroids**2).sum(1)).argmax(1)
            if len(descriptors)
            else np.zeros(0, int)
        )
        sums = np.stack(
            [(descriptors[nearest == k] - centroid).sum(0) for k, centroid in enumerate(self._centroids)]
        )
        return _unit(_unit(np.sign(sums) * np.sqrt(np.abs(sums))).reshape(1, -1))[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)).astype(np.float32)
