"""A ResNet-50 with DELG's heads and contract, seeded random weights: the cost of the real model where it
cannot be downloaded.

Cao et al., Unifying deep local and global features for image search (ECCV 2020). Backbone
keras.applications.ResNet50; local branch at conv4 (1,024 channels, stride 16) reduced to 128, attention of
512 hidden channels with softplus; global branch at conv5 by GeM (p = 3) and a whitening layer to 2,048.
Weights are random, and then the heads are fitted to seeded synthetic pictures, as training would, so that
features tell images apart: local features are whitened principal components, global ones have their mean
taken away, attention spreads with a standard deviation of 2 before the softplus. The attention threshold is
the median of those pictures' attention.

Beside the contract's signature there are "local" and "global": what pruning a TF1-style export to one of the
two would leave of it.
"""

import os
from typing import Any

import numpy as np

from transforms.models.card import ExtractionSettings, write_card
from transforms.processes.tensorflow_runtime import import_tensorflow

LOCAL_WIDTH, GLOBAL_WIDTH, ATTENTION_WIDTH, GEM_POWER = 128, 2048, 512, 3.0
STRIDE, BOX_SIDE = 16, 291  # of conv4's grid and of its receptive field, pixels

_INPUTS = {
    "input_image": ([None, None, 3], "uint8"),
    "input_scales": ([None], "float32"),
    "input_global_scales_ind": ([None], "int32"),
    "input_max_feature_num": ([], "int32"),
    "input_abs_thres": ([], "float32"),
}
_GLOBAL_INPUTS = ("input_image", "input_scales", "input_global_scales_ind")


def ensure(folder: str, max_image_side: int, image_scales: tuple[float, ...], seed: int = 0) -> str:
    """Builds the model into `folder/<name>` where it is not there yet, and returns that folder.

    Args:
      folder: where models are kept; made as needed.
      max_image_side: for the card, pixels.
      image_scales: for the card; all of them make the global descriptor.
      seed: of the weights.
    """
    scales = "-".join(f"{scale:g}" for scale in image_scales)
    target = os.path.join(folder, f"resnet50-delg-{max_image_side}-{scales}-{seed}")
    if not os.path.isfile(os.path.join(target, "landmarks_card.json")):  # written last
        threshold = _save(target, seed)
        settings = ExtractionSettings(image_scales, image_scales, 1000, threshold, max_image_side)
        write_card(target, settings, name="resnet50-delg-random")
    return target


