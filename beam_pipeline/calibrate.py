"""The calibrate job: an index tunes itself, and learns how probable a prediction is.

A photograph of the index, asked for against the rest, is a query whose landmark is known; without the
candidates of its own landmark it is one whose landmark the index does not know. Photographs of other places
(--negatives) are further queries of that kind. What retrieval and verification find for them is kept in
INDEX/calibration/<digest>/, so that a job that was stopped goes on, and another share of queries without a
landmark needs no second search. INDEX/calibration.json is written last.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import cleaning, index_parts, layout, lock, outputs, recipe, runner, tuning
from beam_pipeline.config import PRESETS, CalibrateConfig, ConfigError
from beam_pipeline.manifest import IndexManifest, Manifest, RunManifest, digest
from beam_pipeline.prediction_rule import CALIBRATION
from beam_pipeline.tuning import MIN_QUERIES, TRIED, Queries, tune
from transforms import retrieval, verification
from transforms.aggregation import candidate_table
from transforms.database_augmentation import AugmentCandidates
from transforms.retrieval import QueryBlock, RetrieveNearest, plan_groups
from transforms.storage import files, run_store
from transforms.storage.feature_store import FeatureStore
from transforms.submission import WritePredictions
from transforms.types import CandidateUnit, Prediction, PredictionUnit, QueryCandidates, VerificationSettings
from transforms.verification import VerifyCandidates

NUM_TO_RERANK = PRESETS["accurate"].num_to_rerank
# Neighbours of a photograph of the index among which enough are of other landmarks.
_NEIGHBORS = 100
# Units from which the photographs are taken: their landmarks lie together, and many are wanted.
_SAMPLE_UNITS = 512
SELF, NEGATIVES = "self", "negatives"


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


def _kept(unit: CandidateUnit) -> PredictionUnit:
    """What is kept of queries: their candidates, nothing predicted."""
    predictions = tuple(
        Prediction(query.image_id, None, None, query.candidates, query.verified) for query in unit.queries
    )
    return PredictionUnit(unit.name, predictions, unit.failures)


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
    """

    name: str
    store: str
    blocks: list[QueryBlock]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is to be done.

    Attributes:
      config: what was asked for.
      index: the manifest of the index.
      verification: how candidates are verified.
      searches: the queries.
      evidence: folder for what is found.
    """

    config: CalibrateConfig
    index: IndexManifest
    verification: VerificationSettings
    searches: tuple[Search, ...]
    evidence: str


def prepare(config: CalibrateConfig) -> Prepared:
    """Finds the index and the photographs of other places.

    Raises:
      ConfigError, ValueError, OSError: something is wrong.
    """
    index = outputs.read_manifest(config.index, IndexManifest)
    units = [(shard.unit, shard.images) for shard in index.shards if shard.images]
    if not units:
        raise ConfigError(f"{config.index} holds no images: there is nothing to calibrate")
    settings = PRESETS["accurate"].verification
    distance = recipe.card_distance(index.recipe) or settings.max_distance
    settings = dataclasses.replace(settings, max_distance=distance)
    searches = [Search(SELF, config.index, sample_blocks(units, config.sample))]
    made_of = []
    for number, root in enumerate(config.negatives):
        manifest: Manifest = outputs.read_manifest(root, IndexManifest, RunManifest)
        if list(outputs.differences(manifest.recipe.identity, index.recipe.identity)):
            raise ConfigError(f"{root} was made with another model or other settings than {config.index}")
        store = manifest.query_store if isinstance(manifest, RunManifest) else root
        names = [(shard.unit, shard.images) for shard in manifest.shards if shard.images]
        searches.append(Search(f"{NEGATIVES}-{number}", store, sample_blocks(names, config.sample)))
        made_of.append(digest([name for name, _ in names]))
    key = {
        "index": index.digest(config.index),
        "sample": config.sample,
        "negatives": made_of,
        "verification": dataclasses.asdict(settings),
        "num_to_rerank": [NUM_TO_RERANK, _NEIGHBORS],
    }
    folder = files.join(config.index, "calibration", digest(key))
    return Prepared(config, index, settings, tuple(searches), folder)


def evidence_folders(index: str) -> list[str]:
    """Where lies what the photographs of a calibrated index found among themselves, laid out like a run."""
    own = (path.split("/") for path in layout.own_files(index, "index") if path.startswith("calibration/"))
    return sorted({files.join(index, *path[:3]) for path in own if path[2] == SELF})


def _pending(folder: str) -> Callable[[Any], bool]:
    return lambda unit: not run_store.has_predictions(folder, unit.name)


def build(pipeline: beam.Pipeline, prepared: Prepared) -> list[beam.PCollection[str]]:
    """The graph: what the queries find goes to the folder of evidence; gives the shards' names."""
    root, index = prepared.config.index, prepared.index
    groups = plan_groups((shard.unit, shard.images) for shard in index.shards)
    hints = functools.partial(runner.resource_hints, pipeline.options)
    written = []
    for search in prepared.searches:
        of_index = search.name == SELF
        folder = files.join(prepared.evidence, search.name)
        retrieve = RetrieveNearest(root, search.store, _NEIGHBORS if of_index else NUM_TO_RERANK, groups)
        verify = VerifyCandidates(root, search.store, prepared.verification, index.has_local_features)

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
            | f"Augmented {search.name}"
            >> AugmentCandidates(root, search.store, index.derived_list, leave_out=of_index)
            | f"Kept {search.name}" >> beam.Map(_kept).with_output_types(PredictionUnit)
            | f"Write {search.name}" >> WritePredictions(folder)
        )
    return written


