"""The discover job: queries without a landmark, searched in themselves, for places that wait for a name.

Queries that show one place form a group. A person names it on the page of the output (report/groups_page.py),
which gives the labels that `landmarks index --append` takes beside <output>/groups.parquet.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import calibrate, integrity, outputs, runner, self_search
from beam_pipeline.config import ConfigError, DiscoverConfig
from beam_pipeline.manifest import FORMAT, IndexManifest, RunManifest
from beam_pipeline.matches import read_index
from beam_pipeline.prediction_rule import tuned_settings_of
from beam_pipeline.self_search import Pairs, SelfSearch
from transforms.arrays import label_audit
from transforms.arrays.calibration import Calibration
from transforms.patterns import below
from transforms.storage import files, run_store, tables
from transforms.storage.feature_store import FeatureStore

GROUPS, PAIRS = "groups.parquet", "pairs.parquet"
_WANTED = "wanted.parquet"


def run(config: DiscoverConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Finds groups among the queries of a run, or goes on with that; returns the exit code.

    Raises:
      ConfigError, OSError: something is wrong before the pipeline starts.
      OutOfTimeError: the time budget ended before a single query was searched for.
      PipelineError: the pipeline failed.
    """
    started = time.monotonic()
    source = outputs.read_manifest(config.run, RunManifest)
    settings = self_search.settings_of(source.recipe) if source.reranked else None
    if settings is None:
        raise ConfigError(
            f"{config.run} has no local features: queries cannot be verified against each other"
        )
    made_with = {
        "command": "discover",
        "format": FORMAT,
        "run": source.digest(config.run),
        "neighbors": config.neighbors,
        "min_probability": config.min_probability,
        "min_score": config.min_score,
        "verification": dataclasses.asdict(settings),
    }
    with outputs.opened(config.output, made_with, config.overwrite) as unfinished:
        if not unfinished:
            print(f"{config.output} is finished; nothing to do")
            return 0
        index = read_index(config.run, source)
        integrity.check_sizes(config.run, source)
        units = tuple((shard.unit, shard.images) for shard in source.shards if shard.images)
        if not units or not len(images := _without_landmark(config, source, [unit for unit, _ in units])):
            raise ConfigError(f"no query of {config.run} without a landmark has features to search with")
        wanted = images["image_id"].combine_chunks()
        uri = files.join(config.output, _WANTED)
        files.write_parquet(uri, pa.table({"image_id": wanted}))
        search = SelfSearch(
            source.query_store,
            units,
            config.neighbors,
            settings,
            config.output,
            wanted=uri,
            asked=len(wanted),
        )
        metrics, late = self_search.run(search, config.budget, options, engine)
        pairs = self_search.read_pairs(search, wanted)
        photographs, linked = grouped(images, pairs, _learned(source.index, index))
        photographs = photographs.add_column(2, "id", _ids(photographs, index, config.output))
        files.delete(files.join(config.output, "index.html"))  # of fewer groups, before time ran out
        for name, table in ((GROUPS, photographs), (PAIRS, linked)):
            files.write_parquet(files.join(config.output, name), table)
        empty = pa.array([""] * len(photographs), pa.string())
        people = photographs.append_column("landmark_id", empty)
        people = people.select(["id", "landmark_id", "group", "links", "uri"])
        tables.write_csv(files.join(config.output, "groups.csv"), people)
        groups = len(photographs["group"].unique())
        counts = {"queries": len(wanted), "groups": groups, "photographs": len(photographs)}
        says = {**made_with, "run_uri": files.place_in(config.output, config.run)}
        self_search.finish(search, says, counts, late, runner.seconds(started, metrics))
        print(
            f"{config.output}: {groups:,} groups with {len(photographs):,} of {len(wanted):,} queries "
            "without a landmark"
        )
        taken = _taken(photographs["id"], source.index, index)
        if len(taken):
            print(
                f"{len(taken):,} of these have names that photographs of {source.index} have, such as "
                f"{taken[0].as_py()!r}, and cannot be added to it so: `landmarks recognize --image_ids path` "
                "into another run, and discover again, gives them ids of their own",
                file=sys.stderr,
            )
        if late:
            print(f"{late:,} queries were not searched for in time: the same command goes on from here")
    return 0


