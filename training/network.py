"""The network in training: convolutions with batch normalisation in bfloat16, weights and sums in float32.

Its shape is that of the product's transforms.models.small_delg, which runs it with the normalisation folded
into the convolutions.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from transforms.models import small_delg

ATTENTION = small_delg.Layer(
    "local/attention", 1, small_delg.LOCAL_DIMENSIONS, 1, normalised=False, relu=False
)  # in training alone
BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.97


class Network:
    """The variables of the network, by name.

    Attributes:
      weights: trained. "<layer>" kernels float32 [k, k, in, out], "<layer>/scale" and "<layer>/offset" of
        normalised layers, "<layer>/bias" of others.
      moments: "<layer>/mean" and "<layer>/variance", running.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.weights: dict[str, tf.Variable] = {}
        self.moments: dict[str, tf.Variable] = {}
        for layer in (*small_delg.layers(), ATTENTION):
            deviation = np.sqrt((2.0 if layer.relu else 1.0) / (layer.size**2 * layer.inputs))
            kernel = rng.standard_normal((layer.size, layer.size, layer.inputs, layer.outputs)) * deviation
            self.weights[layer.name] = tf.Variable(kernel.astype(np.float32))
            if layer.normalised:
                # A residual branch starts at nothing, so that a block starts as the identity.
                scale = np.full(layer.outputs, 0.2 if layer.residual else 1.0, np.float32)
                self.weights[f"{layer.name}/scale"] = tf.Variable(scale)
                self.weights[f"{layer.name}/offset"] = tf.Variable(np.zeros(layer.outputs, np.float32))
                self.moments[f"{layer.name}/mean"] = tf.Variable(np.zeros(layer.outputs, np.float32))
                self.moments[f"{layer.name}/variance"] = tf.Variable(np.ones(layer.outputs, np.float32))
            else:
                self.weights[f"{layer.name}/bias"] = tf.Variable(np.zeros(layer.outputs, np.float32))

    def convolution(self, updates: list[tuple[tf.Variable, Any]]):
        """The function that small_delg.forward calls for a layer, in training; it appends to `updates` the
        new running moments.
        """

        def convolve(x: Any, layer: small_delg.Layer) -> Any:
            y = tf.nn.conv2d(x, tf.cast(self.weights[layer.name], x.dtype), layer.stride, "SAME")
            if not layer.normalised:
                return y + tf.cast(self.weights[f"{layer.name}/bias"], x.dtype)
            y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=y,
                scale=self.weights[f"{layer.name}/scale"],
                offset=self.weights[f"{layer.name}/offset"],
                mean=tf.constant([], tf.float32),
                variance=tf.constant([], tf.float32),
                epsilon=BATCH_NORM_EPSILON,
                is_training=True,
            )
            updates.append((self.moments[f"{layer.name}/mean"], mean))
            updates.append((self.moments[f"{layer.name}/variance"], variance))
            return y

        return convolve


def folded(weights: dict[str, np.ndarray], moments: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Folds normalisation into kernels and biases: what small_delg runs, "<layer>" and "<layer>/bias" for
    every layer.
    """
    plain = {}
    for layer in small_delg.layers():
        kernel = weights[layer.name]
        if layer.normalised:
            factor = weights[f"{layer.name}/scale"] / np.sqrt(
                moments[f"{layer.name}/variance"] + BATCH_NORM_EPSILON
            )
            plain[layer.name] = kernel * factor
            plain[f"{layer.name}/bias"] = (
                weights[f"{layer.name}/offset"] - moments[f"{layer.name}/mean"] * factor
            )
        else:
            plain[layer.name], plain[f"{layer.name}/bias"] = kernel, weights[f"{layer.name}/bias"]
    return plain
