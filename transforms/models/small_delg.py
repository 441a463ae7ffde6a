"""The model "small-delg": a small DELG (Cao et al. 2020), trained on photographs of landmarks, beside
RootSIFT; training/ says how.

A residual backbone of four stages at strides 4 to 32 runs on every level of the pyramid. A level's global
descriptor has two parts: an embedding of what the last two stages hold (GeM, Radenovic et al. 2019), and a
VLAD of dense RootSIFT descriptors. Local features lie at corners, and their descriptors have two parts too:
RootSIFT, which tells details apart, and what the second and third stage say of the place, at stride 8, which
knows them again in another light. All parts are whitened by PCA (Jegou and Chum 2012). Coordinates are (y,
x).
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from transforms.models import frozen_graph, rootsift_vlad
from transforms.models.card import ExtractionSettings

NAME = "small-delg"
CONSTANTS = os.path.join(os.path.dirname(__file__), "small_delg.npz")

SETTINGS = ExtractionSettings(
    image_scales=(0.25, 0.3536, 0.5, 0.7071, 1.0),
    global_scales=(0.3536, 0.5, 0.7071, 1.0),
    max_local_features=1000,
    score_threshold=20.0,
    max_image_side=640,
)
MAX_DISTANCE = 0.9  # of putative matches

STEM = 32  # channels at stride 2
WIDTHS = (48, 96, 192, 384)  # channels at strides 4, 8, 16, 32
BLOCKS = (1, 2, 3, 1)  # residual blocks at these strides
LOCAL_STRIDE = 8  # px between neighbouring learned descriptors of a level
LOCAL_DIMENSIONS = 128
EMBEDDING_DIMENSIONS = 512
EMBEDDING_SHARE = 0.55  # of the squared length of a global descriptor; the VLAD has the rest
ROOTSIFT_LOCAL_SHARE = 0.7  # of the squared length of a local descriptor; the learned part has the rest
GEM_POWER = 3.0
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
    return tuple(found)


EMBEDDING = (
    "embedding",
    WIDTHS[2] + WIDTHS[3],
    EMBEDDING_DIMENSIONS,
)  # name, inputs, outputs of the only dense layer


def forward(tf: Any, image: Any, convolve: Callable[[Any, Layer], Any]) -> tuple[Any, Any, Any]:
    """Runs the network.

    Args:
      tf: the module tensorflow.
      image: [B, H, W, 3], sides multiples of SIDE_MULTIPLE, values about -1 to 1.
      convolve: convolution with normalisation or bias, without the ReLU.

    Returns:
      Pooled float32 [B, 576]; local descriptors [B, H/8, W/8, 128], not normalised; what these were made of,
      [B, H/8, W/8, 128]. Cell (r, c) lies at (8 r + 7.5, 8 c + 7.5) px: every convolution of stride 2 moves
      by one px.
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
    hidden = tf.nn.relu(
        run(stages[1], "local/fine") + tf.nn.depth_to_space(run(stages[2], "local/coarse"), 2)
    )
    hidden = run(hidden, "local/hidden")
    return pooled, run(hidden, "local/descriptor"), hidden


def _gem(tf: Any, x: Any) -> Any:
    x = tf.cast(x, tf.float32)
    return tf.pow(tf.reduce_mean(tf.pow(x, GEM_POWER), [1, 2]) + 1e-6, 1 / GEM_POWER)


def load_constants() -> dict[str, np.ndarray]:
    """Returns the trained weights, float32.

    "<layer>" kernels [k, k, in, out] and "<layer>/bias" [out], normalisation folded in; "embedding" [576,
    512] and its bias. "vlad/centroids" [12, 128]: k-means of dense RootSIFT descriptors. For P in "embedding"
    and "vlad": "P/mean" [D]; "P/axes" [A, D], leading principal axes; "P/loss" [A], how much of its axis is
    taken away. For P in "rootsift" and "learned": "P/mean" [128]; "P/projection" [128, D'], principal axes
    over the fourth roots of their variances.
    """
    constants, steps = _stored()
    for name, step in steps.items():
        constants[name] = constants[name] * step
    return constants


