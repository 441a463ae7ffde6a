"""The model "rootsift-vlad": local and global image features without a neural network.

The baseline beside the trained model. Local features are upright RootSIFT descriptors (Lowe 2004;
Arandjelovic and Zisserman 2012) at the corners (Shi and Tomasi 1994) of an image pyramid; the global
descriptor of a scale is a VLAD (Jegou et al. 2010) of its dense descriptors, intra-normalised (Arandjelovic
and Zisserman 2013), with signed square roots. Both are centred and whitened by PCA (Jegou and Chum 2012),
which takes out what all photographs share: without it, unrelated RootSIFT descriptors are 0.5 to 0.95 apart,
as near as DELG's matches; with it, they are 1.25 to 1.55 apart.

A level of the pyramid is cut into blocks of 2 x 2 px. A cell is an orientation histogram over a triangular
window of 8 x 8 px, one cell at each block, and a descriptor is 4 x 4 cells that are 4 px apart: SIFT's
geometry. Coordinates are (y, x).
"""

import os

import cv2
import numpy as np

from transforms.models.card import ExtractionSettings
from transforms.models.model import BuiltInModel, Extracted, ModelError, check_image, resized

BLOCK = 2  # px
GRID = 4  # cells along a side of a descriptor
CELL_STEP = 2  # blocks between neighbouring cells of a descriptor
ORIENTATIONS = 8
REACH = CELL_STEP * (GRID - 1)  # blocks from the first to the last cell of a descriptor
PATCH = REACH + 3  # blocks that a descriptor covers: a cell's window reaches one block further on each side
MIN_SIDE = PATCH * BLOCK + 2  # px of a pyramid level; gradients need one more on each side
CONTRAST = 1.0  # added to a descriptor's L1 norm: noise on flat areas stays short of unit length
NOISE = 1e-4  # added to squared norms, where rounding errors of a flat image must not be blown up
DIMENSIONS = GRID * GRID * ORIENTATIONS

_OFFSET = np.arange(GRID) - (GRID - 1) / 2
_GAUSSIAN = np.exp(-(_OFFSET**2) / (2 * (GRID / 2) ** 2))
_WEIGHTS = np.repeat(np.outer(_GAUSSIAN, _GAUSSIAN), ORIENTATIONS).astype(np.float32)


class RootSiftVlad(BuiltInModel):
    """RootSIFT and VLAD at the scales of an image pyramid."""

    NAME = "rootsift-vlad"
    VERSION = 2
    SETTINGS = ExtractionSettings(
        image_scales=(0.25, 0.3536, 0.5, 0.7071, 1.0),
        global_scales=(0.25, 0.3536, 0.5, 0.7071, 1.0),
        max_local_features=1000,
        score_threshold=20.0,
        max_image_side=640,
    )
    MAX_DISTANCE = 0.9
    CONSTANTS = os.path.join(os.path.dirname(__file__), "rootsift_vlad.npz")

    def __init__(self, settings: ExtractionSettings):
        """Use `load`."""
        self.settings = settings
        self._constants = load_constants()
        self.global_width, self.local_width = self._constants["centroids"].size, DIMENSIONS

    @classmethod
    def load(cls, place: str, settings: ExtractionSettings) -> "RootSiftVlad":
        if settings.precision != "float32":
            raise ModelError(f"{cls.NAME} has no {settings.precision}; it runs in float32")
        return cls(settings)

    def extract(self, pixels: np.ndarray) -> Extracted:
        check_image(pixels)
        gray = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2GRAY)
        settings, constants = self.settings, self._constants
        total = np.zeros(self.global_width, np.float32)
        keypoints, descriptors, scores = [], [], []
        for scale in settings.image_scales:
            cells, attention, zoom = _level(gray, scale)
            corners, strengths = _strongest_peaks(
                attention, settings.max_local_features, settings.score_threshold
            )
            # A corner is the block (row, col) at the top left of its descriptor's patch; block 0 starts at
            # pixel 1, as gradients do.
            keypoints.append((corners * BLOCK + (1.0 + PATCH * BLOCK / 2)) / zoom)
            rows = _root_sift(_patches_at(cells, corners))
            descriptors.append((rows - constants["local_mean"]) @ constants["local_projection"])
            scores.append(strengths)
            if scale in settings.global_scales:
                total += _unit(self._shrink(_vlad(_dense_root_sift(cells), constants["centroids"]))[None])[0]
        strengths = np.concatenate(scores)
        order = np.argsort(-strengths, kind="stable")[: settings.max_local_features]
        return Extracted(
            _unit(total[None])[0],
            np.concatenate(keypoints)[order].astype(np.float32),
            _unit(np.concatenate(descriptors)[order]),
            strengths[order],
        )

    def _shrink(self, row: np.ndarray) -> np.ndarray:
        """Centres a VLAD [D] and takes a share of it along each of the leading axes (soft whitening)."""
        centred, axes = row - self._constants["global_mean"], self._constants["global_axes"]
        # einsum adds in one order, whatever the threads of BLAS.
        along = np.einsum("ad,d->a", axes, centred) * self._constants["global_loss"]
        return centred - np.einsum("a,ad->d", along, axes)


