"""The index job: labelled photographs in, a feature store out."""

import dataclasses
import functools
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import budget, integrity, lock, model_choice, outputs, pilot, runner
from beam_pipeline.config import ConfigError, IndexConfig
from transforms import features
from transforms.features import DelgModelHandler, ExtractFeatures, ReadImages, check_model, try_suspects
from transforms.images import read_images
from transforms.models.catalog import EMBEDDED
from transforms.patterns import MatchError, match_images
from transforms.storage import files, tables
from transforms.storage.feature_store import FeatureStore, failure_table
from transforms.storage.worklist import PlannedUnit, ReadUnits, make_units, read_unit, write_plan
from transforms.types import Failure, ImageRef, ImageUnit, ReadingConfig

_SLICE = 1 << 16  # landmarks as Python's text at a time


def build(
    pipeline: beam.Pipeline,
    config: IndexConfig,
    choice: model_choice.ModelChoice,
    plan_root: str,
    planned: Sequence[PlannedUnit],
    deadline: float = math.inf,
) -> beam.PCollection[str]:
    """The graph of the index job: the planned units' features go to the store; gives the names of the
    finished units.
    """
    extraction = Extraction(plan_root, config.output, choice, config.reading, tuple(planned), deadline)
    return pipeline | "Extract" >> extraction.with_resource_hints(
        **runner.resource_hints(pipeline.options, features.MIN_RAM)
    )


@dataclasses.dataclass
class Extraction(beam.PTransform):
    """Begins a pipeline: extracts the planned units that a feature store lacks; gives the names of all that
    it then has.

    Attributes:
      plan_root: where the plan lies.
      store_root: the feature store.
      choice: the model and its settings.
      reading: how photographs are read.
      planned: units of the plan.
      deadline: as time.time() tells it; units that are not done by then are left out.
    """

    plan_root: str
    store_root: str
    choice: model_choice.ModelChoice
    reading: ReadingConfig
    planned: tuple[PlannedUnit, ...]
    deadline: float = math.inf

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[str]:
        there = set(FeatureStore(self.store_root).units())
        done = [unit.name for unit in self.planned if unit.name in there]
        missing = [unit for unit in self.planned if unit.name not in there]
        parts = [begin | "DoneBefore" >> beam.Create(done, reshuffle=False).with_output_types(str)]
        if missing and time.time() < self.deadline:  # no model is loaded where there is nothing for it to do
            handler = DelgModelHandler(
                self.choice.model,
                self.choice.settings,
                image_reader(self.choice, self.reading),
                FeatureStore(self.store_root),
                runner.images_in_flight(begin.pipeline.options),
                self.deadline,
            )
            parts.append(
                begin
                | "Missing" >> beam.Create(missing, reshuffle=False).with_output_types(PlannedUnit)
                | ReadUnits(self.plan_root)
                | ExtractFeatures(handler)
            )
        return parts | beam.Flatten()


def image_reader(choice: model_choice.ModelChoice, reading: ReadingConfig) -> ReadImages:
    """Reads and decodes photographs as the model's settings and the options want them."""
    return functools.partial(read_images, max_side=choice.settings.max_image_side, reading=reading)


def extraction_phase(store_root: str, planned: Sequence[PlannedUnit]) -> runner.Phase:
    """Progress of extraction in images."""
    store, images = FeatureStore(store_root), {unit.name: unit.images for unit in planned}
    return runner.Phase(
        "extract", sum(images.values()), lambda: sum(images.get(unit, 0) for unit in store.units())
    )


def match(patterns: Sequence[str]) -> list[ImageRef]:
    """`patterns.match_images` with wrong patterns as wrong usage."""
    try:
        return match_images(patterns)
    except MatchError as e:
        raise ConfigError(str(e)) from e


def labelled(images: Sequence[ImageRef], labels: pa.Table) -> tuple[list[ImageRef], list[ImageRef]]:
    """Images with their landmark, and those that `labels` (image_id, landmark_id) does not hold."""
    ids = pa.array([ref.image_id for ref in images], pa.string())
    rows = pc.index_in(ids, value_set=labels.column("image_id").combine_chunks())
    landmarks = labels.column("landmark_id").take(rows)
    texts = itertools.chain.from_iterable(
        landmarks.slice(at, _SLICE).to_pylist() for at in range(0, len(landmarks), _SLICE)
    )
    known, unlabelled = [], []
    for ref, landmark in zip(images, texts):
        if landmark is None:
            unlabelled.append(ref)
        else:  # a landmark's images share its text
            known.append(ImageRef(ref.image_id, ref.uri, ref.size_bytes, sys.intern(landmark)))
    return known, unlabelled


