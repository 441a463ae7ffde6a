"""The index job: labelled photographs in, a feature store out."""

import collections
import dataclasses
import functools
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import (
    budget,
    cleaning,
    costs,
    index_parts,
    layout,
    left_out,
    lock,
    outputs,
    pilot,
    recipe,
    runner,
)
from beam_pipeline.changes import kinds_failed
from beam_pipeline.config import ConfigError, FullSize, IndexConfig, PipelineError
from beam_pipeline.extraction import ExtractionTask, input_files, match, naming
from beam_pipeline.manifest import FORMAT, IndexCounts, IndexManifest, versions
from transforms import features
from transforms.database_augmentation import AugmentIndex
from transforms.models import catalog
from transforms.storage import files, spelling, tables, worklist
from transforms.storage.feature_store import FeatureStore, ShardSummary, failure_table
from transforms.types import Failure, ImageRef

_SLICE = 1 << 16  # landmarks as Python's text at a time


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is to be done.

    Attributes:
      config: what was asked for.
      started: when, as time.monotonic() tells it.
      task: the labelled photographs.
      unlabelled: those without a label, which are left out.
      image_ids: what the ids are, see `patterns.match_images`.
      base: the manifest of the index to add to; None for a new index.
      labels_without_image: labels of the table that no photograph has, of the index that is added to neither.
      passed_over: how many files the suffix passed over, by suffix.
      others: the shards that the index has beside these.
    """

    config: IndexConfig
    started: float
    task: ExtractionTask
    unlabelled: Sequence[ImageRef]
    image_ids: str
    base: IndexManifest | None
    labels_without_image: int
    passed_over: Mapping[str, int]
    others: tuple[ShardSummary, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What the index depends on; JSON-able."""
        return {
            "command": "index",
            "format": FORMAT,
            **self.task.recipe.identity,
            **naming(self.image_ids),
            "images_and_labels": self.task.digest,
        }


def build(
    pipeline: beam.Pipeline, task: ExtractionTask, deadline: float = math.inf, others: Sequence[str] = ()
) -> beam.PCollection[str]:
    """The graph of the index job: the features that the store lacks go there, then the augmented descriptors
    of these units and `others`; gives the name of their list.
    """
    hints = runner.resource_hints(pipeline.options, features.MIN_RAM)
    units = pipeline | "Extract" >> task.transform(deadline).with_resource_hints(**hints)
    if others:
        rest = pipeline | "Others" >> beam.Create(list(others), reshuffle=False).with_output_types(str)
        units = (units, rest) | "All" >> beam.Flatten()
    return units | "Augment" >> AugmentIndex(task.store.root, deadline)


def labelled(images: Sequence[ImageRef], labels: pa.Table) -> tuple[list[ImageRef], list[ImageRef]]:
    """Images with their landmark, and those that `labels` (image_id, landmark_id) does not hold."""
    ids = pa.array([ref.image_id for ref in images], pa.string())
    rows = spelling.index_in(ids, labels.column("image_id").combine_chunks())
    landmarks = labels.column("landmark_id").take(rows)
    texts = itertools.chain.from_iterable(
        landmarks.slice(at, _SLICE).to_pylist() for at in range(0, len(landmarks), _SLICE)
    )
    known, unlabelled = [], []
    for ref, landmark in zip(images, texts):
        if landmark is None:
            unlabelled.append(ref)
        else:  # a landmark's images share its text
            known.append(ImageRef(ref.image_id, ref.uri, ref.size_bytes, sys.intern(landmark), ref.version))
    return known, unlabelled


def _labelled(
    config: IndexConfig, labels: pa.Table | None, matched: Sequence[ImageRef]
) -> tuple[list[ImageRef], list[ImageRef]]:
    """The images matched by whether they have a label: in the table `labels`, or None, that of their folder.
    Says how many have none.
    """
    if labels is None:
        images = [ref for ref in matched if ref.landmark_id is not None]
        unlabelled = [ref for ref in matched if ref.landmark_id is None]
        beside, problem = "", "lie in no folder below the pattern, which would be their label,"
        where = f"lies in a folder below {' '.join(config.images)}: name the folder that holds those"
        counts = collections.Counter(ref.landmark_id for ref in images)
        if most := ", ".join(f"{count:,} {name}" for name, count in counts.most_common(3)):
            print(
                f"landmarks by their folders: {len(counts):,}, most photographs in: {most}", file=sys.stderr
            )
    else:
        images, unlabelled = labelled(matched, labels)
        label_ids, problem, beside = labels.column("image_id").combine_chunks(), "have no label", ""
        if unlabelled:
            of_none = label_ids.filter(pc.invert(pc.is_in(label_ids, left_out.ids_of(images))))
            beside = left_out.beside(left_out.ids_of(unlabelled), of_none, config.labels)
        where = f"has a label in {config.labels}: labels name {label_ids[0].as_py()!r}"
    if not images:
        first = unlabelled[0].image_id
        raise ConfigError(
            f"none of the {len(matched)} images matched {where}, photographs are {first!r}{beside}"
        )
    if unlabelled:
        print(
            f"{len(unlabelled)} of {len(matched)} images {problem} and are left out, see "
            f"{config.output}/failures{beside}",
            file=sys.stderr,
        )
    return images, unlabelled


