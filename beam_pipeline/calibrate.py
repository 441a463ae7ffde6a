"""The calibrate job: an index tunes itself, and learns how probable a prediction is.

A photograph of the index, asked for against the rest, is a query whose landmark is known; without the
candidates of its own landmark it is one whose landmark the index does not know. Photographs of other places,
the cohort that comes with the model and --negatives, are further queries of that kind. What retrieval and
verification find for them is kept in INDEX/calibration/<digest>/, so that a job that was stopped goes on, and
another share of queries without a landmark needs no second search. INDEX/calibration.json is written last.
Where a time budget ends before the search, it is of the queries that were done, should they be enough.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import (
    cleaning,
    ensemble,
    index_parts,
    integrity,
    layout,
    lock,
    outputs,
    runner,
    self_search,
    tuning,
)
from beam_pipeline.budget import OutOfTimeError
from beam_pipeline.config import PRESETS, CalibrateConfig, ConfigError
from beam_pipeline.manifest import CohortManifest, IndexManifest, Manifest, RunManifest, digest
from beam_pipeline.prediction_rule import CALIBRATION
from beam_pipeline.tuning import MIN_QUERIES, TRIED, Queries, tune
from transforms import retrieval, verification
from transforms.aggregation import candidate_table
from transforms.database_augmentation import AugmentCandidates
from transforms.gap import SPLITS
from transforms.models import catalog
from transforms.models.model import leading
from transforms.retrieval import QueryBlock, RetrieveNearest, plan_groups
from transforms.storage import files, run_store, tables
from transforms.storage.feature_store import FeatureStore, labels_in
from transforms.submission import WritePredictions
from transforms.types import CandidateUnit, PredictionUnit, QueryCandidates, VerificationSettings
from transforms.verification import VerifyCandidates

NUM_TO_RERANK = PRESETS["accurate"].num_to_rerank
# Neighbours of a photograph of the index among which enough are of other landmarks.
_NEIGHBORS = 100
# Units from which the photographs are taken: their landmarks lie together, and many are wanted.
_SAMPLE_UNITS = 512
SELF, NEGATIVES, COHORT = "self", "negatives", "cohort"
# A photograph of the embedded model's cohort that reaches either in an index shows a place that is there
# (docs/accuracy-and-speed.md).
_SAME_PLACE_COSINE, _SAME_PLACE_INLIERS = 0.5, 60


def as_queries(unit: CandidateUnit) -> CandidateUnit:
    """Photographs of an index with what was retrieved for them there -> themselves left out, the candidates
    that count with and without their own landmark. One that did not find itself is left out.
    """
    queries = []
    for query in unit.queries:
        own = next((c.landmark_id for c in query.candidates if c.image_id == query.image_id), None)
        if own is not None:
            rest = [c for c in query.candidates if c.image_id != query.image_id]
            others = [c for c in rest if c.landmark_id != own][:NUM_TO_RERANK]
            kept = {c.image_id for c in rest[:NUM_TO_RERANK]} | {c.image_id for c in others}
            found = tuple(c for c in rest if c.image_id in kept)
            queries.append(dataclasses.replace(query, candidates=found))
    return dataclasses.replace(unit, queries=tuple(queries))


def sample_blocks(units: Sequence[tuple[str, int]], sample: int) -> list[QueryBlock]:
    """The queries of an index of these (unit, images): about `sample` of its photographs."""
    chosen = sorted(units, key=lambda unit: hashlib.sha256(unit[0].encode()).digest())[:_SAMPLE_UNITS]
    share = sample / max(1, sum(images for _, images in chosen))
    blocks = retrieval.plan_blocks(sorted(chosen), round(retrieval.IMAGES_PER_BLOCK / min(1.0, share)))
    names = sorted(set(blocks.values()))
    return [QueryBlock(name, tuple(u for u, b in blocks.items() if b == name), share) for name in names]


@dataclasses.dataclass(frozen=True)
class Search:
    """Queries that are searched in the index.

    Attributes:
      name: SELF or NEGATIVES with a number.
      store: feature store of the queries.
      blocks: of them.
      folder: for what is found.
    """

    name: str
    store: str
    blocks: list[QueryBlock]
    folder: str

    @property
    def neighbors(self) -> int:
        """Candidates that are retrieved for each."""
        return _NEIGHBORS if self.name == SELF else NUM_TO_RERANK

    def unit_sizes(self) -> dict[str, int]:
        """The units of all queries, by name, and the number of queries of each."""
        store = FeatureStore(self.store)
        sizes = [retrieval.unit_sizes(store, block, self.neighbors) for block in self.blocks]
        return {unit: size for of_block in sizes for unit, size in of_block.items()}

    def undone(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Those of these units that were not searched for yet."""
        done = {uri.rsplit("/", 1)[-1] for uri in run_store.final_shards(self.folder)}
        return {unit: size for unit, size in sizes.items() if f"{unit}.parquet" not in done}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is to be done.

    Attributes:
      root: the index.
      index: its manifest.
      run: a finished run, of queries that are learned from too or joined; None for none.
      verification: how candidates are verified.
      searches: the queries.
      evidence: folder for what is found.
      with_cohort: whether the queries of the second search are the cohort of the index's model.
    """

    root: str
    index: IndexManifest
    run: str | None
    verification: VerificationSettings
    searches: tuple[Search, ...]
    evidence: str
    with_cohort: bool


def prepare(config: CalibrateConfig) -> list[Prepared]:
    """What is to be done for each index: one, or those of an ensemble.

    Raises:
      ConfigError, ValueError, OSError: something is wrong.
    """
    if not config.runs:
        assert config.index is not None
        return [_prepare(config, config.index, None)]
    runs = [outputs.read_manifest(run, RunManifest) for run in config.runs]
    made = [_prepare(config, config.index or of.index, run) for of, run in zip(runs, config.runs)]
    for prepared, run, of in zip(made, config.runs, runs):
        if outputs.read_settings(run)["index"] != prepared.index.digest(prepared.root):
            raise ConfigError(f"{run} is of another index than {prepared.root}, or that was changed since")
        kept = of.hyperparameters["num_to_rerank"]
        if not of.complete or of.verification != prepared.verification or kept < NUM_TO_RERANK:
            raise ConfigError(
                f"{run} is no finished run with {NUM_TO_RERANK} candidates that are verified as calibrations "
                "do: `landmarks recognize --preset accurate` makes one"
            )
    return made


def _prepare(config: CalibrateConfig, root: str, run: str | None) -> Prepared:
    index = outputs.read_manifest(root, IndexManifest)
    units = [(shard.unit, shard.images) for shard in index.shards if shard.images]
    if not units:
        raise ConfigError(f"{root} holds no images: there is nothing to calibrate")
    settings = self_search.settings_of(index.recipe)
    negatives = [_negatives(store, root, index) for store in config.negatives]
    cohort = _cohort(root, index)
    if cohort is not None:
        negatives.insert(0, cohort)
    key = {
        "index": index.digest(root),
        "sample": config.sample,
        "negatives": [digest([name for name, _ in names]) for _, names in negatives],
        "verification": dataclasses.asdict(settings),
        "num_to_rerank": [NUM_TO_RERANK, _NEIGHBORS],
    }
    folder = files.join(root, "calibration", digest(key))

    def search(name: str, store: str, units: Sequence[tuple[str, int]]) -> Search:
        return Search(name, store, sample_blocks(units, config.sample), files.join(folder, name))

    searches = [search(SELF, root, units)]
    for number, (store, names) in enumerate(negatives):
        searches.append(search(f"{NEGATIVES}-{number}", store or files.join(folder, COHORT), names))
    return Prepared(root, index, run, settings, tuple(searches), folder, cohort is not None)


def _negatives(root: str, index: str, manifest: IndexManifest) -> tuple[str, list[tuple[str, int]]]:
    """The feature store of photographs of other places in an output, and its units as (name, images).

    Raises:
      ConfigError, ValueError: it is no such output, or was made in another way than the index.
    """
    found: Manifest = outputs.read_manifest(root, CohortManifest, IndexManifest, RunManifest)
    differing = list(outputs.differences(found.recipe.identity, manifest.recipe.identity))
    if differing:
        raise ConfigError(
            f"{root} was made with another model or other settings than {index}: {'; '.join(differing)}. A "
            f"run of such photographs, `landmarks recognize --index {index}`, has those of the index"
        )
    store = found.query_store if isinstance(found, RunManifest) else root
    return store, [(shard.unit, shard.images) for shard in found.shards if shard.images]


def _cohort(index: str, manifest: IndexManifest) -> tuple[str, list[tuple[str, int]]] | None:
    """As `_negatives`, of the cohort that comes with the index's model, whose store is yet to be copied: "";
    None where there is none of its settings. It has all axes, of which those are taken that the index has.
    """
    root = catalog.cohort(manifest.recipe.model)
    if root is None:
        return None
    settings = dataclasses.replace(manifest.recipe.settings, global_dimensions=None)
    all_axes = dataclasses.replace(manifest.recipe, settings=settings)
    try:
        return "", _negatives(root, index, dataclasses.replace(manifest, recipe=all_axes))[1]
    except ConfigError as e:
        print(f"the cohort of {manifest.recipe.name} is not used: {e}", file=sys.stderr)
        return None


def _copy_cohort(prepared: Prepared) -> None:
    """Copies the cohort of the index's model to where workers find it, with the axes that the index has."""
    root = catalog.cohort(prepared.index.recipe.model)
    assert root is not None
    source, copy = FeatureStore(root), FeatureStore(files.join(prepared.evidence, COHORT))
    for unit in source.units():
        copy.write_projected(unit, source, unit, lambda rows: leading(rows, prepared.index.global_dimensions))


