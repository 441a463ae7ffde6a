"""The embedded model: EfficientNet-Lite0 in 8 bits, run by ONNX Runtime; training/ says how it was made.

One pass over a photograph at a longest side of 384 px gives the global descriptor, GeM of the last map, and
the maps at strides 8 and 16, which are read, bilinear, at corners (Shi and Tomasi 1994) for the local ones;
both are whitened by PCA. All of that is in the graph; here corners are found. Coordinates are (y, x).
"""

import os

import cv2
import numpy as np
import onnxruntime

from transforms.models.card import ExtractionSettings
from transforms.models.model import (
    BuiltInModel,
    Extracted,
    ExtractionError,
    ModelError,
    check_image,
    resized,
    sides,
)
from transforms.processes.onnx_runtime import one_thread_session

LONGEST_SIDE = 384  # px, of what the network sees
SIDE_MULTIPLE = 32
STRIDES = (8, 16)  # px, of the maps that local descriptors are read from
MIN_DISTANCE = 4  # px of what the network sees, between corners
CORNER_BLOCK = 3  # px
MIN_SIDE = 5  # px of a photograph


class EmbeddedModel(BuiltInModel):
    """The network and its corners."""

    RUN_BY = "ONNX Runtime on the processor alone"
    NAME = "landmarks-lite0"
    VERSION = 1
    SETTINGS = ExtractionSettings(
        image_scales=(1.0,),
        global_scales=(1.0,),
        max_local_features=700,
        score_threshold=0.0,
        max_image_side=640,
    )
    MAX_DISTANCE = 0.9
    CONSTANTS = os.path.join(os.path.dirname(__file__), "embedded.onnx")
    ORDERED_AXES = True
    COHORT = os.path.join(os.path.dirname(__file__), "embedded_cohort")

    def __init__(self, session: onnxruntime.InferenceSession, settings: ExtractionSettings):
        """Use `load`."""
        self._session, self.settings = session, settings
        self.global_width, self.local_width = (output.shape[1] for output in session.get_outputs())

    @classmethod
    def load(cls, place: str, settings: ExtractionSettings) -> "EmbeddedModel":
        fixed = {name: getattr(cls.SETTINGS, name) for name in ("image_scales", "global_scales", "precision")}
        for name, value in fixed.items():
            if getattr(settings, name) != value:
                raise ModelError(f"{cls.NAME} has {name} {value} and no other, not {getattr(settings, name)}")
        return cls(one_thread_session(place), settings)

    def extract(self, pixels: np.ndarray) -> Extracted:
        check_image(pixels)
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise ExtractionError("too_small", f"an image of {sides(pixels)} is smaller than {MIN_SIDE} px")
        seen = fitted(pixels)
        corners, scores = strongest_corners(
            seen, self.settings.max_local_features, self.settings.score_threshold
        )
        descriptor, local = self._session.run(["global", "local"], feeds(seen, corners))
        keypoints = (corners + 0.5) * np.array(pixels.shape[:2]) / seen.shape[:2]
        return Extracted(descriptor[0], keypoints.astype(np.float32), local[: len(corners)], scores)


def fitted(pixels: np.ndarray) -> np.ndarray:
    """What the network sees: the longest side at LONGEST_SIDE, both sides multiples of SIDE_MULTIPLE."""
    factor = LONGEST_SIDE / max(pixels.shape[:2]) / SIDE_MULTIPLE
    height, width = (max(1, round(side * factor)) * SIDE_MULTIPLE for side in pixels.shape[:2])
    return resized(pixels, height, width)


def strongest_corners(seen: np.ndarray, count: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners int [N, 2] in px of what the network sees, none nearer than MIN_DISTANCE to a stronger one, and
    their strengths float32 [N], above the threshold; the strongest first.
    """
    strength = cv2.cornerMinEigenVal(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY), CORNER_BLOCK)
    around = np.ones((2 * MIN_DISTANCE - 1,) * 2, np.uint8)
    places = np.flatnonzero((strength >= cv2.dilate(strength, around)) & (strength > threshold))
    scores = strength.ravel()[places]
    order = np.argsort(-scores, kind="stable")[:count]
    return np.stack(np.divmod(places[order], strength.shape[1]), 1), scores[order]


def feeds(seen: np.ndarray, corners: np.ndarray) -> dict[str, np.ndarray]:
    """What the graph takes: the image, and the corners as ONNX's GridSample takes them for the map of each
    stride, float32 [1, N, 1, 2], (x, y), the map's borders at -1 and 1; one for none.

    Cell k of a map lies at px stride k + stride - 1: every convolution of stride 2 moves by one px.
    """
    points = corners if len(corners) else np.zeros((1, 2))
    fed = {"image": seen[None]}
    for stride in STRIDES:
        cells = (points - (stride - 1)) / stride
        grid = (2 * cells + 1) / (np.array(seen.shape[:2]) / stride) - 1
        fed[f"grid{stride}"] = grid[None, :, None, ::-1].astype(np.float32)
    return fed