def prepare(config: IndexConfig) -> Prepared:
    """Finds the photographs, their labels, the model and, to add to it, the index.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong.
    """
    started = time.monotonic()
    base = outputs.read_manifest(config.output, IndexManifest) if config.append else None
    image_ids = _image_ids(config, base)
    labels = None
    if not config.label_levels:
        if re.fullmatch("folders?(:.*)?", config.labels) and not os.path.exists(config.labels):
            raise ConfigError(
                f"--labels {config.labels}: there is no such file, and the word is folders, or folders:2 to "
                "folders:9"
            )
        labels = tables.read_labels(config.labels, image_ids)
    pa.default_memory_pool().release_unused()  # of a million labels much
    matched, passed_over = match(config.images, image_ids, config.label_levels, config.exclude)
    tables_read = [("--labels", config.labels)] if labels is not None else []
    outputs.check_inputs(config.output, "index", [*tables_read, *input_files(config.images, matched)])
    left_out.say_passed_over(len(matched), passed_over)
    images, unlabelled = _labelled(config, labels, matched)
    lacking = 0
    if labels is not None:
        ids = left_out.ids_of(matched)
        if base:
            there = [one.planned.image_id for one in index_parts.known(config.output, base)]
            ids = pa.concat_arrays([ids, pa.array(there, pa.string())])
        lacking = left_out.labels_without_image(
            labels.column("image_id").combine_chunks(), ids, config.labels
        )
    if base:
        made = recipe.choose_as_indexed(
            config.model,
            config.local_model,
            config.overrides,
            config.reading,
            base.recipe,
            base.global_dimensions,
        )
    else:
        made = recipe.choose(
            catalog.combined(config.model or catalog.EMBEDDED, config.local_model),
            config.overrides,
            config.reading,
        )
    task = ExtractionTask.of(images, made, config.output, config.output)
    return Prepared(config, started, task, unlabelled, image_ids, base, lacking, passed_over)


def _image_ids(config: IndexConfig, base: IndexManifest | None) -> str:
    if base is not None and config.image_ids not in (None, base.image_ids):
        raise ConfigError(
            f"--image_ids {config.image_ids} differs from the index's {base.image_ids}: one photograph would "
            "have two ids"
        )
    return base.image_ids if base else config.image_ids or "name"


def plan(config: IndexConfig, options: PipelineOptions, size: FullSize) -> int:
    """Prints what `run` would take, by a pilot; writes nothing, and returns the exit code.

    Args:
      config: what is asked for.
      options: of Beam.
      size: for how many photographs, of which these are a sample.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong that would stop `run` too.
    """
    prices = costs.read_prices(size.prices) if size.is_given else None
    task = prepare(config).task
    sample = pilot.sample_of(task.recipe, task.missing(), options)
    sample = dataclasses.replace(sample, work=costs.at_size(sample.work, size))
    pilot.print_plan(config.budget, sample, lambda plan: costs.format_costs(plan, config.output, prices))
    return 0


