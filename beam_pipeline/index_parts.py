"""The parts of an index: the first, and what was added to it later.

The first part's settings and plan lie in the index's folder, those of the others in appended/<digest>. All
shards lie together; the manifest names those of the first part first.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow.compute as pc

from beam_pipeline import integrity, layout, outputs
from beam_pipeline.changes import Changes, failed, let_in
from beam_pipeline.config import ConfigError
from beam_pipeline.extraction import ExtractionTask
from beam_pipeline.manifest import IndexManifest
from transforms.database_augmentation import augmented_shards
from transforms.storage import files, worklist
from transforms.storage.feature_store import FeatureStore, ShardSummary, read_failures
from transforms.types import ImageRef

NO_LABEL = "no_label-"  # begins the name of failure rows; that of the part's first unit follows


def folder(index: str, part: str) -> str:
    """The folder of the settings and the plan of a part; "" is the first."""
    return files.join(index, "appended", part) if part else index


def added_shards(index: str, manifest: IndexManifest) -> tuple[ShardSummary, ...]:
    """The shards of all parts but the first."""
    count = sum(worklist.unit_count(folder(index, part)) for part in manifest.appended)
    return manifest.shards[len(manifest.shards) - count :]


def failure_kinds(store: FeatureStore, shards: Iterable[ShardSummary]) -> dict[str, int]:
    """The number of failure rows of shards, by kind."""
    kinds = store.failures([shard.unit for shard in shards]).column("kind").to_pylist()
    return dict(sorted(Counter(kinds).items()))


def prune(task: ExtractionTask, manifest: IndexManifest) -> None:
    """Deletes what the store has of units that neither the task nor the manifest names."""
    keep = {*task.names, *(shard.unit for shard in manifest.shards)}
    task.store.prune(keep)
    prune_derived(task.store.root, manifest)
    for uri in files.list_files(files.join(task.store.root, "failures"), ".parquet"):
        name = uri.rsplit("/", 1)[-1].removesuffix(".parquet")
        if name.startswith(NO_LABEL) and name.removeprefix(NO_LABEL) not in keep:
            files.delete(uri)
    files.delete_empty(files.join(task.store.root, "failures"))


def without_label(index: str) -> set[str]:
    """The ids of photographs that had no label when they were to be added to an index."""
    rows = read_failures(files.join(index, "failures"))
    return {*rows.filter(pc.equal(rows["kind"], "no_label"))["image_id"].to_pylist()}


def prune_derived(index: str, manifest: IndexManifest) -> None:
    """Deletes the derived shards that the index does not need any more."""
    shards, listed = augmented_shards(index), manifest.derived_list
    if shards.complete(listed):
        shards.prune(listed)


def prune_calibration(index: str, keep: str) -> None:
    """Deletes what earlier calibrations of an index found, but for the folder `keep`."""
    for path in layout.own_files(index, "index"):
        if path.startswith("calibration/") and not files.join(index, path).startswith(files.join(keep, "")):
            files.delete(files.join(index, path))


def rename_unlabelled(index: str, old: ExtractionTask, new: ExtractionTask) -> None:
    """Copies the rows of a part's photographs without a label to the name that they have when it was made
    again.
    """
    uris = [files.join(index, "failures", f"{NO_LABEL}{task.names[0]}.parquet") for task in (old, new)]
    if uris[0] != uris[1] and files.exists(uris[0]):
        files.write_bytes(uris[1], files.read_bytes(uris[0]))


def without(index: str, manifest: IndexManifest, part: str, task: ExtractionTask) -> IndexManifest:
    """The manifest of an index without a part, which `task` made.

    Raises:
      ConfigError: an earlier version made it, and its shards are not known.
    """
    if part:
        units = {*task.names}
        shards = tuple(shard for shard in manifest.shards if shard.unit not in units)
        if len(manifest.shards) - len(shards) != len(units):
            raise ConfigError(
                f"{folder(index, part)} is of an earlier version and cannot be changed; `landmarks index "
                "--overwrite` makes the index anew"
            )
        counts = manifest.counts - manifest.appended[part]
    else:
        shards = added_shards(index, manifest)
        counts = manifest.counts - manifest.counts
        for more in manifest.appended.values():
            counts += more
    return dataclasses.replace(
        manifest,
        shards=shards,
        counts=counts,
        failures=failure_kinds(task.store, shards),
        appended={name: more for name, more in manifest.appended.items() if name != part},
    )


def image_ids(index: str, manifest: IndexManifest) -> list[str]:
    """The ids of all photographs that an index knows, indexed or failed."""
    return [
        image_id
        for part in ("", *sorted(manifest.appended))
        for image_id in worklist.listed_image_ids(folder(index, part))
    ]


def unfinished(index: str, manifest: IndexManifest) -> set[str]:
    """The parts of an index with shards that are not there: one was killed while it was made again."""
    there = {*FeatureStore(index).units()}
    lacking = {shard.unit for shard in manifest.shards} - there
    if not lacking:
        return set()
    found = set()
    for part in ("", *sorted(manifest.appended)):
        refs = worklist.read_worklist(folder(index, part))
        if lacking & {*ExtractionTask.of(refs, manifest.recipe, index, "").names}:
            found.add(part)
    return found


def known(index: str, manifest: IndexManifest, task: ExtractionTask) -> dict[str, tuple[str, ImageRef]]:
    """Those of a task's photographs that an index knows, indexed or failed: the part, and the reference in
    it.
    """
    wanted = {ref.image_id for ref in task.refs}
    return {
        ref.image_id: (part, ref)
        for part in ("", *sorted(manifest.appended))
        for ref in worklist.read_worklist(folder(index, part))
        if ref.image_id in wanted
    }


def check_addition(
    index: str, base: IndexManifest, task: ExtractionTask, known: Mapping[str, tuple[str, ImageRef]]
) -> dict[str, ImageRef]:
    """Checks that those photographs of a task that an index lacks can be added to it; returns, by id, those
    that failed in it and were mended since, or are let in by a higher limit.

    Raises:
      ConfigError: they cannot; the text says why.
      DamagedError: the index is damaged.
    """
    if not base.complete:
        raise ConfigError(
            f"{index} was not finished in time: run the same `landmarks index` again before adding to it"
        )
    there = {*task.store.units()}
    integrity.check_sizes(
        index, dataclasses.replace(base, shards=tuple(s for s in base.shards if s.unit in there))
    )
    differing = list(outputs.differences(base.recipe.identity["reading"], task.recipe.identity["reading"]))
    if differing:
        raise ConfigError(f"{index} was made with other settings: {'; '.join(differing)}")
    failures, given = failed(index), {ref.image_id: ref for ref in task.refs}
    within_limits = let_in(index, task.recipe.reading, task.refs)
    indexed = sorted(known.keys() - failures)
    changes = Changes.between([known[name][1] for name in indexed], [given[name] for name in indexed])
    if changes:
        raise ConfigError(
            f"{len(indexed):,} of {len(given):,} images are in {index} already, and since then {changes}: "
            "another photograph needs a name of its own; for changed ones `landmarks index --overwrite` with "
            f"all photographs of the index, {sum(shard.images for shard in base.shards):,}, makes it anew"
        )
    return {
        name: given[name]
        for name in known.keys() & failures
        if name in within_limits or Changes.between([known[name][1]], [given[name]])
    }
