"""What a model is to the rest: an adapter loads it, and it gives the features of an image.

An adapter is one class in one file: a subclass of `Model`, or of `BuiltInModel` for one that comes with the
package.
"""

import abc
import dataclasses
import hashlib
import os
from typing import Any, ClassVar

import cv2
import numpy as np

from transforms.models.card import ExtractionSettings


class ModelError(ValueError):
    """The model cannot be used: not a SavedModel, a contract that is not known, outputs that break it,
    settings that it cannot take.
    """


class ExtractionError(RuntimeError):
    """One image gave no features; the next one may.

    Attributes:
      kind: "too_small" (no scale is left that the model can work on), "non_finite" (a descriptor is NaN,
        infinite or of no length), "keypoints_outside" (keypoints are not in pixels of the image) or
        "model_error" (the model raised).
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Extracted:
    """The features of one image, local ones with the strongest attention first.

    Attributes:
      global_descriptor: float32 [D], unit length; [0] for a local-only model.
      keypoints: float32 [N, 2], (y, x) in pixels of the image fed.
      descriptors: float32 [N, D'], rows of unit length.
      scores: float32 [N], attention.
    """

    global_descriptor: np.ndarray
    keypoints: np.ndarray
    descriptors: np.ndarray
    scores: np.ndarray


class Model(abc.ABC):
    """A loaded model with the settings it is used with. Threads may share one.

    Attributes:
      RUN_BY: what runs it, for people; of an ONNX model of one's own a device decides.
      settings: how it is used.
      global_width: D of the global descriptor; 0 for a local-only model.
      local_width: D' of the local descriptors; 0 for a global-only model.
      images_in_flight: how many images it wants to work on at a time; None where that is up to the caller.
    """

    RUN_BY: ClassVar[str] = "the processor"

    settings: ExtractionSettings
    global_width: int
    local_width: int
    images_in_flight: int | None = None

    @classmethod
    @abc.abstractmethod
    def card(cls, place: str, /) -> dict[str, Any] | None:
        """The card of the model at a place, see `card.read_card`."""

    @classmethod
    @abc.abstractmethod
    def fingerprint(cls, place: str, /) -> str:
        """What identifies the content of the model at a place: a SHA-256 in hex."""

    @classmethod
    def remarks(cls, place: str, /) -> list[str]:
        """What a user should know who begins to use the model at a place, lines; raises as `card` does."""
        return []

    @classmethod
    @abc.abstractmethod
    def load(cls, place: str, settings: ExtractionSettings) -> "Model":
        """Loads the model at a place.

        Raises:
          ModelError: it cannot be loaded, or not be used so.
        """

    @classmethod
    @abc.abstractmethod
    def inspect(cls, place: str) -> str:
        """What `landmarks model inspect` says of the model at a place; raises as `load` does."""

    @abc.abstractmethod
    def extract(self, pixels: np.ndarray) -> Extracted:
        """The features of an image.

        Args:
          pixels: uint8 [H, W, 3], RGB.

        Raises:
          ExtractionError: this image gives no features.
          ModelError: the model breaks its contract.
          MemoryError: it needs more than there is now.
          ValueError: `pixels` is not an image.
        """


class BuiltInModel(Model):
    """A model that comes with the package.

    Attributes:
      NAME: for people.
      VERSION: raised when the code makes other features of the same constants.
      SETTINGS: those it was chosen with.
      MAX_DISTANCE: of putative matches.
      CONSTANTS: path of its weights.
      ORDERED_AXES: whether leading axes of the global descriptor do for all, as after PCA.
      COHORT: folder of an output of `landmarks cohort` that comes with it; None for none.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int]
    SETTINGS: ClassVar[ExtractionSettings]
    MAX_DISTANCE: ClassVar[float]
    CONSTANTS: ClassVar[str]
    ORDERED_AXES: ClassVar[bool] = False
    COHORT: ClassVar[str | None] = None

    @classmethod
    def card(cls, place: str) -> dict[str, Any]:
        own = {"name": cls.NAME, "max_distance": cls.MAX_DISTANCE, "ordered_axes": cls.ORDERED_AXES}
        return {**dataclasses.asdict(cls.SETTINGS), **own}

    @classmethod
    def fingerprint(cls, place: str) -> str:
        with open(cls.CONSTANTS, "rb") as file:
            content = file.read()
        return hashlib.sha256(f"{cls.NAME}\0{cls.VERSION}\0".encode() + content).hexdigest()

    @classmethod
    def inspect(cls, place: str) -> str:
        model = cls.load(place, cls.SETTINGS)
        return "\n".join(
            [
                f"model        {cls.NAME}, comes with the package",
                f"gives        global descriptor [{model.global_width}], local [N, {model.local_width}]",
                *table("settings", [(k, "", str(v)) for k, v in cls.SETTINGS.to_json().items()]),
                f"fingerprint  {cls.fingerprint(place)}",
                f"size         {os.path.getsize(cls.CONSTANTS) / 1e6:.1f} MB",
            ]
        )


