"""What a model is to the rest: an adapter loads it, and it gives the features of an image.

An adapter is one class in one file: a subclass of `Model`, or of `BuiltInModel` for one that comes with the
package.
"""

import abc
import dataclasses
import hashlib
import os
from typing import Any, ClassVar

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
        infinite or of no length) or "model_error" (the model raised).
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
      settings: how it is used.
      global_width: D of the global descriptor; 0 for a local-only model.
      local_width: D' of the local descriptors; 0 for a global-only model.
      images_in_flight: how many images it wants to work on at a time; None where that is up to the caller.
    """

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
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int]
    SETTINGS: ClassVar[ExtractionSettings]
    MAX_DISTANCE: ClassVar[float]
    CONSTANTS: ClassVar[str]

    @classmethod
    def card(cls, place: str) -> dict[str, Any]:
        return {**dataclasses.asdict(cls.SETTINGS), "name": cls.NAME, "max_distance": cls.MAX_DISTANCE}

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
                *table("settings", [(k, "", str(v)) for k, v in dataclasses.asdict(cls.SETTINGS).items()]),
                f"fingerprint  {cls.fingerprint(place)}",
                f"size         {os.path.getsize(cls.CONSTANTS) / 1e6:.1f} MB",
            ]
        )


def check_image(pixels: np.ndarray) -> None:
    """Raises ValueError where `pixels` is no image uint8 [H, W, 3]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an image must be uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")


def table(title: str, rows: list[tuple[str, str, str]]) -> list[str]:
    """Lines of a report: (name, dtype, text) each, the title before the first."""
    return [
        f"{title if not index else '':<13}{name:<25}{dtype:<9}{text}"
        for index, (name, dtype, text) in enumerate(rows)
    ]
