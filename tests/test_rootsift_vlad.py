"""The model rootsift-vlad: its numbers against a slow NumPy oracle."""

import dataclasses
import math

import numpy as np

from tests.pictures import textured
from transforms.models.rootsift_vlad import RootSiftVlad, load_constants

CENTRE = 10  # px from the first pixel of a patch, of which block 0 starts at pixel 1, to its keypoint


def extract(image):
    settings = dataclasses.replace(RootSiftVlad.SETTINGS, image_scales=(1.0,), global_scales=(1.0,))
    return RootSiftVlad.load(RootSiftVlad.CONSTANTS, settings).extract(image)


def unit(row):
    return row / np.linalg.norm(row)


def test_a_keypoint_lies_on_a_corner():
    image = np.zeros((200, 300, 3), np.uint8)
    image[81:, 121:] = 200  # one corner, between pixels 80 and 81, 120 and 121
    np.testing.assert_allclose(extract(image).keypoints[0], [81, 121], atol=2)


class TestOracle:
    """One descriptor after the other, from the definitions."""

    @staticmethod
    def cell(dx, dy, centre_y, centre_x):
        """Orientation histogram [8] over a triangular window, in blocks of 2 px, around a block."""
        histogram = np.zeros(8)
        for block_y, weight_y in zip(range(centre_y - 1, centre_y + 2), (1, 2, 1)):
            for block_x, weight_x in zip(range(centre_x - 1, centre_x + 2), (1, 2, 1)):
                for y in (2 * block_y, 2 * block_y + 1):
                    for x in (2 * block_x, 2 * block_x + 1):
                        length, angle = math.hypot(dx[y, x], dy[y, x]), math.atan2(dy[y, x], dx[y, x])
                        for k in range(8):
                            near = math.cos(angle - k * math.pi / 4) - math.cos(math.pi / 4)
                            histogram[k] += weight_y * weight_x * length * max(0.0, near) / 64
        return histogram

    @classmethod
    def root_sift(cls, gray, row, column):
        """RootSIFT [128] of the patch whose first block is (row, column)."""
        dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
        parts = []
        for i in range(4):
            for j in range(4):
                weight = math.exp(-((i - 1.5) ** 2 + (j - 1.5) ** 2) / 8)
                parts.append(weight * cls.cell(dx, dy, row + 1 + 2 * i, column + 1 + 2 * j))
        parts = np.concatenate(parts)
        return np.sqrt(parts / (parts.sum() + 1.0))

    def test_local_descriptors(self):
        image, constants = textured(60, 70, 1), load_constants()
        gray = image @ np.array([0.299, 0.587, 0.114])
        found = extract(image)
        assert len(found.keypoints) > 5
        for keypoint, descriptor in list(zip(found.keypoints, found.descriptors))[:5]:
            row, column = np.rint((keypoint - CENTRE) / 2).astype(int)
            expected = self.root_sift(gray, row, column) - constants["local_mean"]
            np.testing.assert_allclose(descriptor, unit(expected @ constants["local_projection"]), atol=2e-3)

    def test_attention_is_the_smaller_eigenvalue_of_the_structure_tensor(self):
        image = textured(60, 70, 2)
        gray = image @ np.array([0.299, 0.587, 0.114])
        dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
        found = extract(image)
        window = np.repeat([1, 2, 1], 2) / 8
        window = np.outer(window, window)
        for keypoint, score in list(zip(found.keypoints, found.scores))[:10]:
            y, x = np.rint(keypoint).astype(int) - 4
            gradients = np.stack([dx[y : y + 6, x : x + 6], dy[y : y + 6, x : x + 6]]).reshape(2, -1)
            tensor = (gradients * window.reshape(-1)) @ gradients.T
            np.testing.assert_allclose(score, np.linalg.eigvalsh(tensor)[0], rtol=1e-3)

    def test_vlad(self):
        image, constants = textured(40, 44, 3), load_constants()
        gray = image @ np.array([0.299, 0.587, 0.114])
        centroids = constants["centroids"]
        blocks = (40 - 2) // 2, (44 - 2) // 2
        sums = np.zeros((16, 128))
        for row in range(0, blocks[0] - 8, 2):
            for column in range(0, blocks[1] - 8, 2):
                descriptor = self.root_sift(gray, row, column)
                nearest = np.argmin(((centroids - descriptor) ** 2).sum(1))
                sums[nearest] += (descriptor - centroids[nearest]) * (descriptor**2).sum()
        sums /= np.sqrt((sums**2).sum(1, keepdims=True) + 1e-4)
        vlad = (np.sign(sums) * np.sqrt(np.abs(sums))).reshape(-1)
        vlad /= np.sqrt((vlad**2).sum() + 1e-4)
        expected = vlad - constants["global_mean"]
        for axis, loss in zip(constants["global_axes"], constants["global_loss"]):
            expected = expected - loss * ((vlad - constants["global_mean"]) @ axis) * axis
        np.testing.assert_allclose(extract(image).global_descriptor, unit(expected), atol=3e-3)

    def test_global_axes_are_orthonormal_as_far_as_their_rounding_allows(self):
        axes = load_constants()["global_axes"]
        np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=0.02)