def evidence_folders(index: str) -> list[str]:
    """Where lies what the photographs of a calibrated index found among themselves, laid out like a run."""
    own = (path.split("/") for path in layout.own_files(index, "index") if path.startswith("calibration/"))
    return sorted({files.join(index, *path[:3]) for path in own if path[2] == SELF})


def _pending(folder: str) -> Callable[[Any], bool]:
    return lambda unit: not run_store.has_predictions(folder, unit.name)


def build(
    pipeline: beam.Pipeline, prepared: Prepared, searches: Sequence[Search], deadline: float = math.inf
) -> list[beam.PCollection[str]]:
    """The graph: what the queries of some searches find until a deadline goes to the folder of evidence;
    gives the shards' names. A unit that is not done by then leaves nothing.
    """
    root, index = prepared.root, prepared.index
    groups = plan_groups((shard.unit, shard.images) for shard in index.shards)
    hints = functools.partial(runner.resource_hints, pipeline.options)
    written = []
    for search in searches:
        of_index, folder = search.name == SELF, search.folder
        retrieve = RetrieveNearest(root, search.store, search.neighbors, groups, deadline, folder)
        verify = VerifyCandidates(
            root,
            search.store,
            prepared.verification,
            index.has_local_features,
            deadline,
            promising_first=False,
        )

        units = (
            pipeline
            | f"Queries {search.name}" >> beam.Create(search.blocks).with_output_types(QueryBlock)
            | f"Retrieve {search.name}" >> retrieve.with_resource_hints(**hints(retrieval.MIN_RAM))
            | f"Pending {search.name}" >> beam.Filter(_pending(folder))
        )
        if of_index:
            units |= "AsQueries" >> beam.Map(as_queries).with_output_types(CandidateUnit)
        written.append(
            units
            | f"Verify {search.name}" >> verify.with_resource_hints(**hints(verification.MIN_RAM))
            | f"InTime {search.name}" >> beam.Filter(lambda unit: unit.final)
            | f"Augmented {search.name}"
            >> AugmentCandidates(root, search.store, index.derived_list, leave_out=of_index)
            | f"Kept {search.name}" >> beam.Map(self_search.kept).with_output_types(PredictionUnit)
            | f"Write {search.name}" >> WritePredictions(folder)
        )
    return written


