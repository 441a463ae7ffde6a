"""Feature stores for tests."""

import numpy as np

from transforms.storage.feature_store import FeatureStore
from transforms.types import ImageFeatures, ImageRef, LocalFeatures


def write_store(
    root: str, descriptors: np.ndarray, prefix: str, per_unit: int, labelled: bool = True
) -> list[tuple[str, int]]:
    """A store whose image number n has n % 3 local features; returns its (unit, images)."""
    store, written = FeatureStore(root), []
    for start in range(0, len(descriptors), per_unit):
        features = []
        for n in range(start, min(start + per_unit, len(descriptors))):
            local = LocalFeatures(np.full((n % 3, 2), n, np.float32), np.ones((n % 3, 4), np.float32) / 2)
            ref = ImageRef(f"{prefix}{n:05d}", "uri", 1, f"label {n % 7}" if labelled else None)
            features.append(ImageFeatures(ref, 10, 10, 1.0, descriptors[n], local))
        unit = f"{start:06d}-{prefix}"
        store.write_unit(unit, features, [], descriptors.shape[1])
        written.append((unit, len(features)))
    return written
