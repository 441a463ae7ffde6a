"""The steps as Beam YAML takes them: arguments of plain types, and rows at the end; `steps.yaml` lists them.

Between the steps elements are the records of `transforms.types`; `AggregatePredictions` gives rows with the
fields image_id, landmark_id, score and verified, which any transform of Beam YAML takes.
"""

from typing import Any, Optional

import apache_beam as beam

from transforms.aggregation import AggregatePredictions, PredictionRows
from transforms.extraction import ExtractFeatures, image_units
from transforms.models.card import ExtractionSettings
from transforms.patterns import match_images
from transforms.retrieval import GroupIntoBlocks, RetrieveNearest
from transforms.types import ImageUnit, ReadingConfig, ScoringSettings, VerificationSettings
from transforms.verification import VerifyCandidates

# Beam YAML reads the annotations, and does not know `X | None`.


class MatchImages(beam.PTransform):
    """Begins a pipeline: the images that patterns name, in units for ExtractFeatures with the same model and
    settings.

    Args:
      images: folders (searched recursively), globs, files, or @LIST, a text file with a path per line.
      model: the name of a built-in one, or the folder or URI of a SavedModel.
      settings: of the extraction, all of `ExtractionSettings`; by default those of the model's card.
      reading: fields of `ReadingConfig`.
    """

    _yaml_requires_inputs = False

    def __init__(
        self,
        images: list[str],
        model: str = "embedded",
        settings: Optional[dict[str, Any]] = None,  # noqa: UP045
        reading: Optional[dict[str, Any]] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        self._units = image_units(match_images(images).images, model, *_settings(settings, reading))

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[ImageUnit]:
        return begin | beam.Create(self._units).with_output_types(ImageUnit)


def extract_features(
    store: str,
    model: str = "embedded",
    settings: Optional[dict[str, Any]] = None,  # noqa: UP045
    reading: Optional[dict[str, Any]] = None,  # noqa: UP045
) -> beam.PTransform:
    """Extracts the features of units of images into a feature store; gives the units' names.

    Args:
      store: folder of the feature store.
      model: see MatchImages.
      settings: see MatchImages.
      reading: see MatchImages.
    """
    return ExtractFeatures(model, store, *_settings(settings, reading))


def retrieve_nearest(index: str, queries: str, k: int) -> beam.PTransform:
    """The nearest images of an index for each image of the units named.

    Args:
      index: folder of the index, a feature store.
      queries: folder of the queries' feature store.
      k: candidates per query.
    """
    return GroupIntoBlocks() | RetrieveNearest(index, queries, k)


def verify_candidates(
    index: str,
    queries: str,
    settings: Optional[dict[str, Any]] = None,  # noqa: UP045
) -> beam.PTransform:
    """Verifies candidates by a homography.

    Args:
      index: folder of the index, a feature store.
      queries: folder of the queries' feature store.
      settings: fields of `VerificationSettings`, such as mutual_check.
    """
    return VerifyCandidates(index, queries, VerificationSettings(**(settings or {})))


def aggregate_predictions(
    settings: Optional[dict[str, Any]] = None,  # noqa: UP045
) -> beam.PTransform:
    """One row per query with its landmark and score, null where nothing can be said.

    Args:
      settings: fields of `ScoringSettings`, such as top_k.
    """
    return AggregatePredictions(ScoringSettings(**(settings or {}))) | PredictionRows()


def _settings(
    settings: dict[str, Any] | None, reading: dict[str, Any] | None
) -> tuple[ExtractionSettings | None, ReadingConfig]:
    return ExtractionSettings(**settings) if settings else None, ReadingConfig(**(reading or {}))
