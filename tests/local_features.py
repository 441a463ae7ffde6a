"""Local features for tests."""

import numpy as np

from transforms.types import LocalFeatures


def features(descriptors, keypoints=None) -> LocalFeatures:
    """Local features of such directions, [N, D], by default all at one place."""
    descriptors = np.asarray(descriptors, np.float32)
    descriptors = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    keypoints = np.zeros((len(descriptors), 2)) if keypoints is None else keypoints
    return LocalFeatures(np.asarray(keypoints, np.float32), descriptors)
