"""Local features in 8 bits, as they are stored and matched: inliers tell true pairs from false ones as well
as in 32 bits, where all descriptors of an image share a scale (benchmarks/README.md, "Choices").
"""

import numpy as np

from transforms.types import LocalFeatures, QuantizedFeatures


def quantized(local: LocalFeatures) -> QuantizedFeatures:
    """Local features with each descriptor x as round(127 x / m), m the largest sum of the sizes of two
    neighbouring components, the first and second, the third and fourth and so on, of all of the image's.

    So all descriptors of an image stay about equally long, which is what lets `transforms.arrays.matching`
    tell near ones quickly, and have small pairs, which `transforms.arrays.integer_product` is fastest with.
    """
    sizes = np.abs(local.descriptors)
    width = sizes.shape[1]
    sizes[:, : width - 1 : 2] += sizes[:, 1::2]
    peak = sizes.max(initial=1e-30)
    return with_lengths(local.keypoints, np.rint(local.descriptors * (127.0 / peak)).astype(np.int8))


def with_lengths(keypoints: np.ndarray, descriptors: np.ndarray) -> QuantizedFeatures:
    """Quantized features of descriptors int8 [N, D] at keypoints float32 [N, 2]."""
    squares = np.einsum("nd,nd->n", descriptors, descriptors, dtype=np.int32)
    return QuantizedFeatures(keypoints, descriptors, squares.astype(np.float64))


def dequantized(features: QuantizedFeatures) -> LocalFeatures:
    """The inverse of `quantized`, up to rounding; descriptors are float32 of unit length."""
    lengths = np.sqrt(np.maximum(features.squared_lengths, 1.0))
    return LocalFeatures(features.keypoints, (features.descriptors / lengths[:, None]).astype(np.float32))
