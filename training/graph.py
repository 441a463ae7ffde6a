"""The network as an ONNX graph, in float32 and in 8 bits."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.network import GEM_POWER, STAGES
from transforms.arrays.whitening import Whitening
from transforms.models.embedded import STRIDES

OPSET = 17
LOCAL_BLOCKS = (4, 10)  # whose maps local descriptors are read from, at STRIDES
LOCAL_WEIGHTS = (0.6, 1.0)  # of the two maps in a local descriptor


class Builder:
    """Collects nodes and constants of a graph."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.nodes, self.constants = arrays, [], {}

    def add(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        """Adds a node and returns the name of what it gives."""
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant and returns its name."""
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def unit(self, x: str) -> str:
        """Rows of unit length."""
        return self.add("LpNormalization", [x], f"{x}/unit", p=2, axis=1)

    def whiten(self, x: str, whitening: Whitening | None, name: str) -> str:
        """Rows whitened and of unit length, as the output `name`; as they are where there is no whitening."""
        if whitening is None:
            return self.add("Identity", [x], name)
        x = self.add("Sub", [x, self.constant(f"{name}/mean", whitening.mean)], f"{name}/centred")
        x = self.add(
            "MatMul", [x, self.constant(f"{name}/projection", whitening.projection)], f"{name}/projected"
        )
        return self.add("LpNormalization", [x], name, p=2, axis=1)

    def convolution(self, x: str, name: str, stride: int = 1, groups: int = 1, relu: bool = True) -> str:
        """A convolution of `folded` weights; TensorFlow's SAME padding for even sides."""
        kernel = self.arrays[name]
        total = kernel.shape[2] - stride
        before, behind = total // 2, total - total // 2
        inputs = [x, self.constant(name, kernel), self.constant(f"{name}/bias", self.arrays[f"{name}/bias"])]
        pads, strides = [before, before, behind, behind], [stride, stride]
        y = self.add("Conv", inputs, f"{name}/out", group=groups, pads=pads, strides=strides)
        return self.add("Clip", [y, "zero", "six"], f"{name}/relu6") if relu else y


def build(
    arrays: dict[str, np.ndarray], whitening: Whitening | None = None, local: Whitening | None = None
) -> onnx.ModelProto:
    """The graph of folded weights; without whitenings it gives the rows that they are learned on.

    Inputs: "image", uint8 [1, H, W, 3], RGB, sides multiples of 32; "grid8" and "grid16", float32
      [1, N, 1, 2], the same N points for the maps at strides 8 and 16, see ONNX's GridSample.
    Outputs: "global", float32 [1, D], and "local", float32 [N, D'], whitened, rows of unit length.
    """
    b = Builder(arrays)
    for name, value in (("zero", 0.0), ("six", 6.0)):
        b.constant(name, np.array(value, np.float32))
    x = b.add("Transpose", ["image"], "planes", perm=[0, 3, 1, 2])
    # (image - 127) / 128, so that in 8 bits the pixels are the network's input as they are.
    b.constant("image/scale", np.array(1 / 128, np.float32))
    b.constant("image/zero", np.array(127, np.uint8))
    x = b.add("DequantizeLinear", [x, "image/scale", "image/zero"], "normalised")
    x = b.convolution(x, "stem", 2)
    number, maps = 0, []
    for expansion, _, stride, _, count in STAGES:
        for first in [True] + [False] * (count - 1):
            block, start = f"blocks.{number}", x
            if expansion > 1:
                x = b.convolution(x, f"{block}.expand")
            groups = arrays[f"{block}.depthwise"].shape[0]
            x = b.convolution(x, f"{block}.depthwise", stride if first else 1, groups)
            x = b.convolution(x, f"{block}.project", relu=False)
            if not first:
                x = b.add("Add", [start, x], f"{block}/sum")
            if number in LOCAL_BLOCKS:
                maps.append(x)
            number += 1
    x = b.convolution(x, "head")
    x = b.add("Pow", [x, b.constant("gem", np.array(GEM_POWER, np.float32))], "powers")
    x = b.add("GlobalAveragePool", [x], "means")
    x = b.add("Flatten", [x], "flat")
    x = b.add("Pow", [x, b.constant("root", np.array(1 / GEM_POWER, np.float32))], "pooled")
    b.whiten(b.unit(x), whitening, "global")
    parts = []
    for found, stride, weight in zip(maps, STRIDES, LOCAL_WEIGHTS):
        x = b.add("GridSample", [found, f"grid{stride}"], f"sampled{stride}", padding_mode="border")
        x = b.add("Squeeze", [x, b.constant(f"axes{stride}", np.array([0, 3]))], f"columns{stride}")
        x = b.unit(b.add("Transpose", [x], f"rows{stride}", perm=[1, 0]))
        parts.append(
            b.add("Mul", [x, b.constant(f"weight{stride}", np.array(weight, np.float32))], f"part{stride}")
        )
    b.whiten(b.add("Concat", parts, "parts", axis=1), local, "local")
    values = helper.make_tensor_value_info
    inputs = [values("image", TensorProto.UINT8, [1, "H", "W", 3])]
    inputs += [values(f"grid{stride}", TensorProto.FLOAT, [1, "N", 1, 2]) for stride in STRIDES]
    outputs = [
        values("global", TensorProto.FLOAT, [1, whitening.projection.shape[1] if whitening else "D"]),
        values("local", TensorProto.FLOAT, ["N", local.projection.shape[1] if local else "L"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in b.constants.items()]
    graph = helper.make_graph(b.nodes, "landmarks", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model
