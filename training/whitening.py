"""Whitening by principal components (Jegou and Chum 2012)."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A projection of descriptors.

    Attributes:
      mean: float32 [D].
      projection: float32 [D, D'], the leading principal axes, each divided by a power of its variance.
    """

    mean: np.ndarray
    projection: np.ndarray

    @classmethod
    def learn(cls, rows: np.ndarray, dimensions: int, shrinkage: float, power: float = 0.5) -> "Whitening":
        """Learns from rows [N, D].

        Args:
          shrinkage: this part of the largest variance is added to all of them.
          power: 0.5 gives all axes the same variance, 0 leaves them.
        """
        mean = rows.mean(0, dtype=np.float64)
        variances, axes = np.linalg.eigh(np.cov(rows.T.astype(np.float64)))
        leading = np.argsort(-variances)[:dimensions]
        scale = (np.maximum(variances[leading], 1e-9) + shrinkage * variances[leading[0]]) ** -power
        return cls(mean.astype(np.float32), (axes[:, leading] * scale).astype(np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N, D] to float32 [N, D'] of unit length."""
        return unit((rows - self.mean) @ self.projection)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] divided by their length, float32."""
    return (rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)).astype(np.float32)
