"""The parts of an index: the first, and what was added to it later.

The first part's settings and plan lie in the index's folder, those of the others in appended/<digest>. All
shards lie together; the manifest names those of the first part first. Plans stay as they were: what was
removed or relabelled since is in the names of the manifest's units (transforms/storage/overlays.py).
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline import integrity, layout, outputs, runner
from beam_pipeline.changes import Changes, failed, let_in
from beam_pipeline.config import ConfigError
from beam_pipeline.extraction import ExtractionTask
from beam_pipeline.manifest import IndexCounts, IndexManifest
from transforms.database_augmentation import augmented_shards
from transforms.storage import files, worklist
from transforms.storage.feature_store import FeatureStore, ShardSummary, labels_in
from transforms.storage.overlays import planned, shard_of
from transforms.types import ImageRef

NO_LABEL = "no_label-"  # begins the name of failure rows; that of the part's first unit follows


def folder(index: str, part: str) -> str:
    """The folder of the settings and the plan of a part; "" is the first."""
    return files.join(index, "appended", part) if part else index


def part_task(index: str, manifest: IndexManifest, part: str) -> ExtractionTask:
    """The photographs of a part, as they were added."""
    return ExtractionTask.of(worklist.read_worklist(folder(index, part)), manifest.recipe, index, "")


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
    units = {shard.unit for shard in manifest.shards}
    keep = {*task.names, *units, *map(planned, units)}
    task.store.prune({*task.names, *units})
    prune_derived(task.store.root, manifest)
    for uri in files.list_files(files.join(task.store.root, "failures"), ".parquet"):
        name = uri.rsplit("/", 1)[-1].removesuffix(".parquet")
        if name.startswith(NO_LABEL) and name.removeprefix(NO_LABEL) not in keep:
            files.delete(uri)
    files.delete_empty(files.join(task.store.root, "failures"))


def prune_store(index: str, manifest: IndexManifest) -> None:
    """Deletes what the store has of units of the index under other names than the manifest's, and the derived
    shards that it does not need any more. Units that are being added stay.
    """
    store, units = FeatureStore(index), {shard.unit for shard in manifest.shards}
    own = {*map(planned, units)}
    store.prune(units | {unit for unit in store.units() if planned(unit) not in own})
    prune_derived(index, manifest)


def check_names(index: str, manifest: IndexManifest, task: ExtractionTask) -> None:
    """Checks that no unit of a task has the name of one of the index.

    Raises:
      ConfigError: one has: all of its photographs were removed, and are to come back.
    """
    if twice := {*task.names} & {planned(unit) for unit in manifest.changed_units}:
        raise ConfigError(
            f"{len(twice):,} units of {index} were removed as a whole and cannot be added again as they "
            "were: "
            "add their photographs with others, or make the index anew with --overwrite"
        )


def without_label(index: str, manifest: IndexManifest) -> dict[str, list[str]]:
    """The ids of photographs that had no label when a part was made, by part."""
    there = {*files.list_files(files.join(index, "failures"), ".parquet")}
    if not any(uri.rsplit("/", 1)[-1].startswith(NO_LABEL) for uri in there):
        return {}
    uris = {
        part: _unlabelled_uri(index, part_task(index, manifest, part)) for part in ("", *manifest.appended)
    }
    return {
        part: files.read_parquet(uri, ["image_id"])["image_id"].to_pylist()
        for part, uri in uris.items()
        if uri in there
    }


def count_labelled(
    manifest: IndexManifest, told: Mapping[str, Sequence[str]], labelled: Container[str]
) -> IndexManifest:
    """The manifest of an index when those of its photographs `without_label` that are `labelled` now are to
    be counted as such.
    """
    count = {part: sum(name in labelled for name in names) for part, names in told.items()}

    def without(counts: IndexCounts, number: int) -> IndexCounts:
        rest = dict(matched=counts.matched - number, without_label=counts.without_label - number)
        return dataclasses.replace(counts, **rest)

    return dataclasses.replace(
        manifest,
        counts=without(manifest.counts, sum(count.values())),
        appended={part: without(of, count.get(part, 0)) for part, of in manifest.appended.items()},
    )


def prune_labelled(index: str, manifest: IndexManifest, labelled: Sequence[str]) -> None:
    """Deletes the rows of photographs `without_label` that are `labelled` now."""
    now = pa.array(labelled, pa.string())
    for part in without_label(index, manifest):
        uri = _unlabelled_uri(index, part_task(index, manifest, part))
        rows = files.read_parquet(uri)
        rest = rows.filter(pc.invert(pc.is_in(rows["image_id"], value_set=now)))
        if not len(rest):
            files.delete(uri)
        elif len(rest) < len(rows):
            files.write_parquet(uri, rest)
    files.delete_empty(files.join(index, "failures"))


def check_derived(index: str, manifest: IndexManifest, deadline: float = math.inf) -> None:
    """Checks that the index has its derived shards, after a pipeline that was to make them until a deadline.

    Raises:
      PipelineError: the engine lost some.
    """
    units = sum(shard.images > 0 for shard in manifest.shards)
    if units and time.time() < deadline and not augmented_shards(index).complete(manifest.derived_list):
        raise runner.lost_work(f"the augmented descriptors of {units:,} units were not all made")


def prune_derived(index: str, manifest: IndexManifest) -> None:
    """Deletes the derived shards that the index does not need any more."""
    shards, listed = augmented_shards(index), manifest.derived_list
    if shards.complete(listed):
        shards.prune(listed)


def prune_calibration(index: str, keep: str) -> None:
    """Deletes what earlier calibrations of an index found, but for the folder `keep`."""
    own = layout.own_files(index, "index")
    kept = tuple(path for path in own if files.join(index, path).startswith(files.join(keep, "")))
    layout.delete(index, "index", keep=kept, below="calibration/")


def _unlabelled_uri(index: str, task: ExtractionTask) -> str:
    return files.join(index, "failures", f"{NO_LABEL}{task.names[0]}.parquet")


def rename_unlabelled(index: str, old: ExtractionTask, new: ExtractionTask) -> None:
    """Copies the rows of a part's photographs without a label to the name that they have when it was made
    again.
    """
    uris = [_unlabelled_uri(index, task) for task in (old, new)]
    if uris[0] != uris[1] and files.exists(uris[0]):
        files.write_bytes(uris[1], files.read_bytes(uris[0]))


def without(index: str, manifest: IndexManifest, part: str, task: ExtractionTask) -> IndexManifest:
    """The manifest of an index without a part, which `task` made.

    Raises:
      ConfigError: an earlier version made it, and its shards are not known.
    """
    if part:
        units = {*task.names}
        shards = tuple(shard for shard in manifest.shards if planned(shard.unit) not in units)
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


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A photograph that an index knows.

    Attributes:
      part: of the index.
      planned: as it was added.
      label: that it has now.
      there: whether it is indexed or failed; False where it was removed.
    """

    part: str
    planned: ImageRef
    label: str | None
    there: bool = True


