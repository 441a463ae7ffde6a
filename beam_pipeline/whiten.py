"""The whiten job: an index's global descriptors whitened, by a whitening that is learned on them and belongs
to its model from then on.

Units of whitened descriptors are written beside the others, under names of their own; the manifest names them
at the end, and until then readers see the index as it was.
"""

import dataclasses
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import index_parts, integrity, layout, lock, outputs, recipe, runner
from beam_pipeline.config import ConfigError, ExtractionOverrides, WhitenConfig
from beam_pipeline.extraction import ExtractionTask
from beam_pipeline.manifest import IndexManifest, digest
from beam_pipeline.recipe import Recipe
from transforms import features, whitening
from transforms.arrays.whitening import Whitening
from transforms.database_augmentation import AugmentIndex, augmented_shards
from transforms.models import catalog
from transforms.storage import files, worklist
from transforms.storage.feature_store import FeatureStore
from transforms.storage.overlays import compacted_name, planned


def run(config: WhitenConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Whitens an index, or goes on where it was stopped; returns the exit code.

    Raises:
      ConfigError: there is no such index, it has too few photographs or another whitening than asked for, or
        its model is another now, or the embedded one, which is whitened already.
      DamagedError: files of the index are damaged.
      PipelineError: the pipeline failed.
    """
    root, started = config.index, time.monotonic()
    outputs.read_manifest(root, IndexManifest)  # before a lock makes a folder of what is none
    with lock.held(root):
        base = outputs.read_manifest(root, IndexManifest)
        if uri := catalog.components(base.recipe.model).whitening:
            _check_asked(config, base, Whitening.from_bytes(files.read_bytes(uri)))
            print(f"{root} is whitened already, to {base.global_dimensions} dimensions; nothing to do")
            return 0
        if catalog.components(base.recipe.model).first == catalog.EMBEDDED:
            raise ConfigError(
                f"{root} is of the embedded model, whose descriptors are whitened already; a second time it "
                "would recognize less. `landmarks index --global_dimensions N` keeps fewer dimensions"
            )
        if not base.complete:
            raise ConfigError(f"{root} was not finished in time: run the same `landmarks index` again first")
        integrity.check_sizes(root, base)
        overrides, reading = ExtractionOverrides(), base.recipe.reading
        found = recipe.choose_as_indexed(
            config.model, config.local_model, overrides, reading, base.recipe, base.global_dimensions
        )
        uri = _learned(config, base)
        model = catalog.combined(*catalog.components(found.model)[:2], uri)
        made = dataclasses.replace(base.recipe, model=model, fingerprint=catalog.fingerprint(model))
        manifest = _whiten(root, base, made, options, engine)
        print(
            f"{root}: {sum(s.images for s in manifest.shards):,} descriptors whitened, from "
            f"{base.global_dimensions} to {manifest.global_dimensions} dimensions, in "
            f"{time.monotonic() - started:,.1f} s"
        )
    return 0


def _check_asked(config: WhitenConfig, base: IndexManifest, has: Whitening) -> None:
    """Raises ConfigError where an index's whitening is not the one that is asked for."""
    width = base.global_dimensions
    if config.dimensions in (None, width, has.dimensions) and (
        has.shrinkage is None or config.shrinkage in (None, has.shrinkage)
    ):
        return
    shrinkage = "" if has.shrinkage is None else f" with a shrinkage of {has.shrinkage:g}"
    raise ConfigError(
        f"{config.index} is whitened already, to {width} dimensions{shrinkage}, and cannot be whitened in "
        "another way: that needs an index made anew"
    )


def _learned(config: WhitenConfig, base: IndexManifest) -> str:
    """The file of the whitening, learned where it is not there yet."""
    root = config.index
    most = config.DIMENSIONS if config.dimensions is None else config.dimensions
    shrinkage = config.SHRINKAGE if config.shrinkage is None else config.shrinkage
    uri = files.join(root, "whitening", f"{digest([base.digest(root), most, shrinkage])}.npz")
    if not files.exists(uri):
        units = [(shard.unit, shard.images) for shard in base.shards]
        images = sum(count for _, count in units)
        dimensions = min(most, images // 2)
        if not dimensions:
            raise ConfigError(f"{root} has {images} photographs: too few to learn a whitening on")
        if images < 2 * min(most, base.global_dimensions):
            print(
                f"{images:,} photographs are few to learn a whitening on: {dimensions} dimensions are kept, "
                "half as many"
            )
        learned = whitening.learn(FeatureStore(root), units, dimensions, shrinkage)
        learned = dataclasses.replace(learned, dimensions=most)  # so that the same command finds it
        files.write_bytes(uri, learned.to_bytes())
    return uri


def _whiten(
    root: str, base: IndexManifest, made: Recipe, options: PipelineOptions, engine: PipelineRunner | None
) -> IndexManifest:
    """Writes what the index lacks, then its manifest, and deletes what it needs no more."""
    store = FeatureStore(root)
    tasks = {}
    for part in ("", *base.appended):
        refs = worklist.read_worklist(index_parts.folder(root, part))
        tasks[part] = tuple(ExtractionTask.of(refs, how, root, "") for how in (base.recipe, made))
    new_of = {unit: new for old, whitened in tasks.values() for unit, new in zip(old.names, whitened.names)}
    if unknown := [shard.unit for shard in base.shards if planned(shard.unit) not in new_of]:
        raise ConfigError(
            f"{root} is of an earlier version and cannot be whitened (its unit {unknown[0]} is in no plan)"
        )

    def whitened_name(unit: str) -> str:
        new = new_of[planned(unit)] + unit.removeprefix(planned(unit))
        return new if new == planned(new) else compacted_name(new)  # what was removed is not written again

    pairs = [(shard.unit, whitened_name(shard.unit)) for shard in base.shards]
    wanted = {new for _, new in pairs}
    augmented = augmented_shards(root).complete(base.derived_list)

    def build(pipeline: beam.Pipeline) -> None:
        hints = runner.resource_hints(pipeline.options, features.MIN_RAM)
        whiten = whitening.WhitenUnits(root, catalog.components(made.model).whitening or "")
        units = (
            pipeline
            | "Units" >> beam.Create(pairs).with_output_types(tuple[str, str])
            | "Whiten" >> whiten.with_resource_hints(**hints)
        )
        if augmented:
            _ = units | "Augment" >> AugmentIndex(root)

    phase = runner.Phase("whiten", len(pairs), lambda: len(wanted & set(store.units())), " units")
    runner.run_pipeline(build, options, [phase], engine)
    if missing := wanted - set(store.units()):
        raise runner.lost_work(f"{len(missing):,} of {len(wanted):,} units were not whitened")
    shards = tuple(store.summaries([new for _, new in pairs]))
    columns = store.read_images(next(s.unit for s in shards if s.images), ["global_descriptor"])
    manifest = dataclasses.replace(
        base,
        recipe=made,
        global_dimensions=columns.column(0).type.list_size,
        shards=shards,
        appended={tasks[part][1].digest: counts for part, counts in base.appended.items()},
    )
    if augmented:
        index_parts.check_derived(root, manifest)
    for part, (old, whitened) in tasks.items():
        folder = index_parts.folder(root, part and whitened.digest)
        index_parts.rename_unlabelled(root, old, whitened)
        if part:
            worklist.write_worklist(folder, whitened.units)
        settings = outputs.read_settings(index_parts.folder(root, part))
        changed = {**settings, **made.identity, "images_and_labels": whitened.digest}
        files.write_json(files.join(folder, outputs.SETTINGS), changed)
    outputs.finish(root, manifest)
    for part in base.appended:
        layout.delete(root, "index", below=f"appended/{part}/")
    index_parts.prune(tasks[""][1], manifest)
    return manifest