def _without_landmark(config: DiscoverConfig, source: RunManifest, units: Sequence[str]) -> pa.Table:
    """The images of these units of a run that have no landmark, or one below the probability or the score
    asked for; see `self_search.read_images`.
    """
    found = []
    for table in run_store.read_predictions(config.run, ["image_id", "landmark_id", "score", "probability"]):
        none = pc.is_null(table["landmark_id"])
        for name, least in (("probability", config.min_probability), ("score", config.min_score)):
            if least is not None:
                none = pc.or_(none, pc.fill_null(pc.less(table[name], least), False))
        found.append(table.filter(none)["image_id"].combine_chunks())
    ids: pa.Array = pa.concat_arrays([pa.array([], pa.string()), *found])
    if not len(ids):
        raise ConfigError(
            f"every query of {config.run} has a landmark; --min_probability or --min_score says below what "
            "one has none"
        )
    images = self_search.read_images(FeatureStore(source.query_store), units)
    return images.filter(pc.is_in(images["image_id"], value_set=ids))  # broken photographs are not there


def _ids(photographs: pa.Table, index: IndexManifest, output: str) -> pa.Array:
    """What photographs of GROUPS are called in an index that the table is added to, string [N]."""
    if index.image_ids == "name":
        return photographs["image_id"]
    table = files.absolute(files.join(output, GROUPS))
    return pa.array([below(uri, table) for uri in photographs["uri"].to_pylist()], pa.string())


def _taken(ids: pa.ChunkedArray, root: str, index: IndexManifest) -> pa.ChunkedArray:
    """Those of `ids` that photographs of the index in `root` have."""
    units = [shard.unit for shard in index.shards if shard.images]
    known = pa.concat_tables(FeatureStore(root).read_units(units, ("image_id",)))["image_id"]
    return ids.filter(pc.is_in(ids, value_set=known.combine_chunks()))


def _learned(root: str, index: IndexManifest) -> Calibration:
    """What tells that two photographs show one place, learned from what those of the calibrated index in
    `root` found among themselves; that of the embedded model, and a word, where it is not calibrated.
    """
    try:
        tuned_settings_of(root, index)
    except ConfigError as e:
        print(
            f"{e}; what tells that two photographs show one place is that of the embedded model",
            file=sys.stderr,
        )
        return label_audit.TYPICAL
    images = self_search.read_images(FeatureStore(root), [s.unit for s in index.shards if s.images])
    landmark = dict(zip(*(images[name].to_pylist() for name in ("image_id", "landmark_id"))))
    found = [
        (candidate["inliers"], candidate["landmark_id"] == landmark[row["image_id"]])
        for folder in calibrate.evidence_folders(root)
        for table in run_store.read_predictions(folder, ["image_id", "candidates"])
        for row in table.to_pylist()
        for candidate in row["candidates"]
        if candidate["inliers"] is not None
    ]
    inliers, same = (np.array(column) for column in zip(*found)) if found else np.zeros((2, 0))
    # Cosines tell more of places that the index knows than of those that it does not.
    return label_audit.learn(np.zeros(len(found)), inliers, same.astype(bool))


def grouped(images: pa.Table, pairs: Pairs, learned: Calibration) -> tuple[pa.Table, pa.Table]:
    """The images that are in a group: group, image_id, links, uri; by group, those with most links first. And
    their links: group, image_id, other_image_id, similarity, inliers, probability; by group, the surest
    first.

    Groups are the connected components of at least MIN_GROUP images by pairs that are one place with a
    probability of at least ONE_PLACE. The largest is number 1; of equal ones that with the first image.
    """
    inliers = np.maximum(pairs.inliers, 0)
    probability = label_audit.pair_probabilities(pairs.similarity, inliers, learned)
    good = probability >= label_audit.ONE_PLACE
    linked, probability = pairs[good], probability[good]
    count = len(images)
    component = label_audit.components(linked.first, linked.second, count)
    links = np.bincount(np.concatenate([linked.first, linked.second]), minlength=count)
    size = np.bincount(component, minlength=count)
    rows = np.flatnonzero(size[component] >= label_audit.MIN_GROUP)
    rows = rows[np.lexsort((rows, -links[rows], component[rows], -size[component[rows]]))]
    number = np.zeros(count, np.int32)  # of its group, by component
    for place, head in enumerate(dict.fromkeys(component[rows].tolist()), 1):
        number[head] = place
    ids, group = images["image_id"].combine_chunks(), number[component]
    photographs = {
        "group": pa.array(group[rows]),
        "image_id": ids.take(pa.array(rows)),
        "links": pa.array(links[rows], pa.int32()),
        "uri": images["uri"].combine_chunks().take(pa.array(rows)),
    }
    ends = group[linked.first]
    at = np.flatnonzero(ends)
    at = at[np.lexsort((-probability[at], ends[at]))]
    evidence = {
        "group": pa.array(ends[at]),
        "image_id": ids.take(pa.array(linked.first[at])),
        "other_image_id": ids.take(pa.array(linked.second[at])),
        "similarity": linked.similarity[at],
        "inliers": pa.array(linked.inliers[at], pa.int32()),
        "probability": probability[at],
    }
    return pa.table(photographs), pa.table(evidence)
