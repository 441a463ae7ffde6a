"""Feature extraction: units of photographs in, shards of a feature store out.

Pixels and descriptors live inside one fused step; only the names of finished units travel on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference

from transforms import in_flight
from transforms.delg.card import ExtractionSettings
from transforms.delg.catalog import model_folder
from transforms.delg.saved_model import DelgModel, ExtractionError, ModelError
from transforms.stores import FeatureStore
from transforms.types import DecodedImage, Failure, ImageFeatures, ImageRef, ImageUnit, LocalFeatures

ReadImages = Callable[[Sequence[ImageRef]], Iterator[Union[DecodedImage, Failure]]]


@dataclasses.dataclass(frozen=True)
class UnitFeatures:
    """What extraction gave for a unit, each image either in `features` or in `failures`.

    Attributes:
      unit: its name.
      features: in ascending order of image_id.
      failures: likewise.
      dimensions: width of the model's global descriptor.
    """

    unit: str
    features: tuple[ImageFeatures, ...]
    failures: tuple[Failure, ...]
    dimensions: int


def extract_unit(unit: ImageUnit, model: DelgModel, read_images: ReadImages, deadline: float = math.inf) -> Optional[UnitFeatures]:
    """Reads, decodes and extracts every image of a unit; what fails for one image is a Failure, not an error.

    Args:
      deadline: as time.time() tells it.

    Returns:
      What the images gave; None where the deadline passed before the last one's turn: a part of a unit is no shard.

    Raises:
      ModelError: the model itself is at fault.
    """
    features, failures = [], []
    for image in read_images(unit.images):
        if time.time() >= deadline:
            return None
        if isinstance(image, Failure):
            failures.append(image)
            continue
        try:
            with in_flight.noted(image.ref):
                extracted = model.extract(image.pixels)
        except ExtractionError as e:
            failures.append(Failure("extract", image.ref.image_id, image.ref.uri, e.kind, str(e)))
            continue
        local = LocalFeatures(extracted.keypoints, extracted.descriptors)
        features.append(ImageFeatures(image.ref, image.width, image.height, image.image_scale, extracted.global_descriptor, local))
    return UnitFeatures(unit.name, tuple(features), tuple(failures), model.global_width)


def check_model(model: str, settings: ExtractionSettings) -> tuple[int, bool]:
    """Loads a model to see, before a pipeline starts, that it serves retrieval.

    Returns:
      Width of its global descriptor, and whether it has local features.

    Raises:
      ModelError: it cannot be loaded, breaks its contract, or has no global descriptor.
    """
    loaded = DelgModel.load(model_folder(model), settings)
    if not loaded.contract.has_global:
        raise ModelError(f"{model} offers no global descriptor, which retrieval needs (it is local-only)")
    return loaded.global_width, loaded.contract.has_local


class DelgModelHandler(ModelHandler[ImageUnit, UnitFeatures, DelgModel]):
    """Carries a DELG model into RunInference: an element is a unit, whose photographs are read, used and dropped inside.

    Args:
      model: "embedded", or the folder or URI of a SavedModel.
      settings: of the extraction.
      read_images: reads and decodes photographs in the order given; yields a Failure for each that gives no image.
      intra_op_threads: TensorFlow's threads within an operation; None for its own choice.
      deadline: as time.time() tells it; a unit not finished by then gives nothing.
    """

    def __init__(
        self, model: str, settings: ExtractionSettings, read_images: ReadImages, intra_op_threads: Optional[int] = None,
        deadline: float = math.inf,
    ):
        super().__init__()
        self._model, self._settings, self._read_images = model, settings, read_images
        self._intra_op_threads, self._deadline = intra_op_threads, deadline

    def load_model(self) -> DelgModel:
        return DelgModel.load(model_folder(self._model), self._settings, self._intra_op_threads)

    def run_inference(
        self, batch: Sequence[ImageUnit], model: DelgModel, inference_args: Optional[dict[str, Any]] = None
    ) -> Iterable[UnitFeatures]:
        for unit in batch:
            started = time.monotonic()
            extracted = extract_unit(unit, model, self._read_images, self._deadline) if time.time() < self._deadline else None
            if extracted is not None:
                yield extracted
            Metrics.distribution("landmarks", "extract_milliseconds").update(round(1000 * (time.monotonic() - started)))

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 1}  # a unit is a batch already

    def get_num_bytes(self, batch: Sequence[ImageUnit]) -> int:
        return sum(image.size_bytes for unit in batch for image in unit.images)

    def get_metrics_namespace(self) -> str:
        return "landmarks"


@dataclasses.dataclass
class ExtractFeatures(beam.PTransform):
    """ImageUnits, spread over the workers -> names (str) of the units whose shards have been written to a feature store.

    Attributes:
      store_root: folder of the feature store.
      handler: carries the model.
    """

    store_root: str
    handler: DelgModelHandler

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, units: beam.PCollection[ImageUnit]) -> beam.PCollection[str]:
        return (
            units
            | "ReadDecodeExtract" >> RunInference(self.handler).with_output_types(UnitFeatures)
            | "WriteShard" >> beam.ParDo(_WriteShard(FeatureStore(self.store_root)))
        )


@beam.typehints.with_input_types(UnitFeatures)
@beam.typehints.with_output_types(str)
class _WriteShard(beam.DoFn):
    def __init__(self, store: FeatureStore):
        self._store = store
        self._out = Metrics.counter("landmarks", "extract_out")
        self._failed = Metrics.counter("landmarks", "extract_failed")
        self._milliseconds = Metrics.distribution("landmarks", "write_shard_milliseconds")

    def process(self, unit: UnitFeatures) -> Iterable[str]:
        started = time.monotonic()
        self._store.write_unit(unit.unit, unit.features, unit.failures, unit.dimensions)
        self._out.inc(len(unit.features))
        self._failed.inc(len(unit.failures))
        self._milliseconds.update(round(1000 * (time.monotonic() - started)))
        yield unit.unit