def synthetic_picture(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with the amplitude spectrum of photographs, 1/f (Field 1987); uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency
    picture = np.fft.irfft2(spectrum, (height, width))
    picture /= picture.std(axis=(1, 2), keepdims=True)
    mixed = np.einsum(
        "chw,cd->hwd", picture, 0.8 * np.ones((3, 3)) / 3**0.5 + 0.4 * np.eye(3)
    )  # channels of photographs go together
    return np.clip(128 + 50 * mixed, 0, 255).astype(np.uint8)


def _save(target: str, seed: int) -> float:
    """Writes the SavedModel; returns the attention threshold."""
    tf = import_tensorflow()
    tf.keras.utils.set_random_seed(seed)
    layers = tf.keras.layers
    backbone = tf.keras.applications.ResNet50(include_top=False, weights=None, input_shape=(None, None, 3))
    conv4, conv5 = (backbone.get_layer(name).output for name in ("conv4_block6_out", "conv5_block3_out"))
    # Blocks add up, so an untrained residual branch doubles the variance at each of the 16: scale each down a
    # little.
    for layer in backbone.layers:
        if layer.name.endswith("_3_bn"):
            layer.gamma.assign(tf.fill(layer.gamma.shape, 0.5))
    hidden = layers.Conv2D(ATTENTION_WIDTH, 1, activation="relu", name="attention_1")(conv4)
    attention = layers.Conv2D(1, 1, name="attention_2")(hidden)
    local = layers.Conv2D(LOCAL_WIDTH, 1, name="reduction")(conv4)
    whitening = layers.Dense(GLOBAL_WIDTH, name="whitening")
    pooled = layers.Lambda(_gem)(conv5)
    network = tf.keras.Model(
        backbone.input, [local, layers.Activation("softplus")(attention), whitening(pooled)]
    )

    pictures = np.stack([synthetic_picture(320, 320, i) for i in range(8)]).astype(np.float32)
    observed = tf.keras.Model(backbone.input, [conv4, attention, whitening.output])((pictures - 128) / 128)
    dense, logits, rows = (out.numpy().reshape(-1, out.shape[-1]) for out in observed)
    components, mean = _whitened_components(dense)
    network.get_layer("reduction").set_weights([components[None, None], -mean @ components])
    kernel, bias = network.get_layer("attention_2").get_weights()
    gain = 2 / logits.std()
    network.get_layer("attention_2").set_weights([kernel * gain, (bias - logits.mean()) * gain])
    whitening.bias.assign(-rows.mean(0))
    threshold = float(np.log1p(np.exp(np.median(logits - logits.mean()) * gain)))

    module, signatures = tf.Module(), {}
    module.weights = network.variables
    for name, heads in (
        ("serving_default", ("local", "global")),
        ("local", ("local",)),
        ("global", ("global",)),
    ):
        parts = {"local": network.output[:2], "global": network.output[2:]}
        outputs = [tensor for head in heads for tensor in parts[head]]
        function = tf.function(
            _serve(tf, tf.keras.Model(network.input, outputs), "local" in heads, "global" in heads)
        )
        setattr(module, f"serve_{name}", function)
        specs = {
            key: tf.TensorSpec(shape, dtype, key)
            for key, (shape, dtype) in _INPUTS.items()
            if heads != ("global",) or key in _GLOBAL_INPUTS
        }
        signatures[name] = function.get_concrete_function(**specs)
    tf.saved_model.save(module, target, signatures=signatures)
    return threshold


def _whitened_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The LOCAL_WIDTH strongest principal components of rows [N, D], each over its deviation, [D,
    LOCAL_WIDTH]; and the mean [D].
    """
    mean = rows.mean(0)
    variances, axes = np.linalg.eigh(np.cov((rows - mean).T.astype(np.float64)))
    strongest = slice(-LOCAL_WIDTH, None)
    return (axes[:, strongest] / np.sqrt(variances[strongest])).astype(np.float32), mean


def _gem(features: Any) -> Any:
    """Generalised mean over the grid, [B, H, W, D] to [B, D] (Radenovic et al. 2018)."""
    tf = import_tensorflow()
    return tf.reduce_mean(tf.maximum(features, 1e-6) ** GEM_POWER, [1, 2]) ** (1 / GEM_POWER)


def _serve(tf: Any, network: Any, has_local: bool, has_global: bool) -> Any:
    """The contract's function over a network of one scale, which gives [local, attention] and [global row],
    or one of the two.
    """

    def one_scale(image: Any, scale: Any, threshold: Any) -> list[Any]:
        size = tf.cast(tf.round(tf.cast(tf.shape(image)[:2], tf.float32) * scale), tf.int32)
        given = network(tf.image.resize((tf.cast(image, tf.float32) - 128) / 128, size)[None], training=False)
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        found = []
        if has_local:
            local, attention = given[:2]
            scores = tf.reshape(attention, [-1])
            cells = tf.cast(tf.where(scores >= threshold)[:, 0], tf.int32)
            columns = tf.shape(attention)[2]
            centres = tf.cast(tf.stack([cells // columns, cells % columns], 1), tf.float32) * STRIDE
            boxes = tf.concat([centres - BOX_SIDE / 2, centres + BOX_SIDE / 2], 1) / scale
            features = tf.gather(tf.reshape(local, [-1, LOCAL_WIDTH]), cells)
            found += [boxes, features, tf.fill(tf.shape(cells), 1 / scale), tf.gather(scores, cells)]
        return found + (given[-1:] if has_global else [])

    def serve(
        input_image,
        input_scales,
        input_global_scales_ind=None,
        input_max_feature_num=None,
        input_abs_thres=None,
    ):
        widths = ([4, LOCAL_WIDTH, None, None] if has_local else []) + ([GLOBAL_WIDTH] if has_global else [])
        shapes = [[None, width] if width else [None] for width in widths]

        def body(index, *so_far):
            new = one_scale(input_image, input_scales[index], input_abs_thres)
            return (index + 1, *(tf.concat(pair, 0) for pair in zip(so_far, new)))

        start = (tf.constant(0), *(tf.zeros([0, *shape[1:]]) for shape in shapes))
        invariants = (tf.TensorShape([]), *(tf.TensorShape(shape) for shape in shapes))
        # As DELG's own export: one scale at a time.
        _, *found = tf.while_loop(
            lambda index, *_: index < tf.size(input_scales), body, start, invariants, parallel_iterations=1
        )
        outputs = (
            {"global_descriptors": tf.gather(found.pop(), input_global_scales_ind)} if has_global else {}
        )
        if has_local:
            scores, best = tf.math.top_k(found[3], tf.minimum(input_max_feature_num, tf.size(found[3])))
            outputs.update(
                zip(("boxes", "features", "scales"), (tf.gather(values, best) for values in found)),
                scores=scores[:, None],
            )
        return outputs

    return serve