def _asked(
    config: IndexConfig, base: dict[str, Any] | None
) -> tuple[model_choice.ModelChoice, list[ImageUnit], list[ImageRef]]:
    """The model, the units of all labelled images matched, and the images without a label; `base` is the
    manifest to append to.
    """
    labels = tables.read_labels(config.labels)
    pa.default_memory_pool().release_unused()  # of a million labels 150 MB
    images, unlabelled = labelled(match(config.images), labels)
    if not images:
        raise ConfigError(
            f"none of the {len(unlabelled)} images matched has a label in {config.labels} (the first is "
            f"{unlabelled[0].image_id!r})"
        )
    choice = (
        model_choice.choose_as_indexed(config.model, config.overrides, base, config.output)
        if base
        else model_choice.choose(config.model or EMBEDDED, config.overrides)
    )
    return (
        choice,
        make_units(images, [choice.extraction(), choice.fingerprint, dataclasses.asdict(config.reading)]),
        unlabelled,
    )


def plan(config: IndexConfig, options: PipelineOptions) -> int:
    """Prints what `run` would take, by a pilot; writes nothing, and returns the exit code.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong that would stop `run` too.
    """
    choice, units, _ = _asked(
        config, outputs.read_manifest(config.output, "index") if config.append else None
    )
    pilot.print_plan(config.budget, _sample(config, options, choice, units))
    return 0


def _sample(
    config: IndexConfig,
    options: PipelineOptions,
    choice: model_choice.ModelChoice,
    units: Sequence[ImageUnit],
) -> pilot.Sample:
    there = set(FeatureStore(config.output).units())
    missing = [unit for unit in units if unit.name not in there]
    work = budget.work_of(options, images=sum(len(unit.images) for unit in missing), units=len(missing))
    reader = image_reader(choice, config.reading)
    return pilot.Sample(
        choice.model, choice.settings, reader, pilot.sample_images(missing), work, pilot.beam_flags(options)
    )


def run(config: IndexConfig, options: PipelineOptions) -> int:
    """Makes an index, adds to one, or goes on with either where it was stopped; returns the exit code.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed.
    """
    started = time.monotonic()
    base = outputs.read_manifest(config.output, "index") if config.append else None
    choice, units, unlabelled = _asked(config, base)
    try_suspects(choice.model, choice.settings, image_reader(choice, config.reading))
    settings = {
        "command": "index",
        "format": outputs.FORMAT,
        "model": choice.fingerprint,
        "extraction": choice.extraction(),
        "reading": dataclasses.asdict(config.reading),
        "images_and_labels": outputs.digest([unit.name for unit in units]),
    }
    if base is not None:
        return _append(config, options, choice, units, unlabelled, settings, started)
    with outputs.opened(config.output, settings, config.overwrite) as unfinished:
        if not unfinished:
            print(f"{config.output} is finished; nothing to do")
            counts = outputs.read_manifest(config.output, "index")["counts"]
        else:
            manifest = _extract(config, options, choice, config.output, units, unlabelled, started)
            outputs.finish(config.output, manifest)
            counts = manifest["counts"]
            _print_summary(config.output, counts, manifest["seconds"]["total"])
    return outputs.exit_code(
        config.output, counts["failed"], counts["indexed"] + counts["failed"], config.max_failure_rate
    )


def _append(
    config: IndexConfig,
    options: PipelineOptions,
    choice: model_choice.ModelChoice,
    units: list[ImageUnit],
    unlabelled: list[ImageRef],
    settings: dict[str, Any],
    started: float,
) -> int:
    """Adds units to a finished index: its manifest is replaced at the end, and until then readers see the
    index as it was.

    <index>/appended/<digest> holds the settings and the plan; shards lie among the others, under names of
    their own.
    """
    name = settings["images_and_labels"]
    with lock.held(config.output):
        base = outputs.read_manifest(config.output, "index")  # again: another may have added to it meanwhile
        if name in base["appended"]:
            print(f"{config.output} has these images and labels already; nothing to do")
            counts = base["appended"][name]
        else:
            if not base.get("complete", True):
                raise ConfigError(
                    f"{config.output} was not finished in time: run the same `landmarks index` again before "
                    "adding to it"
                )
            integrity.check_sizes(config.output, base)
            differing = list(outputs.differences(base["reading"], settings["reading"]))
            if differing:
                raise ConfigError(f"{config.output} was made with other settings: {'; '.join(differing)}")
            _refuse_known(config.output, base, units)
            root = files.join(config.output, "appended", name)
            files.write_json(files.join(root, "settings.json"), settings)
            manifest = _extract(config, options, choice, root, units, unlabelled, started)
            counts = manifest["counts"]
            if not manifest["complete"]:
                print(
                    f"{config.output} stays as it was: {counts['out_of_time']:,} images were not reached in "
                    "time; the same command goes on from here"
                )
                return 0
            manifest["shards"] = base["shards"] + manifest["shards"]
            manifest["appended"] = {**base["appended"], name: counts}
            manifest["counts"] = {key: value + counts[key] for key, value in base["counts"].items()}
            manifest["failures"] = dict(
                sorted((Counter(base["failures"]) + Counter(manifest["failures"])).items())
            )
            manifest["model"] = base["model"]
            outputs.finish(config.output, manifest)
            _print_summary(config.output, counts, manifest["seconds"]["total"])
    return outputs.exit_code(
        config.output, counts["failed"], counts["indexed"] + counts["failed"], config.max_failure_rate
    )


