"""The training photographs, decoded once."""

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


def cached(folder: str, photographs: list[Photograph], path: str) -> list[np.ndarray]:
    """As `load`, from one file of pixels at `path`, which is made where there is none; it stays on disk."""
    if not os.path.exists(path):
        pixels = load(folder, photographs)
        with open(path + ".new", "wb") as file:
            np.save(file, np.array([image.shape for image in pixels]))
            np.save(file, np.concatenate([image.ravel() for image in pixels]))
        os.replace(path + ".new", path)
    with open(path, "rb") as file:
        shapes = np.load(file)
        start = file.tell() + 128  # of the second array: behind its header
    flat = np.memmap(path, np.uint8, "r", start)
    parts = np.split(flat, np.cumsum(shapes.prod(1))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]
