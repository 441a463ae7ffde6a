"""Weights in 8 bits that keep what a convolution gives, not each weight as near as can be."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from transforms.processes.onnx_runtime import one_thread_session

LARGEST = 64  # 7 bits, as ONNX Runtime's reduce_range has it
POSITIONS = 400  # of a map that inputs are taken at, a photograph
DAMPING = 0.01  # of the mean variance, on each, as GPTQ has it


class _Inputs:
    """Mean and covariance of what a convolution sees: of G groups the K numbers under its kernel."""

    def __init__(self, node: onnx.NodeProto, kernel: np.ndarray):
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._before, _, self._behind, _ = given["pads"]
        self._stride, self._side = given["strides"][0], kernel.shape[2]
        self.groups = given["group"]
        self._count, self._sum, self._products = 0, 0.0, 0.0

    def add(self, seen: np.ndarray, rng: np.random.Generator) -> None:
        """Takes positions of a map, float32 [1, C, H, W], into account."""
        pads = (self._before, self._behind)
        padded = np.pad(seen[0].astype(np.float64), ((0, 0), pads, pads))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (self._side, self._side), axis=(1, 2))
        windows = windows[:, :: self._stride, :: self._stride]
        rows, columns = np.divmod(
            rng.permutation(windows.shape[1] * windows.shape[2])[:POSITIONS], windows.shape[2]
        )
        taken = windows[:, rows, columns].swapaxes(0, 1)  # [P, C, side, side]
        taken = taken.reshape(len(taken), self.groups, -1).swapaxes(0, 1)
        self._count += taken.shape[1]
        self._sum = self._sum + taken.sum(1)
        self._products = self._products + taken.swapaxes(1, 2) @ taken

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [G, K] and [G, K, K]."""
        mean = self._sum / self._count
        return mean, self._products / self._count - mean[:, :, None] * mean[:, None, :]


def rounded(weights: np.ndarray, scales: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Codes of weights, each chosen so that it makes up for what the roundings before it have done to the sum
    (GPTQ, Frantar et al. 2023, algorithm 1).

    Args:
      weights: float64 [G, R, K], rows that see the same inputs.
      scales: float64 [G, R], what a code of 1 stands for.
      covariance: float64 [G, K, K], of the inputs.

    Returns:
      float64 [G, R, K], whole numbers of -LARGEST to LARGEST.
    """
    number = weights.shape[2]
    damping = DAMPING * np.trace(covariance, axis1=1, axis2=2) / number + 1e-12
    inverse = np.linalg.inv(covariance + damping[:, None, None] * np.eye(number))
    upper = np.linalg.cholesky(inverse).swapaxes(1, 2)
    rest, codes = weights.copy(), np.empty_like(weights)
    for at in range(number):
        codes[:, :, at] = np.clip(np.round(rest[:, :, at] / scales), -LARGEST, LARGEST)
        error = (rest[:, :, at] - codes[:, :, at] * scales) / upper[:, at, at, None]
        rest[:, :, at:] -= error[:, :, None] * upper[:, None, at, at:]
    return codes


def round_weights(
    small: onnx.ModelProto, model: onnx.ModelProto, fed: Iterable[dict[str, np.ndarray]]
) -> None:
    """Rounds the weights of `small`, a graph in QDQ format, anew: by those of `model`, of which it was made,
    and what its convolutions see of `fed`. What is lost on average goes to the biases (Nagel et al. 2019).
    """
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    values = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    seen = {node.input[1]: _Inputs(node, values[node.input[1]]) for node in convolutions}
    names = list(dict.fromkeys(node.input[0] for node in convolutions))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session, rng = one_thread_session(watched.SerializeToString()), np.random.default_rng(0)
    for one in fed:
        maps = dict(zip(names, session.run(names, one)))
        for node in convolutions:
            seen[node.input[1]].add(maps[node.input[0]], rng)
    stored = {i.name: i for i in small.graph.initializer}

    def store(name: str, value: np.ndarray, dtype: type) -> None:
        stored[name].CopyFrom(numpy_helper.from_array(value.astype(dtype), name))

    for node in convolutions:
        _, kernel, bias = node.input
        groups = seen[kernel].groups
        mean, covariance = seen[kernel].moments()
        scales = numpy_helper.to_array(stored[f"{kernel}_scale"]).astype(np.float64).reshape(groups, -1)
        weights = values[kernel].reshape(*scales.shape, -1)
        codes = rounded(weights, scales, covariance)
        lost = ((weights - codes * scales[:, :, None]) @ mean[:, :, None]).reshape(-1)
        store(f"{kernel}_quantized", codes.reshape(values[kernel].shape), np.int8)
        steps = numpy_helper.to_array(stored[f"{bias}_quantized_scale"]).astype(np.float64)
        store(f"{bias}_quantized", np.round((values[bias] + lost) / steps), np.int32)
