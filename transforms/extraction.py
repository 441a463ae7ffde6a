"""Extraction as one transform: photographs are read and decoded (images.py), and their features extracted
(features.py).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from transforms.features import ReadImages, UnitModelHandler
from transforms.images import read_images
from transforms.models import catalog
from transforms.models.card import ExtractionSettings
from transforms.storage.feature_store import FeatureStore
from transforms.storage.worklist import is_of_others, make_units
from transforms.types import ImageRef, ImageUnit, ReadingConfig


def photograph_reader(settings: ExtractionSettings, reading: ReadingConfig) -> ReadImages:
    """Reads and decodes photographs as a model's settings and the options want them."""
    return functools.partial(read_images, max_side=settings.longest_side, reading=reading)


def identity(settings: ExtractionSettings, model_fingerprint: str, reading: ReadingConfig) -> dict[str, Any]:
    """JSON-able; all that features depend on beside the photographs: limits only say which are tried.

    Args:
      model_fingerprint: of the model's content.
    """
    turned = {"exif_orientation": reading.exif_orientation}
    return {"extraction": settings.to_json(), "model": model_fingerprint, "reading": turned}


def image_units(
    images: Sequence[ImageRef],
    model: str,
    settings: ExtractionSettings | None = None,
    reading: ReadingConfig = ReadingConfig(),
) -> list[ImageUnit]:
    """Splits images into units for ExtractFeatures with the same model, settings and reading.

    A unit's name has a digest of these and of its images, so that a shard of that name holds just these
    features, whoever made it: `landmarks index` makes the same units.

    Raises:
      ModelError: there is no such model.
    """
    settings = settings or catalog.settings(model)
    made_with = identity(settings, catalog.fingerprint(model), reading)
    return make_units(images, list(made_with.values()))


@dataclasses.dataclass
class ExtractFeatures(beam.PTransform):
    """ImageUnits, spread over the workers -> names (str) of the units whose shards a feature store has, those
    that it had before included.

    Every image of a unit is read, decoded and extracted; what gives no features becomes a failure row of the
    shard.

    Attributes:
      model: as users call it, see `catalog.find`.
      store: folder of the feature store, on any file system that Beam knows.
      settings: of the extraction; None for those of the model's card.
      reading: how photographs are read.
      images_in_flight: see UnitModelHandler.
      deadline: as time.time() tells it; a unit not finished by then gives nothing.
      fingerprint: of the model's content, where it is known; else all of the model is read for it.

    Raises:
      ModelError: there is no such model.
      ValueError: in the pipeline, a unit was made for another model, settings or reading (`image_units`).
    """

    model: str
    store: str
    settings: ExtractionSettings | None = None
    reading: ReadingConfig = ReadingConfig()
    images_in_flight: int | None = None
    deadline: float = math.inf
    fingerprint: str | None = None

    def expand(self, units: beam.PCollection[ImageUnit]) -> beam.PCollection[str]:
        settings = self.settings or catalog.settings(self.model)
        fingerprint = self.fingerprint or catalog.fingerprint(self.model)
        made_with = list(identity(settings, fingerprint, self.reading).values())
        handler = UnitModelHandler(
            self.model,
            settings,
            photograph_reader(settings, self.reading),
            FeatureStore(self.store),
            self.images_in_flight,
            self.deadline,
        )
        return (
            units
            | "OfThisModel" >> beam.Map(_checked, made_with).with_output_types(ImageUnit)
            | "ReadDecodeExtractWrite" >> RunInference(handler).with_output_types(str)
        )


def _checked(unit: ImageUnit, made_with: list[Any]) -> ImageUnit:
    if is_of_others(unit, made_with):
        raise ValueError(
            f"unit {unit.name} was made for another model, other settings or another reading than those of "
            "ExtractFeatures: its shard would pass for what its name says"
        )
    return unit
