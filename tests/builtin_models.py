"""Calls the built-in models by the names of their contract."""

import numpy as np

from transforms.tensorflow_runtime import import_tensorflow

INPUTS = (
    "input_image",
    "input_scales",
    "input_max_feature_num",
    "input_abs_thres",
    "input_global_scales_ind",
)
OUTPUTS = ("boxes", "features", "scales", "scores", "global_descriptors")


def caller(model, settings):
    """A function from an image to the outputs of a loaded model by name."""
    tf = import_tensorflow()

    pruned = model.prune([f"{name}:0" for name in INPUTS], [f"{name}:0" for name in OUTPUTS])

    def call(
        image,
        scales=settings.image_scales,
        max_features=1000,
        threshold=settings.score_threshold,
        global_scales=None,
    ):
        chosen = range(len(scales)) if global_scales is None else global_scales
        outputs = pruned(
            tf.constant(image),
            tf.constant(scales, tf.float32),
            tf.constant(max_features),
            tf.constant(threshold, tf.float32),
            tf.constant(list(chosen), tf.int32),
        )
        return {name: value.numpy() for name, value in zip(OUTPUTS, outputs)}

    return call


def textured(height, width, seed=0):
    """An image uint8 [height, width, 3] of random patches, with corners at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for size in (4, 16):
        coarse = rng.integers(0, 128, (-(-height // size), -(-width // size), 3))
        image += np.kron(coarse, np.ones((size, size, 1)))[:height, :width]
    return image.astype(np.uint8)
