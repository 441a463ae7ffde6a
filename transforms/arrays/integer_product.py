"""Dot products of the rows of two matrices of 8-bit integers, all with all, on one core.

ONNX Runtime multiplies by the instructions that processors have for neural networks in eight bits. Its
fastest kernels take one side unsigned, 128 standing for 0. On x86 processors without such instructions (VNNI,
AMX) these add up pairs of products in 16 bits, where large ones saturate. There pairs have to be small
enough, or the exact product takes both sides unsigned, whose kernel is wide enough.
"""

import functools
import pathlib
from typing import Any, Protocol

import numpy as np

from transforms.processes.onnx_runtime import one_thread_session

MODEL_TEXTS = {
    "unsigned_by_signed": """
<ir_version: 8, opset_import: ["": 13]>
unsigned_by_signed (uint8[rows, width] a, int8[columns, width] b) => (int32[rows, columns] products)
<uint8 zero = {128}>
{
  transposed = Transpose <perm = [1, 0]> (b)
  products = MatMulInteger (a, transposed, zero)
}
""",
    "unsigned_by_unsigned": """
<ir_version: 8, opset_import: ["": 13]>
unsigned_by_unsigned (uint8[rows, width] a, uint8[columns, width] b) => (int32[rows, columns] products)
<uint8 zero = {128}>
{
  transposed = Transpose <perm = [1, 0]> (b)
  products = MatMulInteger (a, transposed, zero, zero)
}
""",
    "scaled": """
<ir_version: 8, opset_import: ["": 13, "com.microsoft": 1]>
scaled (uint8[rows, width] a, int8[width, columns] b, float[columns] scale) => (float[rows, columns] products)
<uint8 zero = {128}, float one = {1.0}>
{
  products = com.microsoft.MatMulIntegerToFloat (a, b, one, scale, zero)
}
""",
    "transposed": """
<ir_version: 8, opset_import: ["": 13]>
transposed (int8[rows, columns] a) => (int8[columns, rows] b)
{
  b = Transpose <perm = [1, 0]> (a)
}
""",
}
"""The models in the `.onnx` files beside this one, as the package onnx reads them."""

_MODELS = pathlib.Path(__file__).parent
_SIGN = np.uint8(128)


class _Session(Protocol):
    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of the model."""


def integer_product(a: np.ndarray, b: np.ndarray, small_pairs: bool = False) -> np.ndarray:
    """int32 [N, M]: the dot products of the rows of a, int8 [N, K], with those of b, int8 [M, K]; exact where
    K <= 2^16.

    Args:
      a, b: see above.
      small_pairs: whether b has small pairs: the sizes of two neighbours of a row, the first and second, the
        third and fourth and so on, add up to at most 128, and 255 x 128 fits into 16 bits. A processor that
        adds in these is faster then.
    """
    name = _exact_model()
    if name == "unsigned_by_unsigned" and small_pairs:
        name = "unsigned_by_signed"
    if name is None:
        return numpy_product(a, b)
    other = b if name == "unsigned_by_signed" else unsigned(b)
    return _session(name).run(None, {"a": unsigned(a), "b": other})[0]


def scaled_product(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 [N, M]: the dot products of the rows of a with the columns of b, each times the scale of b's
    column, rounded twice: the sum and its product with the scale. `saturates` says where that holds.

    Args:
      a: uint8 [N, K], see `unsigned`; K <= 2^16.
      b: int8 [K, M].
      scale: float32 [M].
    """
    return _session("scaled").run(None, {"a": a, "b": b, "scale": scale})[0]


def unsigned(values: np.ndarray) -> np.ndarray:
    """uint8 of int8: 128 more."""
    return values.view(np.uint8) ^ _SIGN


def transposed(values: np.ndarray) -> np.ndarray:
    """int8 [M, N] of int8 [N, M], contiguous, several times as fast as by NumPy."""
    return _session("transposed").run(None, {"a": values})[0]


def numpy_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int32 [N, M] by NumPy, in floating-point numbers that are wide enough: sums below 2^24 are exact in
    float32 in any order, others in float64.
    """
    wide: Any = np.float32 if a.shape[1] * 128**2 < 2**24 else np.float64
    return (a.astype(wide) @ b.astype(wide).T).astype(np.int32)


@functools.cache
def saturates() -> bool:
    """Whether `scaled_product` needs a second operand whose transpose has small pairs, see
    `integer_product`.
    """
    a, b = _largest(), transposed(_largest())
    return not np.array_equal(
        scaled_product(unsigned(a), b, np.ones(len(a), np.float32)), numpy_product(a, b.T)
    )


@functools.cache
def _exact_model() -> str | None:
    """The fastest model that is exact for all numbers; None where none is."""
    largest = _largest()
    expected = numpy_product(largest, largest)
    for name, other in (("unsigned_by_signed", largest), ("unsigned_by_unsigned", unsigned(largest))):
        if np.array_equal(_session(name).run(None, {"a": unsigned(largest), "b": other})[0], expected):
            return name
    return None


def _largest() -> np.ndarray:
    return np.repeat(np.array([127, -128], np.int8), 64)[:, None].repeat(256, axis=1)


@functools.cache
def _session(name: str) -> _Session:
    """A model, loaded once per process."""
    return one_thread_session((_MODELS / f"{name}.onnx").read_bytes())
