"""Whitening of an index: learned on its own global descriptors, and written as units of their own."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.arrays.whitening import Whitening
from transforms.processes.settings import one_thread
from transforms.storage import files
from transforms.storage.feature_store import FeatureStore, descriptors_of

# Descriptors that a whitening is learned on: more move it no more, and take longer.
MAX_ROWS = 100_000


def learn(
    store: FeatureStore, units: Sequence[tuple[str, int]], dimensions: int, shrinkage: float
) -> Whitening:
    """Learns the whitening of the images of some units, given as (name, images); see `Whitening.of_blocks`.

    Of more than MAX_ROWS images every second, third, ... unit is used.

    Raises:
      ValueError: the descriptors do not differ.
    """
    every = -(-sum(images for _, images in units) // MAX_ROWS)
    tables = (store.read_images(unit, ["global_descriptor"]) for unit, images in units[::every] if images)
    with one_thread:  # sums by several threads have other bits
        return Whitening.of_blocks(map(descriptors_of, tables), dimensions, shrinkage)


@dataclasses.dataclass
class WhitenUnits(beam.PTransform):
    """(unit, new unit) by name -> names of the new units (str), whose shards the feature store then has:
    those of the old ones with whitened global descriptors.

    Attributes:
      store: folder of the feature store.
      whitening: URI of the whitening's file.
    """

    store: str
    whitening: str

    def expand(self, units: beam.PCollection[tuple[str, str]]) -> beam.PCollection[str]:
        return units | "WhitenUnit" >> beam.ParDo(_WhitenUnit(FeatureStore(self.store), self.whitening))


@beam.typehints.with_input_types(tuple[str, str])
@beam.typehints.with_output_types(str)
class _WhitenUnit(beam.DoFn):
    def __init__(self, store: FeatureStore, whitening: str) -> None:
        self._store, self._uri = store, whitening

    def setup(self) -> None:
        self._whitening = Whitening.from_bytes(files.read_bytes(self._uri))

    def process(self, names: tuple[str, str]) -> Iterator[str]:
        unit, new = names
        started = time.monotonic()
        if not self._store.has_unit(new):
            self._store.write_projected(new, self._store, unit, self._whitening)
            Metrics.counter("landmarks", "whiten_out").inc(self._store.summary(new).images)
        Metrics.distribution("landmarks", "whiten_milliseconds").update(
            round(1000 * (time.monotonic() - started))
        )
        yield new
