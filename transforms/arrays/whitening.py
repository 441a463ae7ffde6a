"""Whitening by principal components (Jegou and Chum, Negative evidences and co-occurences in image retrieval,
ECCV 2012): descriptors that crowd in a cone are spread over the sphere.
"""

import dataclasses
import functools
import io
from collections.abc import Iterable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A projection of descriptors.

    Attributes:
      mean: float32 [D].
      projection: float32 [D, D'], the leading principal axes, each divided by a power of its variance.
      dimensions, shrinkage: asked for when it was learned, see `of_blocks`; None where it is not known.
    """

    mean: np.ndarray
    projection: np.ndarray
    dimensions: int | None = None
    shrinkage: float | None = None

    @classmethod
    def learn(cls, rows: np.ndarray, dimensions: int, shrinkage: float, power: float = 0.5) -> "Whitening":
        """Learns from rows [N, D]; see `of_blocks`."""
        return cls.of_blocks([rows], dimensions, shrinkage, power)

    @classmethod
    def of_blocks(
        cls, blocks: Iterable[np.ndarray], dimensions: int, shrinkage: float, power: float = 0.5
    ) -> "Whitening":
        """Learns from rows [N, D] that come in blocks, of which only sums are held.

        Args:
          dimensions: D', fewer where the rows span fewer.
          shrinkage: this part of the largest variance is added to all of them.
          power: 0.5 gives all axes the same variance, 0 leaves them.

        Raises:
          ValueError: the rows do not differ.
        """
        count, total, squares, origin = 0, np.zeros(1), np.zeros((1, 1)), np.zeros(1)
        for block in blocks:
            if not count and len(block):
                origin = block[0].astype(np.float64)  # far from 0, squares would lose the differences
            rows = block.astype(np.float64) - origin
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.T @ rows
        mean = total / max(count, 1)
        covariance = squares / max(count, 1) - np.outer(mean, mean)
        variances, axes = np.linalg.eigh(covariance)
        variances, axes = variances[::-1], axes[:, ::-1]
        spanned = int((variances > 1e-9 * max(variances[0], 1e-12)).sum())
        if not spanned:
            raise ValueError(f"{count} descriptors do not differ: there is nothing to whiten")
        kept = min(dimensions, spanned)
        scale = (variances[:kept] + shrinkage * variances[0]) ** -power
        # An axis has two directions; the one of the larger coordinates is as good as the other.
        signs = np.sign(axes[np.abs(axes[:, :kept]).argmax(0), np.arange(kept)])
        projection = axes[:, :kept] * (signs * scale)
        return cls((mean + origin).astype(np.float32), projection.astype(np.float32), dimensions, shrinkage)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Whitening":
        """Reads what `to_bytes` made; raises ValueError or KeyError where it is something else."""
        with np.load(io.BytesIO(content)) as arrays:
            asked = {key: arrays[key].item() for key in ("dimensions", "shrinkage") if key in arrays}
            return cls(arrays["mean"], arrays["projection"], **asked)

    def to_bytes(self) -> bytes:
        """An .npz file."""
        buffer = io.BytesIO()
        asked = {"dimensions": self.dimensions, "shrinkage": self.shrinkage}
        known: dict[str, Any] = {key: np.array(value) for key, value in asked.items() if value is not None}
        np.savez(buffer, mean=self.mean, projection=self.projection, **known)
        return buffer.getvalue()

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        return np.ascontiguousarray(self.projection.T, np.float64)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N, D] to float32 [N, D'] of unit length; the mean itself becomes the first axis.

        One by one, by einsum, which adds in one order: a product of many by BLAS gives other bits for other
        numbers of rows and threads.
        """
        whitened = np.empty((len(rows), len(self._rows)), np.float64)
        for row, out in zip(rows, whitened):
            np.einsum("kd,d->k", self._rows, row.astype(np.float64) - self.mean, out=out)
        lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
        whitened[lengths[:, 0] == 0, 0] = 1
        return (whitened / np.where(lengths > 0, lengths, 1)).astype(np.float32)