def check_image(pixels: np.ndarray) -> None:
    """Raises ValueError where `pixels` is no image uint8 [H, W, 3]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an image must be uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")


def sides(pixels: np.ndarray) -> str:
    """The sides of an image, for messages."""
    return f"{pixels.shape[0]} x {pixels.shape[1]} px"


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image of other sides, averaged where it shrinks."""
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] divided by their Euclidean length, float64; a row of zeros stays."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def leading(rows: np.ndarray, dimensions: int) -> np.ndarray:
    """The leading axes of rows float32 [N, D], [N, dimensions] of unit length, or all as they are; a row of
    zeros stays.
    """
    return unit_rows(rows[:, :dimensions]).astype(np.float32) if dimensions < rows.shape[1] else rows


def summed(rows: np.ndarray) -> np.ndarray:
    """The global descriptor float32 [D] of the rows [S, D] of an image's scales: the normalised sum of the
    normalised rows (Cao et al., Unifying deep local and global features for image search, ECCV 2020).

    Raises:
      ExtractionError: it has no length.
    """
    total = unit_rows(unit_rows(rows).sum(axis=0, keepdims=True))[0]
    if not total.any():
        raise ExtractionError("non_finite", "the global descriptor has no length")
    return total.astype(np.float32)


def strongest(
    keypoints: np.ndarray, features: np.ndarray, scores: np.ndarray, settings: ExtractionSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints [N, 2], descriptors of unit length [N, D] and scores [N], float32, strongest first, as the
    settings ask; features without length are left out.
    """
    features = unit_rows(features)
    usable = (scores >= np.float32(settings.score_threshold)) & features.any(axis=1)
    order = np.argsort(-scores, kind="stable")
    order = order[usable[order]][: settings.max_local_features]
    chosen = keypoints[order], features[order], scores[order]
    return chosen[0].astype(np.float32), chosen[1].astype(np.float32), chosen[2].astype(np.float32)


def check_keypoints(keypoints: np.ndarray, image_sides: np.ndarray, margin: float, must_be: str) -> None:
    """Checks that keypoints are in pixels of an image: all within a pixel of each other would agree with any
    others.

    Args:
      keypoints: (y, x) [N, 2].
      image_sides: of the image fed, [2].
      margin: px that they may lie outside of it.
      must_be: what they are and in which order, for the message.

    Raises:
      ExtractionError: they are not.
    """
    # Those that are all the same are no keypoints, but what fills a graph's fixed number of them.
    normalised = bool((np.abs(keypoints) <= 1).all() and (keypoints != keypoints[:1]).any())
    if normalised or ((keypoints < -margin) | (keypoints > image_sides + margin)).any():
        low, high = keypoints.min(axis=0), keypoints.max(axis=0)
        raise ExtractionError(
            "keypoints_outside",
            f"{must_be} in pixels of the image fed, of {image_sides[0]} x {image_sides[1]} px; they are from "
            f"{low[0]:g} to {high[0]:g} in y and from {low[1]:g} to {high[1]:g} in x"
            + (", as if divided by the sides" if normalised else "; is their order another?"),
        )


def probe_image(height: int, width: int) -> np.ndarray:
    """A seeded image of blocks of 8 px, uint8 [height, width, 3]; corners enough for local features."""
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for messages; -1 is any length."""
    return f"[{', '.join('?' if side < 0 else str(side) for side in shape)}]"


def table(title: str, rows: list[tuple[str, str, str]]) -> list[str]:
    """Lines of a report: (name, dtype, text) each, the title before the first."""
    return [
        f"{title if not index else '':<13}{name:<25}{dtype:<9}{text}"
        for index, (name, dtype, text) in enumerate(rows)
    ]
