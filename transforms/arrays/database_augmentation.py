"""Label-constrained augmentation of an index: a descriptor leans on the most similar ones of its landmark.

x' = x + sum of max(0, x . l) l over the NEIGHBORS nearest l of the same landmark, as unit vector (Turcot and
Lowe, ICCV Workshops 2009, without labels). It wants whitened descriptors: in those that crowd in a cone every
neighbour counts alike. Candidates are found by the plain descriptors, and only scored by augmented ones.
"""

import dataclasses

import numpy as np

NEIGHBORS = 20


@dataclasses.dataclass(frozen=True)
class Augmented:
    """The augmented descriptors of N images.

    Attributes:
      descriptors: int8 [N, D], of a row's sum only the direction, its largest component 127.
      length: float32 [N], of the sum.
      least: float32 [N], cosine of the last of the NEIGHBORS nearest; -inf where there are fewer.
    """

    descriptors: np.ndarray
    length: np.ndarray
    least: np.ndarray


def augment(rows: np.ndarray, members: np.ndarray) -> Augmented:
    """The augmented descriptors of some images of one landmark.

    Sums are made in float64 and rounded, so that their order makes no difference.

    Args:
      rows: int64 [N], the images, as rows of `members`.
      members: float32 [M, D], unit descriptors of all images of the landmark, in the order of their ids:
        among equally near ones the first is taken.
    """
    wide = members.astype(np.float64)
    own = wide[rows]
    cosine = (own @ wide.T).astype(np.float32)
    cosine[np.arange(len(rows)), rows] = -np.inf
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, : min(NEIGHBORS, len(members) - 1)]
    cosine = np.take_along_axis(cosine, nearest, 1)
    weights = np.maximum(cosine, 0).astype(np.float64)
    sums = own + np.einsum("nk,nkd->nd", weights, wide[nearest])
    peak = np.abs(sums).max(axis=1, keepdims=True)
    full = nearest.shape[1] == NEIGHBORS
    return Augmented(
        np.rint(sums * (127.0 / peak)).astype(np.int8),
        np.linalg.norm(sums, axis=1).astype(np.float32),
        cosine[:, -1] if full else np.full(len(rows), -np.inf, np.float32),
    )


def augmented_cosines(query: np.ndarray, augmented: Augmented) -> np.ndarray:
    """float32 [N], cosines of a query, float32 [D] of unit length, to augmented descriptors."""
    rows = augmented.descriptors.astype(np.float64)
    return (rows @ query.astype(np.float64) / np.linalg.norm(rows, axis=1)).astype(np.float32)


def without_query(cosine: np.ndarray, augmented: Augmented, plain: np.ndarray) -> np.ndarray:
    """float32 [N], cosines as `augmented_cosines` gave them for a query that is itself an image of the
    landmark, had it not been among the neighbours that the sums are made of.

    Of the sum s the query's part max(0, c) q is taken away, c its cosine to the image, where that is among
    the NEIGHBORS nearest.

    Args:
      cosine: float32 [N].
      plain: float32 [N], cosines of the query to the images themselves.
    """
    length = augmented.length.astype(np.float64)
    part = np.where(plain >= augmented.least, np.maximum(plain, 0.0), 0.0)
    along = length * cosine
    left = np.sqrt(np.maximum(length**2 - 2 * part * along + part**2, 1e-12))
    return ((along - part) / left).astype(np.float32)
