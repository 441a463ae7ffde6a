"""SavedModels of the built-in models: a TF1-style graph with the local-and-global contract, its weights as
constants.

The contract is that of DELG (tensorflow/models, research/delf), so that everything downstream treats them
like a real export.
"""

import threading
from collections.abc import Callable
from typing import Any

from transforms.tensorflow_runtime import import_tensorflow

_control_flow_lock = threading.Lock()  # the version of control flow is a setting of the whole process

# One level of the pyramid: of (its scale float32 [], max_features int32 [], threshold float32 []) it makes
# boxes [N, 4], features [N, L], scores [N], strongest first, N at most max_features, and a function that
# makes the level's global descriptor [1, G], run only for the scales that it is asked of.
Level = Callable[[Any, Any, Any], tuple[Any, Any, Any, Callable[[], Any]]]


def saved_model_bytes(
    prepare: Callable[[Any, Any], Level], local_dimensions: int, global_dimensions: int
) -> bytes:
    """Returns a serialised SavedModel without a variables folder, the same bytes every time.

    Args:
      prepare: of the module tensorflow and the image, float32 [H, W, 3], it makes what builds the graph of
        one level; what it builds itself is run once for all levels.
      local_dimensions, global_dimensions: L and G.
    """
    tf = import_tensorflow()
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

    tf1 = tf.compat.v1
    # Loops of control flow v2 are functions named by a counter of the process: the bytes would differ.
    with _control_flow_lock:
        was_v2 = tf1.control_flow_v2_enabled()
        tf1.disable_control_flow_v2()
        try:
            with tf.Graph().as_default() as graph:
                inputs, outputs = _contract(tf, prepare, local_dimensions, global_dimensions)
        finally:
            if was_v2:
                tf1.enable_control_flow_v2()
    signature = meta_graph_pb2.SignatureDef(method_name=tf.saved_model.PREDICT_METHOD_NAME)
    for tensors, infos in ((inputs, signature.inputs), (outputs, signature.outputs)):
        for name, tensor in tensors.items():
            infos[name].name = tensor.name
            infos[name].dtype = tensor.dtype.as_datatype_enum
            infos[name].tensor_shape.CopyFrom(tensor.shape.as_proto())
    saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = saved_model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append(tf.saved_model.SERVING)
    meta_graph.graph_def.CopyFrom(graph.as_graph_def())
    meta_graph.signature_def[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY].CopyFrom(signature)
    return saved_model.SerializeToString(deterministic=True)


def _contract(
    tf: Any, prepare: Callable[[Any, Any], Level], local_dimensions: int, global_dimensions: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds the whole graph; returns its inputs and outputs by the names of the contract."""
    placeholder = tf.compat.v1.placeholder
    image = placeholder(tf.uint8, [None, None, 3], "input_image")
    scales = placeholder(tf.float32, [None], "input_scales")
    max_features = placeholder(tf.int32, [], "input_max_feature_num")
    threshold = placeholder(tf.float32, [], "input_abs_thres")
    global_scales = placeholder(tf.int32, [None], "input_global_scales_ind")
    inputs = {t.op.name: t for t in (image, scales, max_features, threshold, global_scales)}
    level = prepare(tf, tf.cast(image, tf.float32))

    def one_scale(index: Any, *found: Any) -> tuple[Any, ...]:
        boxes, features, scores, describe = level(scales[index], max_features, threshold)
        descriptor = tf.cond(
            tf.reduce_any(tf.equal(global_scales, index)), describe, lambda: tf.zeros([1, global_dimensions])
        )
        scale = tf.fill(tf.shape(scores), 1.0 / scales[index])
        new = (boxes, features, scale, scores[:, None], descriptor)
        return (index + 1, *(tf.concat(pair, 0) for pair in zip(found, new)))

    shapes: list[list[Any]] = [
        [None, 4],
        [None, local_dimensions],
        [None],
        [None, 1],
        [None, global_dimensions],
    ]
    start = [tf.constant(0)] + [tf.zeros([0, *shape[1:]]) for shape in shapes]
    invariants = [tf.TensorShape([])] + [tf.TensorShape(shape) for shape in shapes]
    _, *pooled, descriptors = tf.compat.v1.while_loop(
        lambda index, *_: index < tf.size(scales),
        one_scale,
        start,
        shape_invariants=invariants,
        name="pyramid",
    )

    scores = pooled[3][:, 0]
    best = tf.math.top_k(scores, tf.minimum(max_features, tf.size(scores))).indices
    outputs = dict(
        zip(("boxes", "features", "scales", "scores"), (tf.gather(values, best) for values in pooled))
    )
    outputs["global_descriptors"] = tf.gather(descriptors, tf.sort(global_scales))
    return inputs, {name: tf.identity(value, name) for name, value in outputs.items()}


def strongest_peaks(tf: Any, attention: Any, max_features: Any, threshold: Any) -> tuple[Any, Any]:
    """Returns (row, col) int32 [N, 2] and scores [N] of the strongest local maxima of an attention map above
    the threshold.

    Args:
      tf: the module tensorflow.
      attention: float32 [R, C].
      max_features: int32 [], N at most.
      threshold: float32 [], least attention; what is not above 0 is left out too.
    """
    peak = tf.nn.max_pool2d(attention[None, :, :, None], 3, 1, "SAME")[0, :, :, 0]
    kept = tf.reshape(tf.where(attention >= peak, attention, tf.zeros_like(attention)), [-1])
    scores, index = tf.math.top_k(kept, tf.minimum(max_features, tf.size(kept)))
    good = (scores >= threshold) & (scores > 0)
    index = tf.boolean_mask(index, good)
    columns = tf.shape(attention)[1]
    return tf.stack([index // columns, index % columns], 1), tf.boolean_mask(scores, good)


def shrink_leading_axes(tf: Any, rows: Any, mean: Any, axes: Any, loss: Any) -> Any:
    """Centres rows [N, D] and takes the share `loss` [A] of what they have along each of the axes [A, D],
    unit length (soft whitening).
    """
    centred = rows - mean
    along = tf.matmul(centred, axes, transpose_b=True)
    return centred - tf.matmul(along * loss, axes)