def run(config: CalibrateConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Calibrates an index, or goes on with that; returns the exit code.

    Raises:
      ConfigError, ValueError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed.
    """
    started = time.monotonic()
    outputs.check_result(config.output, "coefficients")
    prepared = prepare(config)
    index, root = prepared.index, config.index
    with lock.held(root):
        cleaning.augment(root, index, options, engine)  # of an index made in another way
        expected = sum(
            min(config.sample, sum(index_images(prepared, search))) for search in prepared.searches
        )
        rows = [
            runner.row_counter(files.join(prepared.evidence, search.name, "predictions"))
            for search in prepared.searches
        ]
        metrics = runner.run_pipeline(
            lambda pipeline: build(pipeline, prepared),
            options,
            [runner.Phase("verify", expected, lambda: sum(count() for count in rows))],
            engine,
        )
        queries = read_queries(prepared)
        found: dict[str, Any] = {
            "index": index.digest(root),
            "model": index.recipe.name,
            **tune(queries, config.non_landmark_share),
            "seconds": runner.seconds(started, metrics),
        }
        output = config.output or files.join(root, CALIBRATION)
        found["settings"] = {
            "num_to_rerank": NUM_TO_RERANK,
            **dataclasses.asdict(prepared.verification),
            **found["settings"],
        }
        files.write_json(output, found)
        index_parts.prune_calibration(root, prepared.evidence)
    print(f"{output}: {summary(found)}")
    return 0


def index_images(prepared: Prepared, search: Search) -> Iterator[int]:
    """Photographs of the units that a search takes its queries from."""
    wanted = {unit for block in search.blocks for unit in block.units}
    if search.name == SELF:
        return (shard.images for shard in prepared.index.shards if shard.unit in wanted)
    return iter([prepared.config.sample])


def read_queries(prepared: Prepared) -> Queries:
    """What was found for all queries, in the order of their ids."""
    config, index = prepared.config, prepared.index
    count = index_parts.label_counts(config.index, index)
    label_of = _labels(prepared)
    made: list[tuple[int, str | None, QueryCandidates]] = []
    for search in prepared.searches:
        of_index = search.name == SELF
        found: list[QueryCandidates] = []
        for uri in files.list_files(files.join(prepared.evidence, search.name, "predictions"), ".parquet"):
            found += run_store.read_prediction_unit(uri, 2 * NUM_TO_RERANK).queries
        for query in sorted(found, key=lambda query: query.image_id):
            best = query.candidates[:NUM_TO_RERANK]
            if not of_index:
                made.append((2, None, dataclasses.replace(query, candidates=best)))
                continue
            own = label_of[query.image_id]
            others = [c for c in query.candidates if c.landmark_id != own][:NUM_TO_RERANK]
            if count[own] > 1:
                made.append((0, own, dataclasses.replace(query, candidates=best)))
            if others:
                made.append((1, own, dataclasses.replace(query, candidates=tuple(others))))
    table, names = candidate_table([query for _, _, query in made])
    number = {name: at for at, name in enumerate(names)}
    absent = len(names)  # the landmark of the index that no candidate has
    return Queries(
        table,
        np.array([number.get(own or "", absent) if kind == 0 else -1 for kind, own, _ in made], np.int64),
        np.array([_fold(own or query.image_id) for _, own, query in made], np.int64),
        np.array([kind for kind, _, _ in made], np.int64),
    )


def _labels(prepared: Prepared) -> dict[str, str]:
    """The landmarks of the photographs of the index that are queries."""
    store = FeatureStore(prepared.config.index)
    found: dict[str, str] = {}
    for block in prepared.searches[0].blocks:
        for unit in block.units:
            table = store.read_images(unit, ["image_id", "landmark_id"])
            found.update(zip(*(table.column(name).to_pylist() for name in ("image_id", "landmark_id"))))
    return found


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
    measured, settings = found["cross_validated"], found["settings"]
    scores = ", ".join(f"{name} {settings[name]:g}" for name in dataclasses.asdict(TRIED[0]))
    return (
        f"{scores}; on {counts['known']:,} queries with and "
        f"{counts['left_out'] + counts['negatives']:,} without a landmark, cross-validated: GAP "
        f"{measured['gap']:.3f}, calibration error {measured['calibration_error']:.3f}, precision at 0.9 "
        f"{measured['precision']['0.9']}; {found['seconds']['total']:,.1f} s"
    )
