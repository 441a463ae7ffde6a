"""Tiny ONNX models of the shapes that users' exports have, with random seeded weights.

A convolution of 8 px steps makes a map of WIDTH channels; what comes out is that map, its mean, tokens, or
its cells as local features, whose keypoints are the cells' middles in pixels of the image fed.
"""

import dataclasses
import pathlib
import re

import numpy as np
import onnx
from onnx import numpy_helper, parser

from transforms.models import catalog
from transforms.models.model import Model

WIDTH = 16
STRIDE = 8
KINDS = ("map", "pooled", "tokens", "local", "local_columns", "both", "two_globals")

_HEADS = {
    "map": ("{f}[B,C,h,w] features", "features = Relu (map)"),
    "pooled": ("{f}[B,16] embedding", "embedding = GlobalAveragePool (map)"),
    "tokens": (
        "{f}[B,T,16] last_hidden_state",
        "first_token = ReduceMean <keepdims = 1> (rows, middle) "
        "last_hidden_state = Concat <axis = 1> (first_token, rows)",
    ),
    "local": (
        "int64[N,2] keypoints, {f}[N,16] descriptors, {f}[N] scores",
        "descriptors = Squeeze (rows, first)",
    ),
    "local_columns": (
        "int64[1,N,2] keypoints, {f}[1,16,N] descriptors, {f}[1,N] scores",
        "descriptors = Transpose <perm = [0, 2, 1]> (rows)",
    ),
    "both": (
        "int64[N,2] keypoints, {f}[N,16] descriptors, {f}[N] scores, {f}[B,16] global_descriptor",
        "descriptors = Squeeze (rows, first) global_descriptor = GlobalAveragePool (map)",
    ),
    "two_globals": ("{f}[B,16] a, {f}[B,C,h,w] b", "b = Relu (map) a = GlobalAveragePool (map)"),
}
_CELLS = """
    dims = Shape (map) two = Slice (dims, spatial_start, spatial_end) count = ReduceProd <keepdims = 0> (two)
    one_side = Slice (dims, last_start, last_end) across = Squeeze (one_side)
    cells = Range (zero, count, one)
    y = Div (cells, across) x = Mod (cells, across)
    y1 = Unsqueeze (y, last) x1 = Unsqueeze (x, last) whole = Concat <axis = 1> (x1, y1)
    xy = Cast <to = {number}> (whole) scaled = Mul (xy, stride) {keypoints}
    powers = Mul (rows, rows) strong = ReduceSum <keepdims = 0> (powers, last) {scores}
"""


def build(
    path: str | pathlib.Path,
    kind: str,
    float_type: str = "float",
    image: str = "[B,3,H,W]",
    scale: float = 1.0,
    external: bool = False,
    step: float = STRIDE,
    map_axes: tuple[int, ...] = (0, 1, 2, 3),
) -> None:
    """Writes one of KINDS to `path`.

    Args:
      float_type: "float" or "float16" of the graph; "uint8" for pixels in and float inside.
      image: shape of the input "image"; NHWC where its last axis is 3.
      scale: of the map, to make it overflow.
      external: put the weights in a file beside it.
      step: of keypoints from cell to cell; STRIDE for px of the image fed, floats for another one.
      map_axes: order of the axes of what "map" gives.
    """
    inner = "float" if float_type == "uint8" else float_type
    outputs, head = _HEADS[kind]
    head = head.replace("Relu (map)", f"Transpose <perm = {list(map_axes)}> (map)")
    if step != STRIDE:
        outputs = outputs.replace("int64", "float")
    body = "pixels = Cast <to = 1> (image)" if float_type == "uint8" else "pixels = Identity (image)"
    body += " planes = " + (
        "Transpose <perm = [0, 3, 1, 2]> (pixels)" if image.endswith(",3]") else "Identity (pixels)"
    )
    body += f" plain = Conv <strides = [{STRIDE}, {STRIDE}]> (planes, kernels) map = Mul (plain, factor)"
    body += " flat = Reshape (map, folded) rows = Transpose <perm = [0, 2, 1]> (flat)"
    if "keypoints" in outputs:
        batch = kind == "local_columns"
        body += _CELLS.format(
            number=7 if step == STRIDE else 1,
            keypoints="keypoints = Unsqueeze (scaled, first)" if batch else "keypoints = Identity (scaled)",
            scores="scores = Identity (strong)" if batch else "scores = Squeeze (strong, first)",
        )
    head = re.sub(
        r"(\w+) = GlobalAveragePool \(map\)", r"\1_ = GlobalAveragePool (map) \1 = Flatten (\1_)", head
    )
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> tiny ({float_type}{image} image) => '
        f"({outputs.format(f=inner)}) {{ {body} {head} }}"
    )
    kind_of_float = np.float16 if inner == "float16" else np.float32
    rng = np.random.default_rng(7)
    weights = {
        "kernels": (rng.normal(size=(WIDTH, 3, STRIDE, STRIDE)) / 8).astype(kind_of_float),
        "factor": np.array(scale, kind_of_float),
        "folded": np.array([0, WIDTH, -1]),
        "first": np.array([0]),
        "middle": np.array([1]),
        "last": np.array([-1]),
        "spatial_start": np.array([2]),
        "spatial_end": np.array([4]),
        "last_start": np.array([3]),
        "last_end": np.array([4]),
        "zero": np.array(0),
        "one": np.array(1),
        "stride": np.array(STRIDE) if step == STRIDE else np.array(step, np.float32),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in weights.items() if name in used
    )
    onnx.checker.check_model(model)
    options = dict(save_as_external_data=True, location="weights.bin", size_threshold=256) if external else {}
    onnx.save(model, str(path), **options)


def kernels() -> np.ndarray:
    """The convolution's kernels, float32 [WIDTH, 3, STRIDE, STRIDE]."""
    return (np.random.default_rng(7).normal(size=(WIDTH, 3, STRIDE, STRIDE)) / 8).astype(np.float32)


def load(model: str, **changes) -> Model:
    """A model with other settings than its own."""
    return catalog.load(model, dataclasses.replace(catalog.settings(model), **changes))
