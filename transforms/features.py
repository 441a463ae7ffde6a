"""Feature extraction: units of photographs in, shards of a feature store out.

Pixels and descriptors live inside one fused step; only the names of finished units travel on.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from transforms.models import catalog
from transforms.models.card import ExtractionSettings
from transforms.models.model import Extracted, ExtractionError, Model
from transforms.processes import crash_notes
from transforms.processes.settings import one_thread
from transforms.processes.threads import map_ahead
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore
from transforms.storage.machine import MachineError, has_memory
from transforms.types import DecodedImage, Failure, ImageFeatures, ImageRef, ImageUnit, LocalFeatures

ReadImages = Callable[[Sequence[ImageRef]], Iterator[DecodedImage | Failure]]

# Of a worker with 2 cores, the whole process, with room for a SavedModel (benchmarks/README.md, "Choices").
MIN_RAM = "4GB"

# Bytes enough to decode and extract a photograph on its own.
_MEMORY_OF_ONE = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class UnitFeatures:
    """What extraction gave for a unit, each image either in `features` or in `failures`.

    Attributes:
      unit: its name.
      features: in the order of the unit.
      failures: likewise.
      dimensions: width of the model's global descriptor.
    """

    unit: str
    features: tuple[ImageFeatures, ...]
    failures: tuple[Failure, ...]
    dimensions: int


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in a process, whose threads share it.

    Attributes:
      model: the model.
      pool: as many threads as photographs may be in the model at a time, whichever units they are of; None
        where the thread that has the unit does it.
      slots: of the pool.
    """

    model: Model
    pool: Executor | None = None
    slots: int = 1


def extract_unit(
    unit: ImageUnit, model: Model | LoadedModel, read_images: ReadImages, deadline: float = math.inf
) -> UnitFeatures | None:
    """Reads, decodes and extracts every image of a unit; what fails for one image is a Failure, not an error.

    Args:
      deadline: as time.time() tells it.

    Returns:
      What the images gave; None where the deadline passed before the last one's turn: a part of a unit is no
      shard.

    Raises:
      ModelError: the model itself is at fault.
    """
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    extract = functools.partial(_extract_image, loaded.model)
    images = read_images(unit.images)
    # Where this is the last unit, it has to fill the whole pool.
    results = map_ahead(loaded.pool, extract, images, loaded.slots) if loaded.pool else map(extract, images)
    features: list[ImageFeatures] = []
    failures: list[Failure] = []
    with one_thread:
        for result in results:
            if time.time() >= deadline:
                return None
            if isinstance(result, Failure):
                failures.append(result)
            else:
                features.append(result)
    return UnitFeatures(unit.name, tuple(features), tuple(failures), loaded.model.global_width)


def _extract_image(model: Model, image: DecodedImage | Failure) -> ImageFeatures | Failure:
    if isinstance(image, Failure):
        return image

    def extract() -> Extracted:
        with crash_notes.noted(image.ref):
            return model.extract(image.pixels)

    try:
        extracted = files.retried(extract)
    except ExtractionError as e:
        return Failure("extract", image.ref.image_id, image.ref.uri, e.kind, str(e))
    except (MemoryError, OSError) as e:
        raise MachineError(image.ref.uri, e) from e
    local = LocalFeatures(extracted.keypoints, extracted.descriptors)
    return ImageFeatures(
        image.ref,
        image.width,
        image.height,
        image.image_scale,
        extracted.global_descriptor,
        local,
        image.warning,
    )


def try_suspects(model: str, settings: ExtractionSettings, read_images: ReadImages) -> None:
    """Decodes and extracts each photograph that was noted when the last process died, alone; a guilty one
    takes this one down too.

    Raises:
      ModelError: the model itself is at fault.
      MachineError: so little memory is left that a death would not tell who is guilty.
    """
    for ref in crash_notes.suspects():
        if not has_memory(_MEMORY_OF_ONE):  # native code that lacks memory aborts
            raise MachineError(ref.uri, MemoryError(f"less than {_MEMORY_OF_ONE:,} bytes are left"))
        extract_unit(ImageUnit("suspect", (ref,)), catalog.load(model, settings), read_images)


class UnitModelHandler(ModelHandler[ImageUnit, str, LoadedModel]):
    """Carries a model into RunInference: an element is a unit, whose photographs are read, used and
    dropped inside.

    The unit's shard is written here too, once, and its name goes on: with up to 0.5 MB of features for each
    image, a unit of them would be an element of tens of megabytes.

    Args:
      model: as users call it, see `catalog.find`.
      settings: of the extraction.
      read_images: reads and decodes photographs in the order given; yields a Failure for each that gives no
        image.
      store: where the shards go.
      images_in_flight: photographs that a process has in the model at a time, however many units its threads
        work on. Each takes the model's memory. None for one per unit, the choice for engines that run a
        process on each core. A model that wants a number of its own has that.
      deadline: as time.time() tells it; a unit not finished by then gives nothing.
    """

    def __init__(
        self,
        model: str,
        settings: ExtractionSettings,
        read_images: ReadImages,
        store: FeatureStore,
        images_in_flight: int | None = None,
        deadline: float = math.inf,
    ):
        super().__init__()
        self._model, self._settings, self._read_images, self._store = model, settings, read_images, store
        self._images_in_flight, self._deadline = images_in_flight, deadline

    def load_model(self) -> LoadedModel:
        model = catalog.load(self._model, self._settings)
        slots = model.images_in_flight or self._images_in_flight
        return LoadedModel(model, ThreadPoolExecutor(slots, "model"), slots) if slots else LoadedModel(model)

    def run_inference(
        self, batch: Sequence[ImageUnit], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[str]:
        for unit in batch:
            if self._store.has_unit(unit.name):  # by an attempt before, or another program
                yield unit.name
                continue
            started = time.monotonic()
            extracted = (
                extract_unit(unit, model, self._read_images, self._deadline)
                if time.time() < self._deadline
                else None
            )
            Metrics.distribution("landmarks", "extract_milliseconds").update(
                round(1000 * (time.monotonic() - started))
            )
            if extracted is not None:
                self._write(extracted)
                yield unit.name

    def _write(self, unit: UnitFeatures) -> None:
        started = time.monotonic()
        self._store.write_unit(unit.unit, unit.features, unit.failures, unit.dimensions)
        Metrics.counter("landmarks", "extract_out").inc(len(unit.features))
        Metrics.counter("landmarks", "extract_failed").inc(len(unit.failures))
        Metrics.distribution("landmarks", "write_shard_milliseconds").update(
            round(1000 * (time.monotonic() - started))
        )

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 1}  # a unit is a batch already

    def get_num_bytes(self, batch: Sequence[ImageUnit]) -> int:
        return sum(image.size_bytes for unit in batch for image in unit.images)

    def get_metrics_namespace(self) -> str:
        return "landmarks"
