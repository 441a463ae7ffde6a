"""The index job: labelled photographs in, a feature store out."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from typing import Any, Sequence

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import models, outputs, running
from beam_pipeline.config import ConfigError, IndexConfig, ReadingConfig
from transforms import files, tables
from transforms.features import DelgModelHandler, ExtractFeatures, check_model
from transforms.images import MatchError, match_images, read_images
from transforms.stores import FeatureStore, failure_table
from transforms.types import Failure, ImageRef
from transforms.units import PlannedUnit, ReadUnits, make_units, write_plan


def build(pipeline: beam.Pipeline, config: IndexConfig, choice: models.ModelChoice, planned: Sequence[PlannedUnit]) -> beam.PCollection[str]:
    """The graph of the index job: the planned units' features go to the store; gives the names of the finished units."""
    return pipeline | "Extract" >> Extraction(config.output, config.output, choice, config.reading, tuple(planned))


@dataclasses.dataclass
class Extraction(beam.PTransform):
    """Begins a pipeline: extracts the planned units that a feature store lacks; gives the names of all of them.

    Attributes:
      plan_root: where the plan lies.
      store_root: the feature store.
      choice: the model and its settings.
      reading: how photographs are read.
      planned: units of the plan.
    """

    plan_root: str
    store_root: str
    choice: models.ModelChoice
    reading: ReadingConfig
    planned: tuple[PlannedUnit, ...]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[str]:
        there = set(FeatureStore(self.store_root).units())
        done = [unit.name for unit in self.planned if unit.name in there]
        missing = [unit for unit in self.planned if unit.name not in there]
        parts = [begin | "DoneBefore" >> beam.Create(done, reshuffle=False).with_output_types(str)]
        if missing:  # no model is loaded where there is nothing for it to do
            reader = functools.partial(
                read_images, max_side=self.choice.settings.max_image_side,
                exif_orientation=self.reading.exif_orientation, max_pixels=self.reading.max_image_pixels,
            )
            parts.append(
                begin
                | "Missing" >> beam.Create(missing, reshuffle=False).with_output_types(PlannedUnit)
                | ReadUnits(self.plan_root)
                | ExtractFeatures(self.store_root, DelgModelHandler(self.choice.model, self.choice.settings, reader))
            )
        return parts | beam.Flatten()


def extraction_phase(store_root: str, planned: Sequence[PlannedUnit]) -> running.Phase:
    """Progress of extraction in images."""
    store, images = FeatureStore(store_root), {unit.name: unit.images for unit in planned}
    return running.Phase("extract", sum(images.values()), lambda: sum(images.get(unit, 0) for unit in store.units()))


def match(patterns: Sequence[str]) -> list[ImageRef]:
    """`images.match_images` with wrong patterns as wrong usage."""
    try:
        return match_images(patterns)
    except MatchError as e:
        raise ConfigError(str(e)) from e


def labelled(images: Sequence[ImageRef], labels: pa.Table) -> tuple[list[ImageRef], list[ImageRef]]:
    """Images with their landmark, and those that `labels` (image_id, landmark_id) does not hold."""
    ids = pa.array([ref.image_id for ref in images], pa.string())
    rows = pc.index_in(ids, value_set=labels.column("image_id").combine_chunks())
    landmarks = labels.column("landmark_id").take(rows).to_pylist()
    known = [dataclasses.replace(ref, landmark_id=landmark) for ref, landmark in zip(images, landmarks) if landmark is not None]
    return known, [ref for ref, landmark in zip(images, landmarks) if landmark is None]


def run(config: IndexConfig, options: PipelineOptions) -> int:
    """Makes an index, or goes on with an unfinished one; returns the exit code.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
    """
    started = time.monotonic()
    labels = tables.read_labels(config.labels)
    images, unlabelled = labelled(match(config.images), labels)
    if not images:
        raise ConfigError(f"none of the {len(unlabelled)} images matched has a label in {config.labels} (the first is {unlabelled[0].image_id!r})")
    choice = models.choose(config.model, config.overrides)
    reading = dataclasses.asdict(config.reading)
    units = make_units(images, [choice.as_json()["extraction"], choice.fingerprint, reading])
    settings = {
        "command": "index",
        "format": outputs.FORMAT,
        "model": choice.fingerprint,
        "extraction": choice.as_json()["extraction"],
        "reading": reading,
        "images_and_labels": outputs.digest([unit.name for unit in units]),
    }
    if not outputs.prepare(config.output, settings, config.overwrite):
        print(f"{config.output} is finished; nothing to do")
        return 0
    planned = write_plan(config.output, units)
    store = FeatureStore(config.output)
    if unlabelled:
        print(f"{len(unlabelled)} of {len(images) + len(unlabelled)} images have no label and are left out, see {config.output}/failures", file=sys.stderr)
        rows = [Failure("match", ref.image_id, ref.uri, "no_label", f"not in {config.labels}") for ref in unlabelled]
        files.write_parquet(files.join(config.output, "failures", "no_label.parquet"), failure_table(rows))
    dimensions, has_local = check_model(choice.model, choice.settings)
    metrics = running.run_pipeline(
        lambda pipeline: build(pipeline, config, choice, planned), options, [extraction_phase(config.output, planned)])
    manifest = _manifest(config, choice, store, planned, len(unlabelled), dimensions, has_local)
    manifest["seconds"] = {"total": round(time.monotonic() - started, 1), **running.stage_seconds(metrics)}
    outputs.finish(config.output, manifest)
    _print_summary(config.output, manifest)
    return 0


def _manifest(
    config: IndexConfig, choice: models.ModelChoice, store: FeatureStore, planned: Sequence[PlannedUnit], unlabelled: int,
    dimensions: int, has_local: bool,
) -> dict[str, Any]:
    shards = [{"unit": unit.name, "images": store.count(unit.name)} for unit in planned]
    indexed, planned_images = sum(s["images"] for s in shards), sum(u.images for u in planned)
    return {
        "command": "index",
        "format": outputs.FORMAT,
        **choice.as_json(),
        "reading": dataclasses.asdict(config.reading),
        "global_dimensions": dimensions,
        "has_local_features": has_local,
        "counts": {
            "matched": planned_images + unlabelled, "indexed": indexed, "failed": planned_images - indexed, "without_label": unlabelled,
        },
        "shards": shards,
    }


def _print_summary(output: str, manifest: dict[str, Any]) -> None:
    counts, seconds = manifest["counts"], manifest["seconds"]["total"]
    print(f"{output}: {counts['indexed']:,} images indexed, {counts['failed']:,} failed, in {seconds:,.1f} s ({counts['indexed'] / seconds:,.1f}/s)")
