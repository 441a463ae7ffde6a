"""The discover job: queries without a landmark, searched in themselves, for places that wait for a name.

Queries that show one place form a group. A person names it in <output>/groups.csv; the same command, started
again, makes of named groups what `landmarks index --append` takes: <output>/images.txt and
<output>/labels.csv.
"""

import dataclasses
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import calibrate, integrity, outputs, runner, self_search
from beam_pipeline.config import ConfigError, DiscoverConfig
from beam_pipeline.manifest import FORMAT, MANIFEST, IndexManifest, RunManifest, versions
from beam_pipeline.prediction_rule import tuned_settings_of
from beam_pipeline.self_search import Pairs, SelfSearch
from transforms.arrays import label_audit
from transforms.arrays.calibration import Calibration
from transforms.storage import files, run_store, tables
from transforms.storage.feature_store import FeatureStore

GROUPS, LABELS, IMAGES = "groups.csv", "labels.csv", "images.txt"
_WANTED = "wanted.parquet"
_EXAMPLES = 3  # photographs of a group that stand beside its name


def run(config: DiscoverConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Finds groups among the queries of a run, or goes on with that; of a finished output it takes the names.
    Returns the exit code.

    Raises:
      ConfigError, TableError, OSError: something is wrong before the pipeline starts.
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
            return _take_names(config.output)
        integrity.check_sizes(config.run, source)
        wanted = _without_landmark(config)
        uri = files.join(config.output, _WANTED)
        files.write_parquet(uri, pa.table({"image_id": wanted}))
        units = tuple((shard.unit, shard.images) for shard in source.shards if shard.images)
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
        images = self_search.read_images(FeatureStore(source.query_store), [unit for unit, _ in units])
        images = images.filter(pc.is_in(images["image_id"], value_set=wanted)).combine_chunks()
        pairs = self_search.read_pairs(search, images["image_id"].combine_chunks())
        photographs = grouped(images, pairs, _learned(source.index))
        groups = _groups(photographs)
        for name, table in (("photographs", photographs), ("groups", groups)):
            files.write_parquet(files.join(config.output, f"{name}.parquet"), table)
        tables.write_csv(files.join(config.output, GROUPS), groups)
        people = photographs.rename_columns(["group", "id", *photographs.column_names[2:]])
        tables.write_csv(files.join(config.output, "photographs.csv"), people)
        counts = {"queries": len(wanted), "groups": len(groups), "photographs": len(photographs)}
        files.write_json(
            files.join(config.output, MANIFEST),
            {
                **made_with,
                "run_uri": files.place_in(config.output, config.run),
                "complete": not late,
                "counts": {**counts, "out_of_time": late},
                "seconds": runner.seconds(started, metrics),
                "versions": versions(),
            },
        )
        if not late:
            run_store.delete_candidates(search.folder)
        then = f"; name them in {files.join(config.output, GROUPS)} and run this again" if len(groups) else ""
        print(
            f"{config.output}: {len(groups):,} groups with {len(photographs):,} of {len(wanted):,} queries "
            f"without a landmark{then}"
        )
        if late:
            print(f"{late:,} queries were not searched for in time: the same command goes on from here")
    return 0


def _without_landmark(config: DiscoverConfig) -> pa.Array:
    """The queries of a run that have no landmark, or one below the probability or the score asked for; string
    [N], ascending.
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
            f"every query of {config.run} has a landmark: --min_probability or --min_score says below what "
            "it has "
            "none"
        )
    return ids.sort()


def _learned(index: str) -> Calibration:
    """What tells that two photographs show one place, learned from what those of a calibrated index found
    among themselves; that of the embedded model, and a word, where the index is not calibrated.
    """
    try:
        manifest = outputs.read_manifest(index, IndexManifest)
        tuned_settings_of(index, manifest)
    except ConfigError as e:
        print(
            f"{e}; what tells that two photographs show one place is that of the embedded model",
            file=sys.stderr,
        )
        return label_audit.TYPICAL
    images = self_search.read_images(FeatureStore(index), [s.unit for s in manifest.shards if s.images])
    landmark = dict(zip(*(images[name].to_pylist() for name in ("image_id", "landmark_id"))))
    found = [
        (candidate["inliers"], candidate["landmark_id"] == landmark[row["image_id"]])
        for folder in calibrate.evidence_folders(index)
        for table in run_store.read_predictions(folder, ["image_id", "candidates"])
        for row in table.to_pylist()
        for candidate in row["candidates"]
        if candidate["inliers"] is not None
    ]
    inliers, same = (np.array(column) for column in zip(*found)) if found else np.zeros((2, 0))
    # Cosines tell more of places that the index knows than of those that it does not.
    return label_audit.learn(np.zeros(len(found)), inliers, same.astype(bool))


def grouped(images: pa.Table, pairs: Pairs, learned: Calibration) -> pa.Table:
    """The images that are in a group: group, image_id, links, uri; by group, those with most links first.

    Groups are the connected components of at least MIN_GROUP images by pairs that are one place with a
    probability of at least ONE_PLACE. The largest is number 1; of equal ones that with the first image.
    """
    inliers = np.maximum(pairs.inliers, 0)
    probability = label_audit.pair_probabilities(pairs.similarity, inliers, learned)
    linked = pairs[probability >= label_audit.ONE_PLACE]
    count = len(images)
    component = label_audit.components(linked.first, linked.second, count)
    links = np.bincount(np.concatenate([linked.first, linked.second]), minlength=count)
    size = np.bincount(component, minlength=count)
    rows = np.flatnonzero(size[component] >= label_audit.MIN_GROUP)
    rows = rows[np.lexsort((rows, -links[rows], component[rows], -size[component[rows]]))]
    heads = list(dict.fromkeys(component[rows].tolist()))
    number = {head: at for at, head in enumerate(heads, 1)}
    return pa.table(
        {
            "group": pa.array([number[head] for head in component[rows].tolist()], pa.int32()),
            "image_id": images["image_id"].combine_chunks().take(pa.array(rows)),
            "links": pa.array(links[rows], pa.int32()),
            "uri": images["uri"].combine_chunks().take(pa.array(rows)),
        }
    )


def _groups(photographs: pa.Table) -> pa.Table:
    """A row per group: its number, an empty name, how many photographs it has, and the places of some."""
    uris: dict[int, list[str]] = {}
    for group, uri in zip(photographs["group"].to_pylist(), photographs["uri"].to_pylist()):
        uris.setdefault(group, []).append(uri)
    return pa.table(
        {
            "group": pa.array(list(uris), pa.int32()),
            "name": pa.array([""] * len(uris), pa.string()),
            "photographs": pa.array([len(members) for members in uris.values()], pa.int32()),
            "examples": pa.array([" ".join(members[:_EXAMPLES]) for members in uris.values()], pa.string()),
        }
    )


def _take_names(output: str) -> int:
    """Writes what --append takes of the groups that have a name."""
    names = tables.read_group_names(files.join(output, GROUPS))
    photographs = files.read_parquet(files.join(output, "photographs.parquet"))
    unknown = sorted(names.keys() - {str(group) for group in photographs["group"].to_pylist()})
    if unknown:
        raise ConfigError(
            f"{files.join(output, GROUPS)} names the group {unknown[0]}, which {output} does not have"
        )
    if not len(photographs):
        print(f"{output} is finished; it has no groups")
        return 0
    if not names:
        print(f"{output} is finished; no group in {files.join(output, GROUPS)} has a name yet")
        return 0
    rows = [row for row in photographs.to_pylist() if str(row["group"]) in names]
    labels = [{"id": row["image_id"], "landmark_id": names[str(row["group"])]} for row in rows]
    tables.write_csv(files.join(output, LABELS), pa.Table.from_pylist(labels))
    files.write_bytes(files.join(output, IMAGES), "".join(f"{row['uri']}\n" for row in rows).encode())
    print(
        f"{output}: {len(names):,} groups have a name; `landmarks index --append --images "
        f"@{files.join(output, IMAGES)} "
        f"--labels {files.join(output, LABELS)} --output INDEX` adds their {len(rows):,} photographs"
    )
    return 0