def run(config: IndexConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Makes an index, adds to one, or goes on with either where it was stopped; returns the exit code.

    Args:
      config: what is asked for.
      options: of Beam.
      engine: what runs the pipeline; by default the runner that `options` name.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed.
    """
    prepared = prepare(config)
    prepared.task.try_suspects()
    extract = functools.partial(_extract, options=options, engine=engine)
    augment = functools.partial(cleaning.augment, options=options, engine=engine)
    if prepared.base is None:
        counts = _make(prepared, extract)
        lost, tried = counts.failed, counts.indexed + counts.failed
    else:
        lost, tried = _append(prepared, extract, augment)
    return outputs.exit_code(config.output, lost, tried, config.max_failure_rate)


def _make(prepared: Prepared, extract: Callable[[Prepared], IndexManifest]) -> IndexCounts:
    """Makes the index, or finds it finished."""
    root, task = prepared.config.output, prepared.task
    photographs = outputs.Photographs(
        "images_and_labels",
        task.refs,
        root,
        task.recipe.reading,
        lambda before: None,
        functools.partial(_check_as_made, root),
        functools.partial(index_parts.known_of, root, task.refs),
    )

    def check() -> None:
        if not prepared.config.budget:  # else the pilot loads it, which can be stopped
            catalog.load_for_retrieval(task.recipe.model, task.recipe.settings)

    with outputs.opened(root, prepared.settings, prepared.config.overwrite, photographs, check) as unfinished:
        if not unfinished:
            print(f"{root} is finished; nothing to do")
            return outputs.read_manifest(root, IndexManifest).counts
        before = outputs.find_manifest(root, IndexManifest)
        added = index_parts.added_shards(root, before) if before else ()
        if before is not None and added:  # some of which have a label by now
            unlabelled = _not_known(root, before, {}, prepared.unlabelled)
            prepared = dataclasses.replace(prepared, unlabelled=unlabelled)
        manifest = extract(_beside(prepared, added))
        if before is not None:  # photographs of its first part were mended; what was added to it stays
            manifest = before.with_first(manifest, added, index_parts.failure_kinds(task.store, added))
            if added:  # which have labels that the first part lacks
                manifest = manifest.with_labels_lacking(before.counts.labels_without_image)
        if manifest.complete and not manifest.counts.indexed:
            raise PipelineError(
                f"there is no index: all of {manifest.counts.failed:,} images failed, why stands in "
                f"{files.join(root, 'failures')}: {kinds_failed(root)}"
            )
        index_parts.prune(task, manifest)
        outputs.finish(root, manifest)
        _print_summary(root, manifest)
        return manifest.counts


def _check_as_made(root: str) -> None:
    """Checks that an index may be made again for photographs of it that failed.

    Raises:
      ConfigError: photographs were removed or relabelled since, which would be undone.
    """
    before = outputs.find_manifest(root, IndexManifest)
    if before is not None and before.changed_units:
        raise ConfigError(
            f"photographs of {root} were removed or relabelled since it was made: what failed and was mended "
            "is taken up by `landmarks index --append`"
        )


def _append(
    prepared: Prepared,
    extract: Callable[[Prepared], IndexManifest],
    augment: Callable[[str, IndexManifest], None],
) -> tuple[int, int]:
    """Adds units to a finished index: its manifest is replaced at the end, and until then readers see the
    index as it was. Photographs that the index has as failures are tried again, in their places; with
    --update those that were changed since replace those of their ids. Returns how many failed of the
    photographs that this start took up, and how many these are: those that failed in an earlier one were told
    of then.

    <index>/appended/<digest> holds the settings and the plan; shards lie among the others, under names of
    their own.
    """
    root, task = prepared.config.output, prepared.task
    with lock.held(root):
        base = outputs.read_manifest(root, IndexManifest)  # again: another may have added to it meanwhile
        found = index_parts.addition(root, base, task, prepared.config.update)
        again = sorted(found.parts | index_parts.unfinished(root, base))
        if found.removed:
            print(f"{found.removed:,} were removed from {root} and stay out; --update takes them back")
        if prepared.config.update:
            _say_gone(root, found.others, prepared.unlabelled)
        labelled = [ref.image_id for ref in task.refs]
        if not found.new and not again and not found.changes:
            index_parts.prune_labelled(root, base, labelled)  # of a start that was killed at its end
            index_parts.prune_store(root, base)
            earlier, _ = _failed_of(root, base, labelled)
            before = f"; {earlier:,} of them failed earlier, see {root}/failures" if earlier else ""
            print(f"{root} has these images and labels already; nothing to do{before}")
            return 0, 0
        for part in again:
            retried = _retry(prepared, extract, part, found.mended)
            if retried is None:
                return 0, 0
            base = retried
        if prepared.config.update:
            base = index_parts.without_empty(root, base)
        if found.changes:
            base = cleaning.with_changes(root, base, found.changes)
            replaced = sum(label is None for label in found.changes.values())
            print(f"{root}: {replaced:,} photographs replaced, {len(found.changes) - replaced:,} relabelled")
        if not found.new:
            if found.changes:
                cleaning.finish(root, base, augment)
            else:
                _print_summary(root, base)
            return _failed_of(root, base, found.mended)
        if found.known:
            print(
                f"{found.known:,} of {len(task.refs):,} images are in {root} already; "
                f"{len(found.new):,} are new"
            )
        told = index_parts.without_label(root, base)
        prepared = dataclasses.replace(prepared, unlabelled=_not_known(root, base, told, prepared.unlabelled))
        task = ExtractionTask.of(found.new, task.recipe, root, "")
        index_parts.check_names(root, base, task)
        added = _extract_part(_beside(prepared, base.shards), extract, task)
        if added is None:
            return 0, 0
        base = index_parts.count_labelled(base, told, {*labelled})
        manifest = base.with_more(added, task.digest).with_labels_lacking(prepared.labels_without_image)
        outputs.finish(root, manifest)
        index_parts.prune_labelled(root, manifest, labelled)
        index_parts.prune_store(root, manifest)
        _print_summary(root, added)
        return _failed_of(root, manifest, {*found.mended, *(ref.image_id for ref in found.new)})


def _failed_of(root: str, manifest: IndexManifest, tried: Collection[str]) -> tuple[int, int]:
    """How many of an index's photographs with the ids `tried` failed, and how many these are."""
    failures = FeatureStore(root).failures([shard.unit for shard in manifest.shards])
    return len({*failures["image_id"].to_pylist()}.intersection(tried)), len(tried)


def _not_known(
    root: str, base: IndexManifest, told: Mapping[str, Sequence[str]], unlabelled: Sequence[ImageRef]
) -> list[ImageRef]:
    """Those without a label that an index does not count yet: neither with a label nor, `told`, without."""
    if not unlabelled:
        return []
    known = {one.planned.image_id for one in index_parts.known(root, base)}.union(*told.values())
    return [ref for ref in unlabelled if ref.image_id not in known]


def _say_gone(root: str, others: Sequence[str], unlabelled: Sequence[ImageRef]) -> None:
    """Says how many photographs of an index are none that --images holds; of `others`, which have no label
    that was given, `unlabelled` are there.
    """
    there = {ref.image_id for ref in unlabelled}
    if gone := [name for name in others if name not in there]:
        print(
            f"{len(gone):,} of {root} are no longer in --images (the first is {gone[0]!r}); --remove takes "
            "them out"
        )


def _beside(prepared: Prepared, shards: Iterable[ShardSummary]) -> Prepared:
    return dataclasses.replace(prepared, others=tuple(shards))


def _extract_part(
    prepared: Prepared, extract: Callable[[Prepared], IndexManifest], task: ExtractionTask
) -> IndexManifest | None:
    """The manifest of a part of an index, which is extracted; None where time was too short for it."""
    root = prepared.config.output
    task = dataclasses.replace(task, root=index_parts.folder(root, task.digest))
    prepared = dataclasses.replace(prepared, task=task)
    files.write_json(files.join(task.root, "settings.json"), prepared.settings)
    made = extract(prepared)
    if made.complete:
        return made
    print(
        f"{root} stays as it was: {made.counts.out_of_time:,} images were not reached in time; the same "
        "command goes on from here"
    )
    return None


def _retry(
    prepared: Prepared,
    extract: Callable[[Prepared], IndexManifest],
    part: str,
    mended: Mapping[str, ImageRef],
) -> IndexManifest | None:
    """Makes a part of an index again, with photographs of it that failed and were mended since, or that a
    higher limit lets in. Returns the index's manifest; None where time was too short.
    """
    root, recipe = prepared.config.output, prepared.task.recipe
    base = outputs.read_manifest(root, IndexManifest)
    before = worklist.read_worklist(index_parts.folder(root, part))
    old = ExtractionTask.of(before, recipe, root, "")
    task = ExtractionTask.of([mended.get(ref.image_id, ref) for ref in before], recipe, root, "")
    rest = index_parts.without(root, base, part, old)
    # The plan of before stays until all is done.
    prepared = _beside(dataclasses.replace(prepared, unlabelled=()), rest.shards)
    made = _extract_part(prepared, extract, task)
    if made is None:
        return None
    unlabelled = base.counts.without_label - rest.counts.without_label
    counts = dataclasses.replace(
        made.counts, matched=made.counts.matched + unlabelled, without_label=unlabelled
    )
    made_with = dataclasses.replace(base.recipe, reading=recipe.reading)
    made = dataclasses.replace(made, counts=counts, recipe=made_with)
    if part:
        manifest = rest.with_more(made, task.digest)
    else:
        manifest = rest.with_first(made, rest.shards, rest.failures)
    index_parts.rename_unlabelled(root, old, task)
    outputs.finish(root, manifest.with_labels_lacking(prepared.labels_without_image))
    if not part:
        first = dataclasses.replace(task, root=root)
        first.write_worklist()
        settings = dataclasses.replace(prepared, task=first).settings
        files.write_json(files.join(root, "settings.json"), settings)
    if part != task.digest:
        layout.delete(root, "index", below=f"appended/{part or task.digest}/")
    index_parts.prune(task, manifest)
    return manifest


def _extract(prepared: Prepared, options: PipelineOptions, engine: PipelineRunner | None) -> IndexManifest:
    """Extracts what the index lacks; returns a manifest of that alone."""
    task, time_budget = prepared.task, prepared.config.budget
    task.write_worklist()
    _record_unlabelled(prepared)
    task.discard_damaged()
    task.discard_let_in()
    schedule = pilot.schedule(time_budget, lambda: pilot.sample_of(task.recipe, task.missing(), options))
    deadline = schedule.deadlines.extract
    if not deadline:
        raise budget.OutOfTimeError(
            "no image can be extracted in time: the same `landmarks index` goes on from here, given more of "
            "it"
        )
    if schedule.plan is not None and schedule.plan.measured.dimensions:  # the pilot has loaded the model
        model = schedule.plan.measured.dimensions, schedule.plan.measured.has_local
    else:
        loaded = catalog.load_for_retrieval(task.recipe.model, task.recipe.settings)
        model = loaded.global_width, bool(loaded.local_width)
    others = [shard.unit for shard in prepared.others if shard.images]
    metrics = runner.run_pipeline(
        lambda pipeline: build(pipeline, task, deadline, others), options, [task.phase()], engine
    )
    return conclude(prepared, *model, schedule, metrics)


def _record_unlabelled(prepared: Prepared) -> None:
    config, unlabelled, task = prepared.config, prepared.unlabelled, prepared.task
    if not unlabelled:
        return
    where = "lies in no folder below the pattern" if config.label_levels else f"not in {config.labels}"
    rows = [Failure("match", ref.image_id, ref.uri, "no_label", where) for ref in unlabelled]
    uri = files.join(config.output, "failures", f"{index_parts.NO_LABEL}{task.names[0]}.parquet")
    files.write_parquet(uri, failure_table(rows))


def conclude(
    prepared: Prepared, dimensions: int, has_local: bool, schedule: budget.Schedule, metrics: dict[str, int]
) -> IndexManifest:
    """The manifest of what the pipeline left behind, which alone it tells of.

    Args:
      prepared: what was to be done.
      dimensions: width of the model's global descriptor.
      has_local: whether the model has local features.
      schedule: of the time.
      metrics: of the pipeline.

    Raises:
      PipelineError: the engine lost units, or their augmented descriptors.
    """
    task, unlabelled = prepared.task, len(prepared.unlabelled)
    extracted = task.conclude(prepared.config.output, schedule.deadlines.extract)
    indexed = sum(shard.images for shard in extracted.shards)
    manifest = IndexManifest(
        recipe=task.recipe,
        global_dimensions=dimensions,
        has_local_features=has_local,
        complete=not extracted.out_of_time,
        counts=IndexCounts(
            matched=task.images + unlabelled,
            indexed=indexed,
            failed=task.images - extracted.out_of_time - indexed,
            out_of_time=extracted.out_of_time,
            without_label=unlabelled,
            labels_without_image=0 if prepared.base else prepared.labels_without_image,
            passed_over=sum(prepared.passed_over.values()),
        ),
        failures=index_parts.failure_kinds(task.store, extracted.shards),
        image_ids=prepared.image_ids,
        shards=extracted.shards,
        time_budget=schedule.report(metrics),
        seconds=runner.seconds(prepared.started, metrics),
        versions=versions(),
        passed_over=prepared.passed_over,
    )
    whole = dataclasses.replace(manifest, shards=(*manifest.shards, *prepared.others))
    index_parts.check_derived(task.store.root, whole, schedule.deadlines.extract)
    return manifest


def _print_summary(output: str, manifest: IndexManifest) -> None:
    counts, seconds = manifest.counts, manifest.seconds["total"]
    late = (
        f", {counts.out_of_time:,} not reached in time: the same command goes on from here"
        if counts.out_of_time
        else ""
    )
    print(f"{output}: {counts.indexed:,} images indexed, {counts.failed:,} failed, in {seconds:,.1f} s{late}")
