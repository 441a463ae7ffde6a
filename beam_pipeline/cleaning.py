"""Changes of a finished index that need no extraction: photographs removed, labels corrected, shards
rewritten without what was removed.

What is new is written beside what there is, under names of its own; the manifest names it at the end, and
until then readers see the index as it was.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import index_parts, integrity, left_out, lock, outputs, runner
from beam_pipeline.config import CleanConfig, ConfigError
from beam_pipeline.manifest import IndexManifest
from transforms.database_augmentation import AugmentIndex, augmented_shards
from transforms.storage import files, spelling, tables, worklist
from transforms.storage.feature_store import FeatureStore, ShardSummary
from transforms.storage.overlays import Changes, planned, shard_of

# A shard of which a larger part than this was removed is rewritten.
MAX_REMOVED = 1 / 3


def run(config: CleanConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Changes a finished index, or goes on with that where it was stopped; returns the exit code.

    Args:
      config: what is asked for.
      options: of Beam.
      engine: what runs the pipeline; by default the runner that `options` name.

    Raises:
      ConfigError, TableError, OSError: something is wrong before anything is written.
      DamagedError: files of the index are damaged.
      PipelineError: the pipeline failed.
    """
    root = config.output
    image_ids = outputs.read_manifest(root, IndexManifest).image_ids  # no lock makes a folder of what is none
    removed = _ids(config.remove) if config.remove else pa.array([], pa.string())
    labels = tables.LABEL_SCHEMA.empty_table()
    if config.relabel:
        labels = tables.read_labels(config.relabel, image_ids, may_be_empty=True)
        if not len(labels):
            print(f"--relabel {config.relabel}: 0 rows")
    with lock.held(root):
        base = outputs.read_manifest(root, IndexManifest)
        if not base.complete:
            raise ConfigError(f"{root} was not finished in time: run the same `landmarks index` again first")
        integrity.check_sizes(root, base)
        changes = _asked(config, base, removed, labels)
        manifest = with_changes(root, base, changes)
        rewritten = 0
        if config.compact:
            manifest, rewritten = _compacted(root, manifest)
        if manifest.shards == base.shards:
            index_parts.prune_store(root, base)  # of a start that was killed at its end
            print(f"{root} is as asked for already; nothing to do")
            return 0
        finish(root, manifest, lambda root, of: augment(root, of, options, engine))
        gone = sum(label is None for label in changes.values())
        said = [f"{gone:,} photographs removed", f"{len(changes) - gone:,} relabelled"]
        if config.compact:
            said.append(f"{rewritten:,} shards rewritten")
        print(f"{root}: {', '.join(said)}; {manifest.counts.indexed:,} images are indexed")
    return 0


def _ids(given: Sequence[str]) -> pa.Array:
    """The ids of --remove, string [N], each once."""
    found: list[str] = []
    for one in given:
        if one.startswith("@"):
            text = files.read_bytes(one[1:]).decode("utf-8-sig")
            found += filter(None, map(str.strip, text.splitlines()))
        elif tables.is_csv(one):
            ids = tables.read_ids(one, any_rows=True).to_pylist()
            if not ids:  # an audit that found nothing
                print(f"--remove {one}: 0 rows")
            found += ids
        else:
            found.append(one)
    return pa.array(list(dict.fromkeys(found)), pa.string())


def _asked(
    config: CleanConfig, base: IndexManifest, removed: pa.Array, labels: pa.Table
) -> dict[str, str | None]:
    """What is asked for and not so yet.

    Raises:
      ConfigError: an id is not in the index, nor was it; or nothing would be left.
    """
    units = [shard.unit for shard in base.shards]
    there = _labels(config.output, units)
    ids = there.column("image_id").combine_chunks()
    landmarks = dict(zip(ids.to_pylist(), there.column("landmark_id").to_pylist()))

    def found(wanted: pa.Array, place: str, ids: pa.Array = ids) -> list[str | None]:
        """The index's spelling of each id, None where it has it no more; `ids` are those it has."""
        rows = spelling.index_in(wanted, ids)
        lacking = wanted.filter(pc.is_null(rows))
        if len(lacking):
            listed = (
                worklist.listed_image_ids(index_parts.folder(config.output, p)) for p in ("", *base.appended)
            )
            before = pa.array([image_id for part in listed for image_id in part], pa.string())
            unknown = lacking.filter(pc.is_null(spelling.index_in(lacking, before)))
            if len(unknown):
                problem = (
                    f"{len(unknown):,} of {len(wanted):,} ids of {place} are not in {config.output}, the "
                    f"first is {unknown[0].as_py()!r}{left_out.beside(unknown, ids, config.output)}"
                )
                if place == "--remove" or len(unknown) == len(wanted):
                    raise ConfigError(problem)
                print(problem, file=sys.stderr)  # a table of all labels may tell of more
        spelled: list[str | None] = ids.take(rows).to_pylist()
        return spelled

    changes: dict[str, str | None] = {}
    relabelled = labels.column("image_id").combine_chunks()
    for name, to in zip(found(relabelled, "--relabel"), labels["landmark_id"]):
        if name is not None and landmarks[name] != to.as_py():
            changes[name] = to.as_py()
    failed = FeatureStore(config.output).failures(units).column("image_id")  # these are removed too
    waiting = relabelled.filter(pc.is_in(relabelled, value_set=failed.combine_chunks()))
    if len(waiting):
        print(
            f"{len(waiting):,} of {len(relabelled):,} photographs of --relabel failed, the first is "
            f"{waiting[0].as_py()!r}: once mended, they get the labels that `--append` gives them",
            file=sys.stderr,
        )
    removable = pa.concat_arrays([ids, *failed.chunks])
    changes.update((name, None) for name in found(removed, "--remove", removable) if name is not None)
    gone = sum(to is None and name in landmarks for name, to in changes.items())
    if len(ids) and gone == len(ids):
        raise ConfigError(f"--remove names all {len(ids):,} images of {config.output}: nothing would be left")
    return changes