def _refuse_known(index: str, manifest: dict[str, Any], units: Sequence[ImageUnit]) -> None:
    store, new = FeatureStore(index), {ref.image_id for unit in units for ref in unit.images}
    known: list[str] = []
    for shard in manifest["shards"]:
        known += new.intersection(
            store.read_images(shard["unit"], ["image_id"]).column("image_id").to_pylist()
        )
    if known:
        more = ", ..." if len(known) > 10 else ""
        raise ConfigError(
            f"{len(known):,} of {len(new):,} images are in {index} already: "
            f"{', '.join(sorted(known)[:10])}{more}"
        )


def _extract(
    config: IndexConfig,
    options: PipelineOptions,
    choice: model_choice.ModelChoice,
    root: str,
    units: list[ImageUnit],
    unlabelled: Sequence[ImageRef],
    started: float,
) -> dict[str, Any]:
    """Extracts what the index lacks of `units`, whose plan lies below `root`; returns a manifest of them
    alone.
    """
    planned = write_plan(root, units)
    names = [unit.name for unit in planned]
    store = FeatureStore(config.output)
    if unlabelled:
        matched = len(unlabelled) + sum(unit.images for unit in planned)
        print(
            f"{len(unlabelled)} of {matched} images have no label and are left out, see "
            f"{config.output}/failures",
            file=sys.stderr,
        )
        rows = [
            Failure("match", ref.image_id, ref.uri, "no_label", f"not in {config.labels}")
            for ref in unlabelled
        ]
        files.write_parquet(
            files.join(config.output, "failures", f"no_label-{names[0]}.parquet"), failure_table(rows)
        )
    for line in integrity.discard_damaged(store, names):
        print(f"{line}: its unit is extracted again", file=sys.stderr)
    schedule = pilot.schedule(config.budget, lambda: _sample(config, options, choice, units))
    if not schedule.deadlines.extract:
        raise budget.OutOfTimeError(
            "no image can be extracted in time: the same `landmarks index` goes on from here, given more of "
            "it"
        )
    if schedule.plan is not None and schedule.plan.measured.dimensions:  # the pilot has loaded the model
        dimensions, has_local = schedule.plan.measured.dimensions, schedule.plan.measured.has_local
    else:
        dimensions, has_local = check_model(choice.model, choice.settings)
    metrics = runner.run_pipeline(
        lambda pipeline: build(pipeline, config, choice, root, planned, schedule.deadlines.extract),
        options,
        [extraction_phase(config.output, planned)],
    )
    late = record_out_of_time(config.output, root, planned, store)
    shards = store.summaries([unit.name for unit in planned if unit not in late])
    indexed, out_of_time = sum(shard["images"] for shard in shards), sum(unit.images for unit in late)
    images = sum(unit.images for unit in planned)
    return {
        "command": "index",
        "format": outputs.FORMAT,
        **choice.as_json(config.output),
        "reading": dataclasses.asdict(config.reading),
        "global_dimensions": dimensions,
        "has_local_features": has_local,
        "complete": not late,
        "counts": {
            "matched": images + len(unlabelled),
            "indexed": indexed,
            "failed": images - out_of_time - indexed,
            "out_of_time": out_of_time,
            "without_label": len(unlabelled),
        },
        "failures": dict(sorted(Counter(store.failures(names).column("kind").to_pylist()).items())),
        "shards": shards,
        "appended": {},
        **schedule.report(metrics),
        "seconds": {"total": round(time.monotonic() - started, 1), **runner.stage_seconds(metrics)},
    }


def record_out_of_time(
    output: str, plan_root: str, planned: Sequence[PlannedUnit], store: FeatureStore
) -> set[PlannedUnit]:
    """The units that a store still lacks after extraction; failures/out_of_time.parquet of the output names
    their images.
    """
    there = set(store.units())
    late = [unit for unit in planned if unit.name not in there]
    uri = files.join(output, "failures", "out_of_time.parquet")
    rows = [
        Failure(
            "extract",
            ref.image_id,
            ref.uri,
            "out_of_time",
            "the time budget ended before its turn; started again, the command goes on",
        )
        for unit in late
        for ref in read_unit(plan_root, unit).images
    ]
    if rows:
        files.write_parquet(uri, failure_table(rows))
    else:
        files.delete(uri)
    return set(late)


def _print_summary(output: str, counts: dict[str, int], seconds: float) -> None:
    late = (
        f", {counts['out_of_time']:,} not reached in time: the same command goes on from here"
        if counts["out_of_time"]
        else ""
    )
    rate = counts["indexed"] / seconds
    print(
        f"{output}: {counts['indexed']:,} images indexed, {counts['failed']:,} failed, in {seconds:,.1f} s "
        f"({rate:,.1f}/s){late}"
    )
