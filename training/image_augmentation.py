"""Views of a photograph: warped by a random homography, re-lit, blurred, compressed."""

import cv2
import numpy as np

cv2.setNumThreads(1)


def warp(size: tuple[int, int], side: int, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random homography from a photograph to a square view.

    Args:
      size: (height, width) of the photograph in px.
      side: of the view in px.
      centre: float [2], (y, x) in px of the photograph, of the view's middle.
      rng: random numbers.

    Returns:
      float64 [3, 3], from (x, y, 1) of the photograph to the view.
    """
    zoom = np.exp(rng.uniform(np.log(0.45), np.log(1.1))) * 480 / max(size)
    half = side / zoom / 2 * np.exp(rng.uniform(-0.15, 0.15) * np.array([1, -1]))
    angle = np.clip(rng.normal(0, 0.12), -0.5, 0.5)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * half
    corners += rng.uniform(-0.16, 0.16, (4, 2)) * half
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = corners @ rotation.T + centre[::-1]
    target = np.array([[0, 0], [side, 0], [side, side], [0, side]], float)
    return cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))


def render(pixels: np.ndarray, homography: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The view of a photograph under a homography, uint8 [side, side, 3], with its light and quality
    changed.
    """
    zoom = np.sqrt(abs(np.linalg.det(homography[:2, :2])))
    if zoom < 0.7:  # shrink first, against aliasing
        factor = max(zoom, 0.3)
        small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        homography = homography @ np.diag(
            [pixels.shape[1] / small.shape[1], pixels.shape[0] / small.shape[0], 1.0]
        )
        pixels = small
    border = cv2.BORDER_REFLECT if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    view = cv2.warpPerspective(
        pixels,
        homography,
        (side, side),
        flags=cv2.INTER_LINEAR,
        borderMode=border,
        borderValue=(118, 118, 118),
    )
    return _photometric(view, rng)


def _photometric(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = len(view)
    # Light: one table per channel, with gamma, contrast, brightness and a colour cast; dark scenes now and
    # then.
    ramp = np.arange(256, dtype=np.float32) / 255
    gamma = np.exp(rng.normal(0, 0.25)) * (rng.uniform(1.4, 2.2) if rng.random() < 0.1 else 1.0)
    contrast, brightness = np.exp(rng.normal(0, 0.2)), rng.normal(0, 0.08)
    cast = np.exp(rng.normal(0, 0.1, 3))
    table = ((ramp[:, None] ** gamma - 0.5) * contrast + 0.5 + brightness) * cast
    view = cv2.LUT(view, np.clip(table * 255, 0, 255).astype(np.uint8)[:, None, :])
    saturation = 0.0 if rng.random() < 0.12 else np.clip(rng.normal(1, 0.3), 0, 2)
    gray = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None]
    view = cv2.addWeighted(view, saturation, np.repeat(gray, 3, 2), 1 - saturation, 0)
    if rng.random() < 0.25:
        view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.4, 1.4))
    if rng.random() < 0.2:
        noise = rng.standard_normal((side, side, 1), np.float32) * rng.uniform(2, 12)
        view = np.clip(view + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        view = cv2.imdecode(
            cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 80))])[1],
            cv2.IMREAD_COLOR,
        )
    for _ in range(rng.integers(0, 3)):  # people and cars in front
        if rng.random() < 0.4:
            height, width = (rng.uniform(0.1, 0.4, 2) * side).astype(int)
            top, left = rng.integers(0, side - height), rng.integers(0, side - width)
            view[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return np.ascontiguousarray(view)


def centre_of(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random centre, (y, x) in px, in the inner part of a photograph."""
    return rng.uniform(0.25, 0.75, 2) * size
