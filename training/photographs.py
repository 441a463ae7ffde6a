"""The training photographs in memory, decoded once."""

import concurrent.futures
import os

import cv2
import numpy as np

from training.split import Photograph

MAX_SIDE = 480  # px: crops of 160 to 224 px are taken from a third of a photograph and more


def load(folder: str, photographs: list[Photograph], max_side: int = MAX_SIDE) -> list[np.ndarray]:
    """Decodes photographs and shrinks them to a longest side; uint8 [H, W, 3], RGB.

    Raises:
      OSError: one cannot be decoded.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(
            pool.map(lambda photograph: _read(os.path.join(folder, photograph.path), max_side), photographs)
        )


def _read(path: str, max_side: int) -> np.ndarray:
    pixels = cv2.imread(path)
    if pixels is None:
        raise OSError(f"{path} cannot be decoded")
    height, width = pixels.shape[:2]
    factor = max_side / max(height, width)
    if factor < 1:
        pixels = cv2.resize(
            pixels, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA
        )
    return np.ascontiguousarray(pixels[..., ::-1])
