"""The model "rootsift-vlad": local and global image features in one TensorFlow graph, without a neural
network.

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
from collections.abc import Callable
from typing import Any

import numpy as np

from transforms.models import frozen_graph
from transforms.models.card import ExtractionSettings

NAME = "rootsift-vlad"
CONSTANTS = os.path.join(os.path.dirname(__file__), "rootsift_vlad.npz")

SETTINGS = ExtractionSettings(
    image_scales=(0.25, 0.3536, 0.5, 0.7071, 1.0),
    global_scales=(0.25, 0.3536, 0.5, 0.7071, 1.0),
    max_local_features=1000,
    score_threshold=20.0,
    max_image_side=640,
)
MAX_DISTANCE = 0.9  # of putative matches

BLOCK = 2  # px
GRID = 4  # cells along a side of a descriptor
CELL_STEP = 2  # blocks between neighbouring cells of a descriptor
ORIENTATIONS = 8
REACH = CELL_STEP * (GRID - 1)  # blocks from the first to the last cell of a descriptor
PATCH = REACH + 3  # blocks that a descriptor covers: a cell's window reaches one block further on each side
MIN_SIDE = PATCH * BLOCK + 2  # px of a pyramid level; gradients need one more on each side
CONTRAST = 1.0  # added to a descriptor's L1 norm: noise on flat areas stays short of unit length
NOISE = (
    1e-4  # added to squared norms, where rounding errors of a flat image must not be blown up to unit length
)
DIMENSIONS = GRID * GRID * ORIENTATIONS


def load_constants() -> dict[str, np.ndarray]:
    """Returns the constants, float32, learned from photographs; their labels only balanced the sample.

    centroids [16, 128]: k-means of RootSIFT descriptors. local_mean [128], local_projection [128, 128]: of
    RootSIFT descriptors at corners; the principal axes, each divided by the fourth root of its variance.
    global_mean [2048], global_axes [A, 2048]: of the VLADs; the leading principal axes, of unit length.
    global_loss [A]: how much of its axis is taken away, so that none has more variance than the last one.
    """
    with np.load(CONSTANTS) as data:
        constants = {name: data[name].astype(np.float32) for name in data.files}
    axes = constants["global_axes"]  # stored as int8
    constants["global_axes"] = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    return constants


def saved_model_bytes() -> bytes:
    """Returns the serialised SavedModel."""
    constants = load_constants()

    def prepare(tf: Any, image: Any) -> frozen_graph.Level:
        gray = grayscale(tf, image)

        def level(scale: Any, max_features: Any, threshold: Any) -> tuple[Any, Any, Any, Callable[[], Any]]:
            boxes, root_sift, scores, cells = local_features(tf, gray, scale, max_features, threshold)
            features = tf.matmul(root_sift - constants["local_mean"], constants["local_projection"])

            def describe() -> Any:
                rows = vlad(tf, dense_root_sift(tf, cells), constants["centroids"])
                return frozen_graph.shrink_leading_axes(
                    tf, rows, constants["global_mean"], constants["global_axes"], constants["global_loss"]
                )

            return boxes, features, scores, describe

        return level

    return frozen_graph.saved_model_bytes(prepare, DIMENSIONS, constants["centroids"].size)


def grayscale(tf: Any, image: Any) -> Any:
    """The luminance [H, W] of an image [H, W, 3], RGB (ITU-R BT.601)."""
    return tf.tensordot(image, tf.constant([0.299, 0.587, 0.114]), 1)


def local_features(
    tf: Any, gray: Any, scale: Any, max_features: Any, threshold: Any
) -> tuple[Any, Any, Any, Any]:
    """The local features of a level.

    Args:
      tf: the module tensorflow.
      gray: float32 [H, W], 0 to 255, of the image.
      scale: float32 [], of the level.
      max_features: int32 [], N at most.
      threshold: float32 [], least attention.

    Returns:
      Boxes [N, 4] in px of the image, RootSIFT descriptors [N, 128], attention [N], strongest first; and the
      orientation histograms [R + 6, C + 6, 8] of all cells.
    """
    cells, attention, zoom = _level(tf, gray, scale)
    corners, scores = frozen_graph.strongest_peaks(tf, attention, max_features, threshold)
    # A corner is the block (row, col) at the top left of its descriptor's patch; block 0 starts at pixel 1,
    # as gradients do.
    top_left = tf.cast(corners, tf.float32) * BLOCK + 1.0
    boxes = tf.concat([top_left / zoom, (top_left + PATCH * BLOCK) / zoom], 1)
    return boxes, _root_sift(tf, _patches_at(tf, cells, corners)), scores, cells


def _level(tf: Any, gray: Any, scale: Any) -> tuple[Any, Any, Any]:
    """Resizes, and returns cells [R + 6, C + 6, 8], the attention of the R x C descriptors, and zoom [2] of
    the level.
    """
    size = tf.cast(tf.shape(gray), tf.float32)
    new_size = tf.maximum(tf.cast(tf.round(size * scale), tf.int32), MIN_SIDE)
    level = tf.cond(
        tf.reduce_all(tf.equal(new_size, tf.shape(gray))),
        lambda: gray,  # saves a tenth of the time of all scales
        lambda: tf.image.resize(gray[:, :, None], new_size, antialias=True)[:, :, 0],
    )
    dx = level[1:-1, 2:] - level[1:-1, :-2]
    dy = level[2:, 1:-1] - level[:-2, 1:-1]

    # relu(|g| cos(angle to the bin's centre) - |g| cos(45 degrees)): each gradient falls into its two nearest
    # bins, softly.
    angles = np.arange(ORIENTATIONS) * (2 * np.pi / ORIENTATIONS)
    bins = np.stack([np.cos(angles), np.sin(angles), np.full(ORIENTATIONS, -np.cos(np.pi / 4))]).astype(
        np.float32
    )
    gradient = tf.stack([dx, dy, tf.sqrt(dx * dx + dy * dy)], -1)
    cells = _pool(tf, tf.nn.relu(tf.nn.conv2d(gradient[None], bins[None, None], 1, "VALID")))

    tensor = _pool(tf, tf.stack([dx * dx, dx * dy, dy * dy], -1)[None])
    half = REACH // 2
    xx, xy, yy = tf.unstack(tensor[half:-half, half:-half], axis=-1)
    attention = (xx + yy) / 2 - tf.sqrt(((xx - yy) / 2) ** 2 + xy * xy)  # the smaller eigenvalue
    return cells, attention, tf.cast(new_size, tf.float32) / size


def _pool(tf: Any, values: Any) -> Any:
    """Means [1, h, w, D] over a triangular window four blocks wide, at every block that has neighbours all
    around.
    """
    blocks = tf.nn.avg_pool2d(values, BLOCK, BLOCK, "VALID")[0]
    rows = blocks[:-2] + 2.0 * blocks[1:-1] + blocks[2:]
    return (rows[:, :-2] + 2.0 * rows[:, 1:-1] + rows[:, 2:]) / 16.0


def _patches_at(tf: Any, cells: Any, corners: Any) -> Any:
    """Returns the cells of the descriptors whose first cells are int32 [N, 2], float32 [N, 128]."""
    offsets = np.moveaxis(np.mgrid[:GRID, :GRID], 0, -1).reshape(-1, 2).astype(np.int32) * CELL_STEP
    return tf.reshape(tf.gather_nd(cells, corners[:, None] + offsets), [-1, DIMENSIONS])


def _root_sift(tf: Any, histograms: Any) -> Any:
    """Gaussian weights of the cells (sigma: half a descriptor), L1 norm, square root; [N, 128] to [N,
    128].
    """
    offset = np.arange(GRID) - (GRID - 1) / 2
    gaussian = np.exp(-(offset**2) / (2 * (GRID / 2) ** 2))
    weights = np.repeat(np.outer(gaussian, gaussian), ORIENTATIONS).astype(np.float32)
    weighted = histograms * weights
    return tf.sqrt(weighted / (tf.reduce_sum(weighted, -1, keepdims=True) + CONTRAST))


def dense_root_sift(tf: Any, cells: Any) -> Any:
    """RootSIFT descriptors [N, 128], one for every fourth px of a level; about 0 where there is no
    texture.
    """
    sparse = cells[::CELL_STEP, ::CELL_STEP]
    height, width = (tf.shape(sparse)[axis] - GRID + 1 for axis in (0, 1))
    patches = [
        sparse[row : row + height, column : column + width] for row in range(GRID) for column in range(GRID)
    ]
    return _root_sift(tf, tf.reshape(tf.concat(patches, 2), [-1, DIMENSIONS]))


def vlad(tf: Any, dense: Any, centroids: Any) -> Any:
    """Returns the VLAD of descriptors [N, 128] over centroids [K, 128], float32 [1, 128 K]; about 0 for a
    flat image.
    """
    nearest = tf.argmax(
        tf.matmul(dense, centroids, transpose_b=True) - 0.5 * tf.reduce_sum(centroids**2, 1), 1
    )
    # A descriptor counts by its squared length: that is about 1, and 0 where there is no texture.
    votes = tf.one_hot(nearest, centroids.shape[0]) * tf.reduce_sum(dense * dense, 1, keepdims=True)
    residuals = tf.matmul(votes, dense, transpose_a=True) - tf.reduce_sum(votes, 0)[:, None] * centroids
    residuals /= tf.sqrt(tf.reduce_sum(residuals**2, 1, keepdims=True) + NOISE)
    signed_roots = tf.reshape(tf.sign(residuals) * tf.sqrt(tf.abs(residuals)), [1, -1])
    return signed_roots / tf.sqrt(tf.reduce_sum(signed_roots**2) + NOISE)
