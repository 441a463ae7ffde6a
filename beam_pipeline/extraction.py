"""Extraction, as index and recognize share it: photographs in, shards of a feature store out."""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Iterator, Sequence

import apache_beam as beam

from beam_pipeline import integrity, runner
from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import digest
from beam_pipeline.recipe import Recipe
from transforms import features
from transforms.extraction import ExtractFeatures
from transforms.patterns import MatchError, Matches, match_images
from transforms.storage import files, object_stores, worklist
from transforms.storage.feature_store import FeatureStore, ShardSummary, failure_table
from transforms.storage.worklist import ListedUnit, ReadUnits, make_units, write_worklist
from transforms.types import Failure, ImageRef, ImageUnit

# Of many photographs in a store, so many have to be forbidden before all are held to be.
_TRIED = 8


def match(
    patterns: Sequence[str], image_ids: str = "name", label_levels: int = 0, exclude: Sequence[str] = ()
) -> Matches:
    """`patterns.match_images` with wrong patterns as wrong usage; what it says goes to standard error.

    Raises:
      ConfigError: no photographs, or those of another machine cannot be read at all.
    """
    try:
        found = match_images(
            patterns, lambda line: print(line, file=sys.stderr), image_ids, label_levels, exclude
        )
    except MatchError as e:
        raise ConfigError(str(e)) from e
    remote = [ref.uri for ref in found.images if not files.is_local(ref.uri)]
    some = remote[:: max(1, len(remote) // _TRIED)]
    if some and object_stores.is_closed(some[0], some):
        raise ConfigError(
            f"{some[0]} may be listed but not read, nor may {len(some) - 1} others that were tried: see the "
            "credentials, and what they allow"
        )
    return found


def naming(image_ids: str) -> dict[str, str]:
    """What settings say of the photographs' ids: nothing where they are the names."""
    return {} if image_ids == "name" else {"image_ids": image_ids}


def input_files(patterns: Sequence[str], images: Sequence[ImageRef]) -> Iterator[tuple[str, str]]:
    """What --images reads, for `outputs.check_inputs`: lists, and photographs."""
    yield from (("the list", pattern[1:]) for pattern in patterns if pattern.startswith("@"))
    # Photographs have other suffixes than what a job writes, unless one is named by itself.
    suffixes = (".json", ".parquet", ".bin", ".csv")
    yield from (("the photograph", ref.uri) for ref in images if ref.uri.lower().endswith(suffixes))


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What a store has of a task when its pipeline is over.

    Attributes:
      shards: the finished ones, in the order of the units.
      out_of_time: photographs of the others.
    """

    shards: tuple[ShardSummary, ...]
    out_of_time: int


@dataclasses.dataclass(frozen=True)
class ExtractionTask:
    """Photographs whose features a store is to have.

    Attributes:
      recipe: how photographs become features.
      units: of photographs, named by all that their features depend on.
      store: where the features go.
      root: the work list lies below it.
    """

    recipe: Recipe
    units: tuple[ImageUnit, ...]
    store: FeatureStore
    root: str

    @classmethod
    def of(cls, images: Sequence[ImageRef], recipe: Recipe, store: str, root: str) -> "ExtractionTask":
        """The task of extracting `images` into the store in the folder `store`."""
        return cls(
            recipe, tuple(make_units(images, list(recipe.identity.values()))), FeatureStore(store), root
        )

    @functools.cached_property
    def listed(self) -> tuple[ListedUnit, ...]:
        """The units by their places in the work list."""
        return tuple(worklist.places(self.units))

    @property
    def names(self) -> list[str]:
        """Names of the units."""
        return [unit.name for unit in self.units]

    @property
    def refs(self) -> list[ImageRef]:
        """The photographs, in the order of the units."""
        return [ref for unit in self.units for ref in unit.images]

    @property
    def images(self) -> int:
        """Number of photographs."""
        return sum(len(unit.images) for unit in self.units)

    @property
    def digest(self) -> str:
        """Fingerprint of the photographs, their labels, and the recipe."""
        return digest(self.names)

    def missing(self) -> list[ImageUnit]:
        """The units that the store lacks."""
        there = set(self.store.units())
        return [unit for unit in self.units if unit.name not in there]

    def try_suspects(self) -> None:
        """See `features.try_suspects`."""
        features.try_suspects(self.recipe.model, self.recipe.settings, self.recipe.reader)

    def discard_damaged(self) -> None:
        """Makes damaged shards unfinished again, and says which."""
        for line in integrity.discard_damaged(self.store, self.names):
            print(f"{line}: its unit is extracted again", file=sys.stderr)

    def discard_let_in(self) -> None:
        """Makes shards unfinished again in which photographs failed for a limit that lets them in now."""
        for unit in self.store.let_in(self.names, self.recipe.reading):
            self.store.discard(unit)

    def write_worklist(self) -> None:
        """Writes the work list, from which workers read their units."""
        write_worklist(self.root, self.units)

    def transform(self, deadline: float = math.inf) -> "ExtractMissing":
        """The beginning of a pipeline that does it."""
        return ExtractMissing(self.recipe, self.store.root, self.root, self.listed, deadline)

    def phase(self) -> runner.Phase:
        """Progress in photographs."""
        images = {unit.name: len(unit.images) for unit in self.units}
        return runner.Phase(
            "extract", sum(images.values()), lambda: sum(images.get(unit, 0) for unit in self.store.units())
        )

    def conclude(self, output: str, deadline: float) -> Extracted:
        """What the store has when the pipeline has ended well; failures/out_of_time.parquet of the `output`
        names the photographs of the units that it still lacks.

        Raises:
          PipelineError: units are missing though their deadline has not passed: the engine lost them.
        """
        late = self.missing()
        if late and time.time() < deadline:
            raise runner.lost_work(
                f"{len(late):,} of {len(self.units):,} units of photographs were not extracted"
            )
        rows = [
            Failure(
                "extract",
                ref.image_id,
                ref.uri,
                "out_of_time",
                "the time budget ended before its turn; started again, the command goes on",
            )
            for unit in late
            for ref in unit.images
        ]
        uri = files.join(output, "failures", "out_of_time.parquet")
        if rows:
            files.write_parquet(uri, failure_table(rows))
        else:
            files.delete(uri)
        missing = {unit.name for unit in late}
        shards = self.store.summaries([name for name in self.names if name not in missing])
        return Extracted(tuple(shards), len(rows))


@dataclasses.dataclass
class ExtractMissing(beam.PTransform):
    """Begins a pipeline: extracts the listed units that a feature store lacks; gives the names of all that
    it then has.

    Attributes:
      recipe: the model, its settings, and how photographs are read.
      store_root: the feature store.
      worklist_root: where the work list lies.
      listed: units of the list.
      deadline: as time.time() tells it; units that are not done by then are left out.
    """

    recipe: Recipe
    store_root: str
    worklist_root: str
    listed: tuple[ListedUnit, ...]
    deadline: float = math.inf

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[str]:
        options, store = begin.pipeline.options, FeatureStore(self.store_root)
        there = set(store.units())
        done = [unit.name for unit in self.listed if unit.name in there]
        missing = [unit for unit in self.listed if unit.name not in there]
        parts = [begin | "DoneBefore" >> beam.Create(done, reshuffle=False).with_output_types(str)]
        if missing and time.time() < self.deadline:  # no model is loaded where there is nothing for it to do
            recipe, in_flight = self.recipe, runner.images_in_flight(options)
            extract = ExtractFeatures(
                recipe.model,
                self.store_root,
                recipe.settings,
                recipe.reading,
                in_flight,
                self.deadline,
                recipe.fingerprint,
            )
            parts.append(
                begin
                | "Missing" >> beam.Create(missing, reshuffle=False).with_output_types(ListedUnit)
                | ReadUnits(self.worklist_root)
                | extract
            )
        return parts | beam.Flatten()
