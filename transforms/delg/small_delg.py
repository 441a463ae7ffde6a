"""The model "small-delg": a small DELG (Cao et al. 2020), trained on photographs of landmarks; training/ says how.

A residual backbone of four stages at strides 4 to 32. The local descriptors and their attention come from the second and third, at
stride 8. A level's global descriptor has two parts: an embedding of what the last two stages hold (GeM, Radenovic et al. 2019),
and a VLAD (Jegou et al. 2010) of all local descriptors, each weighted by its attention. Both parts are whitened softly by PCA (Jegou and
Chum 2012). Coordinates are (y, x).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any, Callable

import numpy as np

from transforms.delg import frozen_graph
from transforms.delg.card import ExtractionSettings

NAME = "small-delg"
CONSTANTS = os.path.join(os.path.dirname(__file__), "small_delg.npz")

SETTINGS = ExtractionSettings(
    image_scales=(0.3536, 0.5, 0.7071, 1.0),
    global_scales=(0.3536, 0.5, 0.7071, 1.0),
    max_local_features=1000,
    score_threshold=0.1,
    max_image_side=640,
)
MAX_DISTANCE = 0.9  # of putative matches

STEM = 32  # channels at stride 2
WIDTHS = (48, 96, 192, 384)  # channels at strides 4, 8, 16, 32
BLOCKS = (1, 2, 3, 1)  # residual blocks at these strides
LOCAL_STRIDE = 8  # px between neighbouring local features of a level
LOCAL_DIMENSIONS = 128
EMBEDDING_DIMENSIONS = 512
GEM_POWER = 3.0
RECEPTIVE_FIELD = 64  # px, about, of a local feature
NOISE = 1e-4  # added to squared norms of residuals, so that a few cells of little attention stay short
SIDE_MULTIPLE = 32  # sides of a level, so that every stage halves them evenly


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
      name: of its weights.
      size: of its kernel, in px.
      inputs, outputs: channels.
      stride: in px.
      normalised: whether it is followed by batch normalisation in training.
      relu: whether a ReLU follows.
      residual: whether it is the last of a residual branch.
    """

    name: str
    size: int
    inputs: int
    outputs: int
    stride: int = 1
    normalised: bool = True
    relu: bool = True
    residual: bool = False


@functools.cache
def layers() -> tuple[Layer, ...]:
    """All convolutions, in the order in which they are run."""
    found = [Layer("stem", 3, 3, STEM, 2)]
    inputs = STEM
    for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS)):
        found.append(Layer(f"stage{stage}/down", 3, inputs, width, 2))
        for block in range(blocks):
            found.append(Layer(f"stage{stage}/block{block}/a", 3, width, width))
            found.append(Layer(f"stage{stage}/block{block}/b", 3, width, width, relu=False, residual=True))
        inputs = width
    hidden = LOCAL_DIMENSIONS
    found.append(Layer("local/fine", 1, WIDTHS[1], hidden, normalised=False, relu=False))
    found.append(Layer("local/coarse", 1, WIDTHS[2], hidden * 4, normalised=False, relu=False))
    found.append(Layer("local/hidden", 3, hidden, hidden))
    found.append(Layer("local/descriptor", 1, hidden, LOCAL_DIMENSIONS, normalised=False, relu=False))
    found.append(Layer("local/attention", 1, hidden, 1, normalised=False, relu=False))
    return tuple(found)


EMBEDDING = ("embedding", WIDTHS[2] + WIDTHS[3], EMBEDDING_DIMENSIONS)  # name, inputs, outputs of the only dense layer


def forward(tf: Any, image: Any, convolve: Callable[[Any, Layer], Any]) -> tuple[Any, Any, Any]:
    """Runs the network.

    Args:
      tf: the module tensorflow.
      image: [B, H, W, 3], sides multiples of SIDE_MULTIPLE, values about -1 to 1.
      convolve: convolution with normalisation or bias, without the ReLU.

    Returns:
      Pooled float32 [B, 576]; local descriptors [B, H/8, W/8, 128], not normalised; attention [B, H/8, W/8, 1], logits.
      Cell (r, c) of these lies at (8 r + 7.5, 8 c + 7.5) px: every convolution of stride 2 moves by one px.
    """
    by_name = {layer.name: layer for layer in layers()}

    def run(x: Any, name: str) -> Any:
        y = convolve(x, by_name[name])
        return tf.nn.relu(y) if by_name[name].relu else y

    x = run(image, "stem")
    stages = []
    for stage, blocks in enumerate(BLOCKS):
        x = run(x, f"stage{stage}/down")
        for block in range(blocks):
            x = tf.nn.relu(x + run(run(x, f"stage{stage}/block{block}/a"), f"stage{stage}/block{block}/b"))
        stages.append(x)
    pooled = tf.concat([_gem(tf, stages[2]), _gem(tf, stages[3])], 1)
    hidden = tf.nn.relu(run(stages[1], "local/fine") + tf.nn.depth_to_space(run(stages[2], "local/coarse"), 2))
    hidden = run(hidden, "local/hidden")
    return pooled, run(hidden, "local/descriptor"), run(hidden, "local/attention")


