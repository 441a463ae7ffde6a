"""Tiny SavedModels of every contract that a loader meets, with random seeded weights, built in a second or
two.

They behave like the real ones: boxes centre on a grid in pixels of the image fed, features are not
normalised, scores are sorted and respect the threshold, N can be 0, global rows follow the order of the
scales. Attention is ten times the standard deviation of the grey values in a 32 px patch, so that the
official threshold of 175 keeps textured patches and drops flat ones. A feature is a random projection of its
patch without the mean: equal patches match, and brightness does not matter.
"""

import pathlib

import numpy as np

from transforms.processes.tensorflow_runtime import import_tensorflow

KINDS = ("delg_tf1", "kaggle_tf1", "delg_tf2", "local_only", "global_only")
RETRIEVAL_KINDS = ("delg_tf1", "kaggle_tf1", "delg_tf2", "global_only")
FAULTS = (
    *("nan", "nan_on_white", "raises_when_tiny", "unstable_width", "five_corners", "foreign"),
    *("boxes_from_0_to_1", "boxes_x_first"),
)

GLOBAL_WIDTH = 2048
STRIDE = 8  # pixels between keypoints at scale 1
PATCH = 32  # side of a box at scale 1, in pixels


def build(kind: str, directory: str | pathlib.Path) -> None:
    """Writes the SavedModel of one of KINDS or FAULTS to `directory`, which is made."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if kind in ("delg_tf1", "kaggle_tf1"):
        _save_tf1(directory, has_indices=kind == "delg_tf1")
    elif kind == "local_only":
        _save_tf1(directory, has_indices=False, has_global=False)
    elif kind == "delg_tf2":
        _save_tf2(directory)
    elif kind == "global_only":
        _save_tf2(directory, has_local=False)
    elif kind in FAULTS:
        _save_tf2(directory, fault=kind)
    else:
        raise ValueError(f"unknown kind {kind!r}; known: {KINDS + FAULTS}")


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random picture with blocks and fine grain, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 11 + 1, width // 11 + 1, 3))
    picture = np.kron(blocks, np.ones((11, 11, 1)))[:height, :width]
    return np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


def _initial_weights(local_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernels float32 [8, 8, 3, local_width] of zero mean, and the global projection float32 [local_width,
    2048].
    """
    rng = np.random.default_rng(7)
    kernels = rng.normal(size=(8, 8, 3, local_width))
    kernels -= kernels.mean(axis=(0, 1), keepdims=True)
    projection = rng.normal(size=(local_width, GLOBAL_WIDTH)) / np.sqrt(GLOBAL_WIDTH)
    return (kernels / 8).astype(np.float32), projection.astype(np.float32)


def _single_scale(image, scale, kernels, projection):
    """Boxes, features, scores and the global row of one scale, in pixels of the unscaled image."""
    tf = import_tensorflow()

    size = tf.cast(tf.round(tf.cast(tf.shape(image)[:2], tf.float32) * scale), tf.int32)
    resized = tf.image.resize((tf.cast(image, tf.float32) - 128) / 128, size)[tf.newaxis]
    quarter = tf.nn.avg_pool2d(resized, 4, 4, "SAME")
    features = tf.nn.conv2d(quarter, kernels, 2, "SAME")[0]
    grey = tf.reduce_mean(quarter, -1, keepdims=True) * 128
    mean = tf.nn.avg_pool2d(grey, 8, 2, "SAME")[0, ..., 0]
    square = tf.nn.avg_pool2d(grey**2, 8, 2, "SAME")[0, ..., 0]
    scores = 10 * tf.sqrt(tf.nn.relu(square - mean**2))

    rows, columns = tf.meshgrid(tf.range(tf.shape(scores)[0]), tf.range(tf.shape(scores)[1]), indexing="ij")
    centres = tf.cast(tf.reshape(tf.stack([rows, columns], -1), [-1, 2]), tf.float32) * STRIDE + STRIDE / 2
    boxes = tf.concat([centres - PATCH / 2, centres + PATCH / 2], 1) / scale

    width = kernels.shape[-1]
    flat = tf.reshape(features, [-1, width])
    pooled = tf.reduce_mean(tf.nn.relu(tf.math.l2_normalize(flat, 1)), 0) - 0.4 / width**0.5
    return boxes, flat, tf.reshape(scores, [-1]), tf.linalg.matvec(projection, pooled, transpose_a=True)