def quantised(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [..., out] as int8 and the step [out] of each output, float32: kernel is about int8 * step."""
    step = (
        np.maximum(np.abs(kernel).max(tuple(range(kernel.ndim - 1))), 1e-9)
        .astype(np.float16)
        .astype(np.float32)
        / 127
    )
    return np.clip(np.round(kernel / step), -127, 127).astype(np.int8), step


def _stored() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The constants, kernels as int8 and all others float32, and the steps of the kernels by name."""
    with np.load(CONSTANTS) as data:
        constants = {name: data[name] for name in data.files}
    steps = {
        name: constants.pop(f"{name}/step").astype(np.float32)
        for name in list(constants)
        if f"{name}/step" in constants
    }
    constants = {
        name: value if name in steps else value.astype(np.float32) for name, value in constants.items()
    }
    for name in ("embedding/axes", "vlad/axes"):  # stored as int8
        constants[name] /= np.linalg.norm(constants[name], axis=1, keepdims=True)
    return constants, steps


def saved_model_bytes() -> bytes:
    """Returns the serialised SavedModel."""
    stored, steps = _stored()

    def prepare(tf: Any, image: Any) -> frozen_graph.Level:
        # As int8 a graph is a quarter as large: TensorFlow keeps more than ten copies of it when it loads and
        # optimises one.
        constants = {
            name: tf.cast(value, tf.float32) * steps.get(name, 1.0) for name, value in stored.items()
        }
        gray = rootsift_vlad.grayscale(tf, image)

        def level(scale: Any, max_features: Any, threshold: Any) -> tuple[Any, Any, Any, Callable[[], Any]]:
            boxes, root_sift, scores, cells = rootsift_vlad.local_features(
                tf, gray, scale, max_features, threshold
            )
            pooled, learned = at_boxes(tf, image, scale, boxes, constants)
            features = joined(
                tf,
                project(tf, root_sift, constants, "rootsift"),
                project(tf, learned, constants, "learned"),
                ROOTSIFT_LOCAL_SHARE,
            )

            def describe() -> Any:
                vlad = rootsift_vlad.vlad(
                    tf, rootsift_vlad.dense_root_sift(tf, cells), constants["vlad/centroids"]
                )
                embedding = shrink(tf, embed(tf, pooled, constants), constants, "embedding")
                return joined(tf, embedding, shrink(tf, vlad, constants, "vlad"), EMBEDDING_SHARE)

            return boxes, features, scores, describe

        return level

    local_dimensions = sum(stored[f"{name}/projection"].shape[1] for name in ("rootsift", "learned"))
    return frozen_graph.saved_model_bytes(
        prepare, local_dimensions, EMBEDDING_DIMENSIONS + stored["vlad/centroids"].size
    )


def resize(tf: Any, image: Any, scale: Any) -> tuple[Any, Any]:
    """The level of an image [H, W, 3] (0 to 255) at a scale, as `forward` wants it, and its zoom [2]: sides
    over those of the image.
    """
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    new_size = tf.maximum(tf.cast(tf.round(size * scale / SIDE_MULTIPLE), tf.int32), 2) * SIDE_MULTIPLE
    resized = tf.image.resize(image, new_size, antialias=True)
    return (resized[None] - 128.0) / 64.0, tf.cast(new_size, tf.float32) / size


def embed(tf: Any, pooled: Any, constants: dict[str, np.ndarray]) -> Any:
    """The embedding [B, 512] of what `forward` pooled, unit length."""
    return tf.math.l2_normalize(tf.matmul(pooled, constants["embedding"]) + constants["embedding/bias"], 1)


def at_boxes(tf: Any, image: Any, scale: Any, boxes: Any, constants: dict[str, Any]) -> tuple[Any, Any]:
    """Runs the network on a level of an image [H, W, 3].

    Returns:
      What `forward` pooled, [1, 576], and the learned descriptors [N, 128] at the centres of boxes [N, 4], in
      px of the image.
    """
    resized, zoom = resize(tf, image, scale)
    pooled, maps, _ = forward(tf, resized, convolution(tf, constants))
    return pooled, sample(
        tf, tf.math.l2_normalize(maps[0], 2)[None], ((boxes[:, :2] + boxes[:, 2:]) / 2 * zoom)[None]
    )[0]


def convolution(tf: Any, constants: dict[str, Any]) -> Callable[[Any, Layer], Any]:
    """What `forward` wants for a layer, with the normalisation in the constants."""
    return lambda x, layer: (
        tf.nn.conv2d(x, constants[layer.name], layer.stride, "SAME") + constants[f"{layer.name}/bias"]
    )


def sample(tf: Any, maps: Any, points: Any) -> Any:
    """Values of maps [B, h, w, D] of the network at points [B, N, 2] (y, x in px of the level), bilinear;
    float32 [B, N, D].
    """
    position = (points - (LOCAL_STRIDE - 0.5)) / LOCAL_STRIDE
    position = tf.clip_by_value(position, 0.0, tf.cast(tf.shape(maps)[1:3], tf.float32) - 1.001)
    low = tf.floor(position)
    down, right = tf.unstack((position - low)[..., None], axis=2)
    corner = tf.cast(low, tf.int32)

    def value(y: int, x: int) -> Any:
        return tf.gather_nd(maps, corner + [y, x], batch_dims=1)  # noqa: RUF005

    rows = [value(y, 0) * (1 - right) + value(y, 1) * right for y in (0, 1)]
    return rows[0] * (1 - down) + rows[1] * down


def project(tf: Any, rows: Any, constants: dict[str, np.ndarray], name: str) -> Any:
    """Whitens local descriptors [N, 128] and keeps their leading dimensions."""
    return tf.matmul(rows - constants[f"{name}/mean"], constants[f"{name}/projection"])


def shrink(tf: Any, rows: Any, constants: dict[str, Any], name: str) -> Any:
    """Whitens a part [B, D] of global descriptors, softly."""
    return frozen_graph.shrink_leading_axes(
        tf, rows, *(constants[f"{name}/{key}"] for key in ("mean", "axes", "loss"))
    )


def joined(tf: Any, first: Any, second: Any, share: float) -> Any:
    """Two parts of descriptors, row by row, as one of unit length; the first part has `share` of its
    square.
    """
    return tf.concat(
        [tf.math.l2_normalize(first, 1) * share**0.5, tf.math.l2_normalize(second, 1) * (1 - share) ** 0.5], 1
    )