def _gem(tf: Any, x: Any) -> Any:
    x = tf.cast(x, tf.float32)
    return tf.pow(tf.reduce_mean(tf.pow(x, GEM_POWER), [1, 2]) + 1e-6, 1 / GEM_POWER)


def load_constants() -> dict[str, np.ndarray]:
    """Returns the trained weights, float32.

    "<layer>" kernels [k, k, in, out] and "<layer>/bias" [out], normalisation folded in; "embedding" [576, 512] and its bias.
    "vlad/centroids" [K, 128]: k-means of local descriptors.
    For both parts P of the global descriptor, "embedding" and "vlad": "P/mean" [D]; "P/axes" [A, D], leading principal axes;
    "P/loss" [A], how much of its axis is taken away. "share": of the embedding in the squared length of the global descriptor.
    """
    with np.load(CONSTANTS) as data:
        constants = {name: data[name].astype(np.float32) for name in data.files}
    for name in ("embedding/axes", "vlad/axes"):  # stored as int8
        constants[name] /= np.linalg.norm(constants[name], axis=1, keepdims=True)
    return constants


def saved_model_bytes() -> bytes:
    """Returns the serialised SavedModel."""
    constants = load_constants()

    def convolve(tf: Any, x: Any, layer: Layer) -> Any:
        return tf.nn.conv2d(x, constants[layer.name], layer.stride, "SAME") + constants[f"{layer.name}/bias"]

    def level(tf: Any, image: Any, scale: Any, max_features: Any, threshold: Any) -> tuple[Any, Any, Any, Any]:
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        new_size = tf.maximum(tf.cast(tf.round(size * scale / SIDE_MULTIPLE), tf.int32), 2) * SIDE_MULTIPLE
        resized = tf.image.resize(image, new_size, antialias=True)
        pooled, maps, logits = forward(tf, (resized[None] - 128.0) / 64.0, functools.partial(convolve, tf))
        maps, attention = tf.math.l2_normalize(maps[0], 2), tf.sigmoid(logits[0, :, :, 0])
        cells, scores = frozen_graph.strongest_peaks(tf, attention, max_features, threshold)
        centres = tf.cast(cells, tf.float32) * LOCAL_STRIDE + (LOCAL_STRIDE - 0.5)
        zoom = tf.cast(new_size, tf.float32) / size
        boxes = tf.concat([(centres - RECEPTIVE_FIELD / 2) / zoom, (centres + RECEPTIVE_FIELD / 2) / zoom], 1)
        return boxes, tf.gather_nd(maps, cells), scores, descriptor(tf, pooled, maps, attention, constants)

    vlad_dimensions = constants["vlad/centroids"].size
    return frozen_graph.saved_model_bytes(level, LOCAL_DIMENSIONS, EMBEDDING_DIMENSIONS + vlad_dimensions)


def descriptor(tf: Any, pooled: Any, maps: Any, attention: Any, constants: dict[str, np.ndarray]) -> Any:
    """The global descriptor of a level.

    Args:
      tf: the module tensorflow.
      pooled: float32 [1, 576], as `forward` returns it.
      maps: float32 [h, w, 128], local descriptors, unit length.
      attention: float32 [h, w].
      constants: as `load_constants` returns them.

    Returns:
      float32 [1, 2048], unit length.
    """
    parts = {
        "embedding": tf.math.l2_normalize(tf.matmul(pooled, constants["embedding"]) + constants["embedding/bias"], 1),
        "vlad": vlad(tf, tf.reshape(maps, [-1, LOCAL_DIMENSIONS]), tf.reshape(attention, [-1, 1]), constants["vlad/centroids"]),
    }
    whitened = [
        tf.math.l2_normalize(frozen_graph.shrink_leading_axes(
            tf, part, constants[f"{name}/mean"], constants[f"{name}/axes"], constants[f"{name}/loss"]), 1)
        for name, part in parts.items()
    ]
    share = constants["share"]
    return tf.concat([whitened[0] * np.sqrt(share), whitened[1] * np.sqrt(1 - share)], 1)


def vlad(tf: Any, rows: Any, weights: Any, centroids: np.ndarray) -> Any:
    """Weighted sums of residuals to the nearest centroid, each of unit length, signed square roots; float32 [1, K D], unit length.

    Args:
      tf: the module tensorflow.
      rows: float32 [N, D].
      weights: float32 [N, 1].
      centroids: float32 [K, D].
    """
    nearest = tf.argmax(tf.matmul(rows, centroids.T) - 0.5 * np.sum(centroids**2, 1), 1)
    votes = tf.one_hot(nearest, len(centroids)) * weights
    residuals = tf.matmul(votes, rows, transpose_a=True) - tf.reduce_sum(votes, 0)[:, None] * centroids
    residuals /= tf.sqrt(tf.reduce_sum(residuals**2, 1, keepdims=True) + NOISE)
    signed_roots = tf.reshape(tf.sign(residuals) * tf.sqrt(tf.abs(residuals)), [1, -1])
    return tf.math.l2_normalize(signed_roots, 1)
