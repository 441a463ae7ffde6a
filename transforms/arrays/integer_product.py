"""Exact dot products of the rows of two int8 matrices, all with all, on one core.

ONNX Runtime multiplies by the instructions that processors have for neural networks in eight bits: twice as
fast as in bfloat16, six times as fast as in float32. x86 processors without them (VNNI) add up pairs of
products in 16 bits, where large ones saturate; there NumPy multiplies the same integers as floating-point
numbers wide enough to be exact, too.
"""

import functools
import pathlib
from typing import Any, Protocol

import numpy as np

MODEL_TEXT = """
<ir_version: 8, opset_import: ["": 13]>
integer_product (uint8[rows, width] a, int8[columns, width] b) => (int32[rows, columns] products)
<uint8 zero = {128}>
{
  transposed = Transpose <perm = [1, 0]> (b)
  products = MatMulInteger (a, transposed, zero)
}
"""
"""The model in `integer_product.onnx`, as the package onnx reads it: the kernels take one side unsigned, 128
standing for 0.
"""

_MODEL = pathlib.Path(__file__).with_suffix(".onnx")
_SIGN = np.uint8(128)


def integer_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int32 [N, M]: the dot products of the rows of a, int8 [N, K], with those of b, int8 [M, K]; exact where
    K <= 2^16.
    """
    session = _session()
    return numpy_product(a, b) if session is None else _product(session, a, b)


def numpy_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same by NumPy: sums below 2^24 are exact in float32 in any order, others in float64."""
    wide: Any = np.float32 if a.shape[1] * 128**2 < 2**24 else np.float64
    return (a.astype(wide) @ b.astype(wide).T).astype(np.int32)


class _Session(Protocol):
    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of the model."""


def _product(session: _Session, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return session.run(None, {"a": a.view(np.uint8) ^ _SIGN, "b": b})[0]


@functools.cache
def _session() -> _Session | None:
    """The model, loaded once per process; None where its products are not exact."""
    import onnxruntime  # 0.1 s and 20 MB, for those only who multiply

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the threads of a worker verify pairs of their own
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_MODEL.read_bytes(), options, providers=["CPUExecutionProvider"])
    largest = np.repeat(np.array([127, -128], np.int8), 64)[:, None].repeat(256, axis=1)
    return (
        session
        if np.array_equal(_product(session, largest, largest), numpy_product(largest, largest))
        else None
    )