def _labels(root: str, units: Sequence[str]) -> pa.Table:
    """The ids and landmarks of the images of some units of an index."""
    return pa.concat_tables(FeatureStore(root).read_units(units, ["image_id", "landmark_id"]))


def with_changes(root: str, base: IndexManifest, changes: Changes) -> IndexManifest:
    """The manifest of an index with changes, whose overlays are written.

    Raises:
      ConfigError: an earlier version made the index, and its plan does not tell its units.
    """
    if not changes:
        return base
    store, wanted = FeatureStore(root), pa.array(sorted(changes), pa.string())
    counts: dict[str, Counter[str]] = {}
    shards = list(base.shards)
    place = {planned(shard.unit): at for at, shard in enumerate(shards)}
    for part in ("", *base.appended):
        task = index_parts.part_task(root, base, part)
        if unknown := [unit for unit in task.names if unit not in place]:
            raise ConfigError(
                f"{root} is of an earlier version and cannot be changed (it has no unit {unknown[0]}); "
                "`landmarks index --overwrite` makes it anew"
            )
        gone = Counter[str]()
        for unit in task.units:
            ids = pa.array([ref.image_id for ref in unit.images], pa.string())
            own = ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist()
            if own:
                at = place[unit.name]
                there = {*store.read_images(shards[at].unit, ["image_id"])["image_id"].to_pylist()}
                failed = {*store.failures([shards[at].unit])["image_id"].to_pylist()}
                made = {name: changes[name] for name in own if name in there or name in failed}
                for name in (name for name, to in made.items() if to is None):
                    gone["indexed" if name in there else "failed"] += 1
                if made:
                    shards[at] = store.write_changes(shards[at].unit, made)
        counts[part] = gone
    total = sum(counts.values(), Counter())
    manifest = dataclasses.replace(
        base,
        shards=tuple(shards),
        counts=base.counts.without(total["indexed"], total["failed"]),
        appended={
            part: before.without(counts[part]["indexed"], counts[part]["failed"])
            for part, before in base.appended.items()
        },
    )
    if total["failed"]:
        manifest = dataclasses.replace(manifest, failures=index_parts.failure_kinds(store, shards))
    return manifest


def _compacted(root: str, manifest: IndexManifest) -> tuple[IndexManifest, int]:
    """The manifest of an index whose shards of which more than MAX_REMOVED was removed are rewritten, and
    their number.
    """
    store, shards = FeatureStore(root), list[ShardSummary]()
    below = {s.unit: s for s in store.summaries([shard_of(unit) for unit in manifest.changed_units])}
    for shard in manifest.shards:
        whole = below.get(shard_of(shard.unit), shard).images
        removed = whole - shard.images
        shards.append(store.compact(shard.unit) if removed > MAX_REMOVED * whole else shard)
    rewritten = sum(new.unit != old.unit for new, old in zip(shards, manifest.shards))
    return dataclasses.replace(manifest, shards=tuple(shards)), rewritten


def augment(
    root: str, manifest: IndexManifest, options: PipelineOptions, engine: PipelineRunner | None
) -> None:
    """Makes the augmented descriptors that an index lacks."""
    units = [shard.unit for shard in manifest.shards if shard.images]
    if not augmented_shards(root).complete(manifest.derived_list):
        runner.run_pipeline(
            lambda pipeline: pipeline | beam.Create(units) | AugmentIndex(root), options, [], engine
        )
        index_parts.check_derived(root, manifest)


def finish(root: str, manifest: IndexManifest, augment: Callable[[str, IndexManifest], None]) -> None:
    """Makes an index, whose units are written, what its manifest says, and deletes what it needs no more."""
    augment(root, manifest)
    outputs.finish(root, manifest)
    index_parts.prune_store(root, manifest)