def load_constants() -> dict[str, np.ndarray]:
    """Returns the constants, float32, learned from photographs; their labels only balanced the sample.

    centroids [16, 128]: k-means of RootSIFT descriptors. local_mean [128], local_projection [128, 128]: of
    RootSIFT descriptors at corners; the principal axes, each divided by the fourth root of its variance.
    global_mean [2048], global_axes [A, 2048]: of the VLADs; the leading principal axes, of unit length.
    global_loss [A]: how much of its axis is taken away, so that none has more variance than the last one.
    """
    with np.load(RootSiftVlad.CONSTANTS) as data:
        constants = {name: data[name].astype(np.float32) for name in data.files}
    axes = constants["global_axes"]  # stored as int8
    constants["global_axes"] = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    return constants


def _level(gray: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A level of the pyramid of a gray image.

    Returns:
      The cells [R + 6, C + 6, 8], the attention [R, C] of the R x C descriptors, and the level's sides over
      those of the image, [2].
    """
    sides = np.array(gray.shape)
    height, width = np.maximum(np.round(sides * scale).astype(int), MIN_SIDE).tolist()
    level = resized(gray, height, width)
    dx = level[1:-1, 2:] - level[1:-1, :-2]
    dy = level[2:, 1:-1] - level[:-2, 1:-1]

    # relu(|g| cos(angle to the bin's centre) - |g| cos(45 degrees)): each gradient falls into its two nearest
    # bins, softly.
    least = np.sqrt(dx * dx + dy * dy) * np.float32(np.cos(np.pi / 4))
    histograms = []
    for angle in np.arange(ORIENTATIONS) * (2 * np.pi / ORIENTATIONS):
        along = dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))
        histograms.append(_pool(np.maximum(along - least, 0)))
    xx, xy, yy = (
        _pool(product)[REACH // 2 : -(REACH // 2), REACH // 2 : -(REACH // 2)]
        for product in (dx * dx, dx * dy, dy * dy)
    )
    attention = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)  # the smaller eigenvalue
    return np.stack(histograms, -1), attention, np.array([height, width]) / sides


def _pool(values: np.ndarray) -> np.ndarray:
    """Means [h, w] over a triangular window four blocks wide, at every block with neighbours all around."""
    height, width = (side // BLOCK * BLOCK for side in values.shape)
    blocks = values[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = (blocks[:, 0, :, 0] + blocks[:, 0, :, 1] + blocks[:, 1, :, 0] + blocks[:, 1, :, 1]) / 4
    rows = blocks[:-2] + 2 * blocks[1:-1] + blocks[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def _strongest_peaks(
    attention: np.ndarray, max_features: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest local maxima of an attention map [R, C] that are above 0 and at least the threshold:
    (row, col) [N, 2] and scores [N], strongest first.
    """
    peak = (attention >= cv2.dilate(attention, np.ones((3, 3)))) & (attention >= threshold) & (attention > 0)
    places = np.flatnonzero(peak)
    scores = attention.ravel()[places]
    order = np.argsort(-scores, kind="stable")[:max_features]
    return np.stack(np.divmod(places[order], attention.shape[1]), 1), scores[order]


def _patches_at(cells: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The cells of the descriptors whose first cells are [N, 2], float32 [N, 128]."""
    offsets = np.moveaxis(np.mgrid[:GRID, :GRID], 0, -1).reshape(-1, 2) * CELL_STEP
    at = corners[:, None] + offsets
    return cells[at[..., 0], at[..., 1]].reshape(-1, DIMENSIONS)


def _root_sift(histograms: np.ndarray) -> np.ndarray:
    """Gaussian weights of the cells (sigma: half a descriptor), L1 norm, square root; [N, 128] both."""
    weighted = histograms * _WEIGHTS
    return np.sqrt(weighted / (weighted.sum(1, keepdims=True) + CONTRAST))


def _dense_root_sift(cells: np.ndarray) -> np.ndarray:
    """RootSIFT descriptors [N, 128], one for every fourth px of a level; about 0 without texture."""
    sparse = cells[::CELL_STEP, ::CELL_STEP]
    height, width = (side - GRID + 1 for side in sparse.shape[:2])
    patches = [
        sparse[row : row + height, column : column + width] for row in range(GRID) for column in range(GRID)
    ]
    return _root_sift(np.concatenate(patches, 2).reshape(-1, DIMENSIONS))


def _vlad(dense: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The VLAD [128 K] of descriptors [N, 128] over centroids [K, 128]; about 0 for a flat image."""
    nearest = (dense @ centroids.T - 0.5 * (centroids**2).sum(1)).argmax(1)
    # A descriptor counts by its squared length: that is about 1, and 0 where there is no texture.
    votes = np.eye(len(centroids), dtype=np.float32)[nearest] * (dense * dense).sum(1, keepdims=True)
    residuals = votes.T @ dense - votes.sum(0)[:, None] * centroids
    residuals /= np.sqrt((residuals**2).sum(1, keepdims=True) + NOISE)
    signed_roots = (np.sign(residuals) * np.sqrt(np.abs(residuals))).ravel()
    return signed_roots / np.sqrt((signed_roots**2).sum() + NOISE)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] of unit length; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