def known(index: str, manifest: IndexManifest) -> Iterator[Known]:
    """All photographs that were ever added to an index; one that was replaced more than once."""
    store = FeatureStore(index)
    changed = {planned(unit): unit for unit in manifest.changed_units}
    for part in ("", *sorted(manifest.appended)):
        refs = worklist.read_worklist(folder(index, part))
        if not changed:
            yield from (Known(part, ref, ref.landmark_id) for ref in refs)
            continue
        for unit in ExtractionTask.of(refs, manifest.recipe, index, "").units:
            labels = {ref.image_id: ref.landmark_id for ref in unit.images}
            there = {*labels}
            if unit.name in changed:
                failures = store.failures([changed[unit.name]])["image_id"].to_pylist()
                now = labels_in(store.read_images(changed[unit.name], ["image_id", "landmark_id"]))
                labels, there = labels | now, {*now, *failures}
            yield from (Known(part, ref, labels[ref.image_id], ref.image_id in there) for ref in unit.images)


def known_of(index: str, refs: Iterable[ImageRef]) -> list[ImageRef]:
    """The photographs that an index was first made of, and those of `refs` that were added to it since: as
    they were added where they are given so, else as the index has them now.
    """
    manifest = outputs.find_manifest(index, IndexManifest)
    if manifest is None:
        return worklist.read_worklist(index)
    given, found = {ref.image_id: ref for ref in refs}, dict[str, ImageRef]()
    for one in known(index, manifest):
        name, wanted = one.planned.image_id, given.get(one.planned.image_id)
        if (wanted and found.get(name) != wanted) or not (wanted or one.part):
            now = dataclasses.replace(one.planned, landmark_id=one.label)
            found[name] = one.planned if one.planned == wanted else now
    return list(found.values())


def label_counts(index: str, manifest: IndexManifest) -> Counter[str]:
    """How many photographs an index knows of each label, indexed or failed."""
    if manifest.changed_units:
        return Counter(one.label or "" for one in known(index, manifest) if one.there)
    listed = (worklist.label_counts(folder(index, part)) for part in ("", *manifest.appended))
    return sum(listed, Counter())


def unfinished(index: str, manifest: IndexManifest) -> set[str]:
    """The parts of an index with shards that are not there: one was killed while it was made again."""
    there = {*FeatureStore(index).units()}
    lacking = {shard.unit for shard in manifest.shards if shard_of(shard.unit) not in there}
    if not lacking:
        return set()
    return {part for part in ("", *manifest.appended) if lacking & {*part_task(index, manifest, part).names}}