def _network(image, image_scales, max_features, threshold, kernels, projection):
    """All outputs over all scales, by name; `global_descriptors` has a row for every scale."""
    tf = import_tensorflow()

    width = kernels.shape[-1]
    empty = [
        tf.zeros([0, 4]),
        tf.zeros([0, width]),
        tf.zeros([0]),
        tf.zeros([0]),
        tf.zeros([0, GLOBAL_WIDTH]),
    ]

    def body(index, *so_far):
        scale = image_scales[index]
        boxes, features, scores, row = _single_scale(image, scale, kernels, projection)
        kept = tf.reshape(tf.where(scores >= threshold), [-1])
        new = [tf.gather(part, kept) for part in (boxes, features, scores)]
        new += [tf.fill(tf.shape(kept), 1 / scale), row[tf.newaxis]]
        return [index + 1] + [tf.concat([old, part], 0) for old, part in zip(so_far, new)]

    _, boxes, features, scores, scales, rows = tf.while_loop(
        lambda index, *_: index < tf.size(image_scales),
        body,
        [tf.constant(0), *empty],
        shape_invariants=[tf.TensorShape([])] + [tf.TensorShape([None, *part.shape[1:]]) for part in empty],
    )
    scores, best = tf.math.top_k(scores, tf.minimum(max_features, tf.size(scores)))
    return {
        "boxes": tf.gather(boxes, best),
        "features": tf.gather(features, best),
        "scales": tf.gather(scales, best),
        "scores": scores[:, tf.newaxis],
        "global_descriptors": rows,
    }


def _save_tf1(directory: pathlib.Path, has_indices: bool, has_global: bool = True) -> None:
    """A TF1-style export: a graph with placeholders and named tensors, so that the loaded object has
    `prune`.
    """
    tf = import_tensorflow()

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = {
            "input_image": v1.placeholder(tf.uint8, [None, None, 3], "input_image"),
            "input_scales": v1.placeholder(tf.float32, [None], "input_scales"),
            "input_max_feature_num": v1.placeholder(tf.int32, [], "input_max_feature_num"),
            "input_abs_thres": v1.placeholder(tf.float32, [], "input_abs_thres"),
        }
        kernels, projection = (
            v1.get_variable(name, initializer=value)
            for name, value in zip(("kernels", "projection"), _initial_weights(128))
        )
        outputs = _network(*inputs.values(), kernels, projection)
        if has_indices:
            inputs["input_global_scales_ind"] = v1.placeholder(tf.int32, [None], "input_global_scales_ind")
            outputs["global_descriptors"] = tf.gather(
                outputs["global_descriptors"], inputs["input_global_scales_ind"]
            )
        if not has_global:
            del outputs["global_descriptors"]
        for name, tensor in outputs.items():
            tf.identity(tensor, name)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING])
        builder.save()


def _save_tf2(directory: pathlib.Path, has_local: bool = True, fault: str | None = None) -> None:
    """A TF2 export: a signature with keyword inputs and no `prune`."""
    tf = import_tensorflow()

    specs = {
        "input_image": tf.TensorSpec([None, None, 3], tf.uint8, "input_image"),
        "input_scales": tf.TensorSpec([None], tf.float32, "input_scales"),
        "input_global_scales_ind": tf.TensorSpec([None], tf.int32, "input_global_scales_ind"),
    }
    if has_local:
        specs["input_max_feature_num"] = tf.TensorSpec([], tf.int32, "input_max_feature_num")
        specs["input_abs_thres"] = tf.TensorSpec([], tf.float32, "input_abs_thres")
    if fault == "foreign":
        specs = {"x": specs["input_image"]}

    class Export(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernels, self.projection = (tf.Variable(value) for value in _initial_weights(128))

        def serve(self, **inputs):
            if fault == "foreign":
                return {"y": tf.reduce_mean(tf.cast(inputs["x"], tf.float32), [0, 1])}
            image, local = inputs["input_image"], has_local
            outputs = _network(
                image,
                inputs["input_scales"],
                inputs["input_max_feature_num"] if local else 1,
                inputs["input_abs_thres"] if local else 0.0,
                self.kernels,
                self.projection,
            )
            rows = tf.gather(outputs["global_descriptors"], inputs["input_global_scales_ind"])
            if not local:
                return {"global_descriptors": rows}
            return _spoil({**outputs, "global_descriptors": rows}, image, fault)

    module = Export()
    module.serve = tf.function(module.serve)
    tf.saved_model.save(
        module,
        str(directory),
        signatures=module.serve.get_concrete_function(
            **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}
        ),
    )


def _spoil(outputs: dict, image, fault: str | None) -> dict:
    """The outputs with one of FAULTS in them."""
    tf = import_tensorflow()

    rows = outputs["global_descriptors"]
    if fault == "nan":
        rows = rows * float("nan")
    elif fault == "nan_on_white":
        rows = tf.where(tf.reduce_all(image == 255), rows * float("nan"), rows)
    elif fault == "raises_when_tiny":
        with tf.control_dependencies(
            [tf.debugging.assert_greater_equal(tf.reduce_min(tf.shape(image)[:2]), 32)]
        ):
            rows = tf.identity(rows)
    elif fault == "unstable_width":
        rows = rows[:, : tf.where(tf.shape(image)[0] > 200, GLOBAL_WIDTH // 2, GLOBAL_WIDTH)]
    elif fault == "five_corners":
        outputs = {**outputs, "boxes": tf.pad(outputs["boxes"], [[0, 0], [0, 1]])}
    elif fault == "boxes_from_0_to_1":
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        outputs = {**outputs, "boxes": outputs["boxes"] / tf.concat([sides, sides], 0)}
    elif fault == "boxes_x_first":
        outputs = {**outputs, "boxes": tf.gather(outputs["boxes"], [1, 0, 3, 2], axis=1)}
    return {**outputs, "global_descriptors": rows}