def run(config: CalibrateConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Calibrates an index, or goes on with that; returns the exit code.

    Raises:
      ConfigError, ValueError, OSError: something is wrong before the pipeline starts.
      OutOfTimeError: the time budget ended before there was enough to learn from.
      PipelineError: the pipeline failed, or the engine lost queries.
    """
    started = time.monotonic()
    outputs.check_result(config.output, "coefficients")
    members = prepare(config)
    truth = _read_truth(config.truth) if config.truth else None
    with contextlib.ExitStack() as held:
        for root in sorted({prepared.root for prepared in members}):
            held.enter_context(lock.held(root))
        metrics, late, end = Counter[str](), 0, self_search.deadline_of(config.budget)
        for at, prepared in enumerate(members):  # each has its part of the time that is left
            deadline = time.time() + (end - time.time()) / (len(members) - at)
            found_by, undone = _search(prepared, deadline, options, engine)
            metrics.update(found_by)
            late += undone
        asked = [_asked(prepared, truth) for prepared in members]
        tried = {
            weights: tune(_table(_joined(asked, weights)), config.non_landmark_share)
            for weights in ensemble.weightings(len(members))
        }
        best = max(tried, key=lambda weights: max((one["gap"] for one in tried[weights]["tried"]), default=0))
        first = members[0]
        found: dict[str, Any] = {
            "index": first.index.digest(first.root),
            "model": first.index.recipe.name,
            **tried[best],
            "out_of_time": late,
            "seconds": runner.seconds(started, metrics),
        }
        found["settings"] = {
            "num_to_rerank": NUM_TO_RERANK,
            **dataclasses.asdict(first.verification),
            **found["settings"],
        }
        if len(members) > 1:
            found["ensemble"] = [
                {
                    "index": one.index.digest(one.root),
                    "model": one.index.recipe.name,
                    "weight": weight,
                    "verification": dataclasses.asdict(one.verification),
                }
                for one, weight in zip(members, best)
            ]
        if late and found["coefficients"] is None:
            raise OutOfTimeError(
                f"{late:,} photographs were not searched for in time, and the others are too few to learn "
                "from: the same `landmarks calibrate` goes on from here, given more of it"
            )
        output = output_of(config)
        files.write_json(output, found)
        for prepared in members:
            index_parts.prune_calibration(prepared.root, prepared.evidence)
    print(f"{output}: {summary(found)}")
    return 0


def output_of(config: CalibrateConfig) -> str:
    """Where the calibration goes."""
    if config.output:
        return config.output
    index = config.index or outputs.read_manifest(config.runs[0], RunManifest).index
    return files.join(index, CALIBRATION)


def _search(
    prepared: Prepared, deadline: float, options: PipelineOptions, engine: PipelineRunner | None
) -> tuple[Mapping[str, int], int]:
    """Finds what the index and the cohorts find in the index; returns the pipeline's metrics, and how many
    queries were not done in time.
    """
    root, index = prepared.root, prepared.index
    integrity.check_sizes(root, index)
    cleaning.augment(root, index, options, engine)  # of an index made in another way
    if prepared.with_cohort:
        _copy_cohort(prepared)
    sizes = {search.name: search.unit_sizes() for search in prepared.searches}
    undone = [search for search in prepared.searches if search.undone(sizes[search.name])]
    together = [undone] if undone else []
    if deadline < math.inf:  # other places come first: without any a calibration is too sure of itself
        together = [[search] for search in sorted(undone, key=lambda search: search.name == SELF)]
    metrics = Counter[str]()
    for searches in together:
        expected = sum(sum(sizes[search.name].values()) for search in searches)
        phases = [
            runner.Phase(label, expected, _rows_of([files.join(search.folder, part) for search in searches]))
            for label, part in (("retrieve", run_store.CANDIDATES), ("verify", "predictions"))
        ]
        graph = functools.partial(build, prepared=prepared, searches=searches, deadline=deadline)
        metrics.update(runner.run_pipeline(graph, options, phases, engine))
    late = 0
    for search in prepared.searches:
        missing = search.undone(sizes[search.name])
        late += sum(missing.values())
        if not missing:
            run_store.delete_candidates(search.folder)
        failures = files.join(search.folder, "failures")
        failed = sum(map(files.parquet_rows, files.list_files(failures, ".parquet")))
        if failed:
            print(
                f"{failed:,} readings of local features failed and count for nothing; see {failures}",
                file=sys.stderr,
            )
    if late and time.time() < deadline:
        raise runner.lost_work(f"{late:,} photographs were not searched for")
    return metrics, late


def _rows_of(folders: Sequence[str]) -> Callable[[], int]:
    counters = [runner.row_counter(folder) for folder in folders]
    return lambda: sum(count() for count in counters)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A query whose truth is known.

    Attributes:
      kind: see Queries.
      landmark: that it shows; None where that has no name.
      found: in the index.
    """

    kind: int
    landmark: str | None
    found: QueryCandidates


def shows_known_place(query: QueryCandidates) -> bool:
    """Whether a photograph of the embedded model's cohort shows a place that the index holds, which makes it
    no query without a landmark there.
    """
    return any(
        candidate.similarity >= _SAME_PLACE_COSINE or (candidate.inliers or 0) >= _SAME_PLACE_INLIERS
        for candidate in query.candidates
    )


def _read_truth(uri: str) -> dict[str, list[str]]:
    """The landmarks of each query, by id; Usage Ignored left out."""
    truth = tables.read_truth(uri)
    rows = zip(*(truth[name].to_pylist() for name in ("image_id", "landmark_ids", "usage")))
    return {image_id: names for image_id, names, usage in rows if usage in SPLITS["all"]}


def _asked(prepared: Prepared, truth: Mapping[str, list[str]] | None) -> dict[tuple[str, int, str], Asked]:
    """All queries, by where they come from, kind and id, in this order."""
    root, index = prepared.root, prepared.index
    count = index_parts.label_counts(root, index)
    label_of = _labels(prepared)
    made: dict[tuple[str, int, str], Asked] = {}
    cohort = prepared.searches[1].name if prepared.with_cohort else None
    known_places = 0

    def add(source: str, kind: int, landmark: str | None, found: QueryCandidates) -> None:
        made[source, kind, found.image_id] = Asked(kind, landmark, found)

    for search in prepared.searches:
        for query in _found(search.folder):
            if index.has_local_features and not query.verified:  # its own could not be read
                continue
            best = dataclasses.replace(query, candidates=query.candidates[:NUM_TO_RERANK])
            if search.name == cohort and shows_known_place(best):
                known_places += 1
                continue
            if search.name != SELF:
                add(search.name, 2, None, best)
                continue
            own = label_of[query.image_id]
            others = tuple(c for c in query.candidates if c.landmark_id != own)[:NUM_TO_RERANK]
            if count[own] > 1:
                add(SELF, 0, own, best)
            if others:
                add(SELF, 1, own, dataclasses.replace(query, candidates=others))
    if known_places:
        print(f"{known_places} of the model's cohort show places of {root} and are left out", file=sys.stderr)
    if truth is not None and prepared.run is not None:
        for query in _found(prepared.run):
            if query.image_id in truth:
                names = truth[query.image_id]
                known = [name for name in names if count[name]]
                best = dataclasses.replace(query, candidates=query.candidates[:NUM_TO_RERANK])
                add("truth", 0 if known else 2, next(iter(known or names), None), best)
    return dict(sorted(made.items()))


def _found(folder: str) -> Iterator[QueryCandidates]:
    for uri in files.list_files(files.join(folder, "predictions"), ".parquet"):
        yield from run_store.read_prediction_unit(uri, 2 * NUM_TO_RERANK).queries


def _joined(asked: Sequence[Mapping[tuple[str, int, str], Asked]], weights: Sequence[float]) -> list[Asked]:
    """The queries that all members of an ensemble have, joined; those of one index as they are."""
    first, *others = asked
    if not others:
        return list(first.values())
    return [
        dataclasses.replace(one, found=ensemble.joined([a[key].found for a in asked], weights))
        for key, one in first.items()
        if all(key in other for other in others)
    ]


def _table(asked: Sequence[Asked]) -> Queries:
    """Queries as arrays."""
    table, names = candidate_table([one.found for one in asked])
    number = {name: at for at, name in enumerate(names)}
    absent = len(names)  # the landmark of the index that no candidate has
    return Queries(
        table,
        np.array([number.get(o.landmark or "", absent) if o.kind == 0 else -1 for o in asked], np.int64),
        np.array([_fold(one.landmark or one.found.image_id) for one in asked], np.int64),
        np.array([one.kind for one in asked], np.int64),
    )


def _labels(prepared: Prepared) -> dict[str, str]:
    """The landmarks of the photographs of the index that are queries."""
    units = [unit for block in prepared.searches[0].blocks for unit in block.units]
    tables = FeatureStore(prepared.root).read_units(units, ["image_id", "landmark_id"])
    return {name: label or "" for table in tables for name, label in labels_in(table).items()}


def _fold(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") % tuning.FOLDS


def summary(found: dict[str, Any]) -> str:
    """A calibration for people."""
    counts = found["queries"]
    if found["coefficients"] is None:
        return (
            f"too little to learn from: {counts['known']} photographs share their landmark with another, "
            f"{counts['left_out'] + counts['negatives']} queries have none; at least {MIN_QUERIES} of each "
            "are needed. --preset tuned takes scores that are good in general, without probabilities"
        )
    measured, settings, late = found["cross_validated"], found["settings"], found["out_of_time"]
    rest = f"; {late:,} photographs were not searched for in time: the same command goes on from here"
    scores = ", ".join(f"{name} {settings[name]:g}" for name in dataclasses.asdict(TRIED[0]))
    return (
        f"{scores}; on {counts['known']:,} queries with and "
        f"{counts['left_out'] + counts['negatives']:,} without a landmark, cross-validated: GAP "
        f"{measured['gap']:.3f}, calibration error {measured['calibration_error']:.3f}, precision at 0.9 "
        f"{measured['precision']['0.9']}; {found['seconds']['total']:,.1f} s{rest if late else ''}"
    )
