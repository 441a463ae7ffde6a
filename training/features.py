"""What a model says of a photograph, for comparisons."""

import dataclasses

import numpy as np

from transforms.types import QuantizedFeatures


@dataclasses.dataclass(frozen=True)
class Features:
    """What a model says of a photograph.

    Attributes:
      id, label: of the photograph; the label is "" where there is no landmark.
      descriptor: float32 [D], global, unit length.
      local: its local features.
    """

    id: str
    label: str
    descriptor: np.ndarray
    local: QuantizedFeatures