@dataclasses.dataclass(frozen=True)
class Addition:
    """Photographs that are to be added to an index.

    Attributes:
      known: how many of them it has just so, indexed or failed.
      removed: how many were removed from it, and stay out.
      new: that it lacks, or that are to take the place of those of their ids.
      mended: by id, that failed in it and are tried again in their places.
      parts: that these are of.
      changes: of what the index has, before they are added.
      others: ids, ascending, that an index to be updated has and the photographs do not.
    """

    known: int
    removed: int
    new: list[ImageRef]
    mended: dict[str, ImageRef]
    parts: set[str]
    changes: dict[str, str | None]
    others: list[str]


def addition(index: str, base: IndexManifest, task: ExtractionTask, update: bool) -> Addition:
    """What the photographs of a task are to an index.

    A label that is still as it was when the photograph was added is none that differs, though the index was
    relabelled since, and what was removed stays out; but with `update` all is as it is given.

    Raises:
      ConfigError: they cannot be added; the text says why.
      DamagedError: the index is damaged.
    """
    _check_addition(index, base, task)
    given, old = {ref.image_id: ref for ref in task.refs}, dict[str, Known]()
    others = set[str]()
    for one in known(index, base):
        if one.planned.image_id not in given:
            if update and one.there:
                others.add(one.planned.image_id)
        elif one.there or one.planned.image_id not in old:
            old[one.planned.image_id] = one
    there = {name: one for name, one in old.items() if one.there}

    def changes(names: Iterable[str]) -> Changes:
        """What is different about these."""
        before, after = [], []
        for name in names:
            one, ref = there[name], given[name]
            label = one.label if update or ref.landmark_id != one.planned.landmark_id else ref.landmark_id
            before.append(dataclasses.replace(one.planned, landmark_id=label))
            after.append(ref)
        return Changes.between(before, after)

    failures = there.keys() & failed(index)
    changed = changes(sorted(there.keys() - failures))
    if changed and not update:
        remedies = []
        if changed.moved:
            remedies.append(f"they were expected where they lay, at {there[changed.moved[0]].planned.uri}")
        if changed.moved or changed.changed:
            remedies.append(
                "`--append --update` puts these in the places of those; another photograph needs a name of "
                "its own"
            )
        if changed.relabelled:
            remedies.append(f"`landmarks index --output {index} --relabel CSV` takes new labels")
        raise ConfigError(
            f"{len(there):,} of {len(given):,} images are in {index} already, and since then {changed}: "
            f"{'; '.join(remedies)}"
        )
    within_limits = {*let_in(index, task.recipe.reading, task.refs)}
    again = {name for name in failures if name in within_limits or changes([name])}
    # A part that was changed is not made again: what was mended takes a new place.
    cleaned = {planned(unit) for unit in base.changed_units}
    moved = {
        part
        for part in {there[name].part for name in again}
        if cleaned & {*part_task(index, base, part).names}
    }
    replaced = {*changed.moved, *changed.changed, *(name for name in again if there[name].part in moved)}
    relabelled = {name: given[name].landmark_id for name in changed.relabelled if name not in replaced}
    mended = {name: given[name] for name in again - replaced}
    kept = (there if update else old).keys() - replaced
    new = [ref for ref in task.refs if ref.image_id not in kept]
    return Addition(
        len(there) - len(replaced),
        0 if update else len(old) - len(there),
        new,
        mended,
        {there[name].part for name in mended},
        {**relabelled, **dict.fromkeys(sorted(replaced))},
        sorted(others),
    )


def without_empty(index: str, manifest: IndexManifest) -> IndexManifest:
    """The manifest of an index without parts that were added and have no photographs any more."""
    for part, counts in manifest.appended.items():
        if not counts.indexed and not counts.failed:
            manifest = without(index, manifest, part, part_task(index, manifest, part))
    return manifest


def _check_addition(index: str, base: IndexManifest, task: ExtractionTask) -> None:
    """Checks that photographs can be added to an index at all."""
    if not base.complete:
        raise ConfigError(
            f"{index} was not finished in time: run the same `landmarks index` again before adding to it"
        )
    there = {*task.store.units()}
    integrity.check_sizes(
        index, dataclasses.replace(base, shards=tuple(s for s in base.shards if shard_of(s.unit) in there))
    )
    differing = list(outputs.differences(base.recipe.identity["reading"], task.recipe.identity["reading"]))
    if differing:
        raise ConfigError(f"{index} was made with other settings: {'; '.join(differing)}")
