"""The pilot: before a job with a time budget, a sample of its work shows how fast this machine is at each
stage.

It runs in a process of its own: a model that takes too long to load can be stopped, and the memory it takes
is that of a worker. Nothing is written to the output.
"""

import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import budget, quiet, runner
from beam_pipeline.budget import Measured, Schedule, Work
from beam_pipeline.config import TimeBudget
from beam_pipeline.recipe import Recipe
from transforms import database_augmentation
from transforms.arrays.database_augmentation import augmented_cosines
from transforms.arrays.dot_products import NumpyProduct, fastest_product
from transforms.arrays.nearest import SMALL_PRODUCT, DescriptorBlock, IndexBlock, nearest
from transforms.arrays.quantization import quantized
from transforms.features import UnitFeatures, extract_unit
from transforms.models import catalog
from transforms.retrieval import UNIT_QUERIES, read_index_block
from transforms.storage import feature_store, files, object_stores, run_store
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    FeatureLocation,
    ImageFeatures,
    ImageRef,
    ImageUnit,
    Prediction,
    PredictionUnit,
    QuantizedFeatures,
    QueryCandidates,
    VerificationSettings,
)
from transforms.verification import one_thread, verify_pair

_SAMPLE_IMAGES = 64
_UNIT_IMAGES = 4
_VERIFIED_QUERIES = 16
_SAMPLE_PAIRS = 192
_SAMPLE_QUERIES = 256
_SAMPLE_ROWS = 4096, 4 * 4096
_SECONDS = 15.0  # for each of the two samples, images and pairs; no more of them are begun then
_PART_OF_BUDGET = 0.5

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Search:
    """What the queries of a sample are searched in and verified with.

    Attributes:
      index_root: the index.
      units: its shards, as (name, images).
      query_root: the queries' feature store.
      query_units: its finished shards.
      k: candidates per query.
      verification: None where candidates are not verified.
      predict: makes a prediction of candidates.
      augmented: name of the list of the index's augmented shards; None where it has none.
    """

    index_root: str
    units: tuple[tuple[str, int], ...]
    query_root: str
    query_units: tuple[str, ...]
    k: int
    verification: VerificationSettings | None
    predict: Callable[[QueryCandidates], Prediction]
    augmented: str | None


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the pilot tries.

    Attributes:
      recipe: how photographs become features.
      images: to extract; none, and no model is loaded.
      work: of the whole job.
      beam_flags: the job's options of Beam.
      search: None for an index.
    """

    recipe: Recipe
    images: tuple[ImageRef, ...]
    work: Work
    beam_flags: dict[str, Any]
    search: Search | None = None


def sample_images(units: Iterable[ImageUnit], number: int = _SAMPLE_IMAGES) -> tuple[ImageRef, ...]:
    """`number` images, or all, that stand for the images of `units`: evenly spaced in the order of their file
    sizes.
    """
    images = sorted(
        (ref for unit in units for ref in unit.images), key=lambda ref: (ref.size_bytes, ref.image_id)
    )
    if len(images) > number:
        images = [images[(2 * i + 1) * len(images) // (2 * number)] for i in range(number)]
    return tuple(images)


def sample_of(
    recipe: Recipe,
    missing: Sequence[ImageUnit],
    options: PipelineOptions,
    search: Search | None = None,
    **counts: int,
) -> Sample:
    """The sample of a job that has the units `missing` to extract, and else work of these `counts`."""
    images = sum(len(unit.images) for unit in missing)
    work = budget.work_of(options, images=images, units=len(missing), **counts)
    flags = options.get_all_options(drop_default=True, retain_unknown_options=False)
    return Sample(recipe, sample_images(missing), work, flags, search)


def measure(sample: Sample) -> Measured:
    """Tries a sample in this process.

    Raises:
      ModelError, OSError: what the job itself would raise before its pipeline starts.
    """
    started = time.monotonic()
    options = PipelineOptions.from_dictionary(sample.beam_flags)
    workers = len(os.sched_getaffinity(0)) if sample.work.engine else sample.work.workers
    with object_stores.using(options), tempfile.TemporaryDirectory(prefix="landmarks-pilot-") as scratch:
        found, extracted = _measure_extraction(sample, workers, scratch) if sample.images else ({}, [])
        if sample.search is not None:
            found.update(_measure_search(sample.search, sample.work, extracted, workers, scratch))
        if not sample.work.engine:
            found["pipeline"] = _seconds(lambda: runner.run_pipeline(_empty, options, []))
    # Kibibytes on Linux.
    found["memory"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(**found, seconds=time.monotonic() - started)


def _empty(pipeline: beam.Pipeline) -> None:
    pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(str)


def _measure_extraction(
    sample: Sample, workers: int, scratch: str
) -> tuple[dict[str, Any], list[ImageFeatures]]:
    begun = time.monotonic()
    recipe = sample.recipe
    model = catalog.load(recipe.model, recipe.settings)
    load = time.monotonic() - begun
    if not model.global_width:
        return {}, []  # the job itself says what is wrong with it

    def extract(refs: Sequence[ImageRef]) -> UnitFeatures | None:
        return extract_unit(ImageUnit("pilot", tuple(refs)), model, recipe.reader)

    # Several to a unit, as in the job: while one is computed the next ones are read.
    size = max(1, min(_UNIT_IMAGES, len(sample.images) // (2 * workers)))
    units = [sample.images[at : at + size] for at in range(0, len(sample.images) - size + 1, size)]
    extracted, each = _each(extract, [unit[:1] for unit in units[:workers]], units, workers)
    features = [feature for unit in extracted for feature in unit.features]
    failures = [failure for unit in extracted for failure in unit.failures]
    writing = _seconds(
        lambda: FeatureStore(scratch).write_unit("pilot", features, failures, model.global_width)
    )
    written = sum(
        os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(scratch) for name in names
    )
    images = len(features) + len(failures)
    found = dict(
        load=load,
        image=each / size + writing / images,
        images=images,
        image_bytes=written / images,
        dimensions=model.global_width,
        has_local=bool(model.local_width),
    )
    return found, features


def _each(
    function: Callable[[T], R | None], first: Sequence[T], items: Sequence[T], workers: int
) -> tuple[list[R], float]:
    """Results for the first items, as many as _SECONDS are enough for, and the seconds per item with all
    workers busy.

    Args:
      first: what each worker does before, since a worker's first item takes longer.
    """
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(function, first))
        begun = time.monotonic()

        def work(item: T) -> R | None:
            return function(item) if time.monotonic() - begun < _SECONDS else None

        results = [result for result in pool.map(work, items) if result is not None]
        return results, (time.monotonic() - begun) / max(1, len(results))


def _measure_search(
    search: Search, work: Work, extracted: Sequence[ImageFeatures], workers: int, scratch: str
) -> dict[str, Any]:
    found: dict[str, Any] = _measure_predictions(search.k, scratch)
    store, rows = FeatureStore(search.index_root), 0
    units = [
        name for name, count in search.units if (rows := rows + count) <= _SAMPLE_ROWS[0] or rows == count
    ]
    if not units:
        return found
    begun = time.monotonic()
    index = read_index_block(store, units)
    reading = (time.monotonic() - begun) / max(1, len(index))
    width = index.descriptors.shape[1]
    product = (
        fastest_product() if work.queries * work.index_images * width >= SMALL_PRODUCT else NumpyProduct()
    )
    queries = np.random.default_rng(0).standard_normal((_SAMPLE_QUERIES, width), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    block = DescriptorBlock(np.array([b"%d" % q for q in range(len(queries))]), queries)

    def searching(rows: int) -> float:
        searched = _filled(index, rows)
        return min(_seconds(lambda: nearest(block, searched, search.k, product)) for _ in range(3)) / len(
            block
        )

    few, many = (min(rows, work.index_images) for rows in _SAMPLE_ROWS)
    whole = searching(few)
    each = whole / max(1, few)
    if many > few:  # part of the work is done once for a query, however many images there are
        each = min(each, max(0.0, searching(many) - whole) / (many - few))
    once = whole - each * few
    found["search"] = each + once / max(1, work.index_images) + reading / max(1, work.queries)
    found["score"] = _measure_scoring(search, index, units)
    if search.verification is not None:
        found.update(_measure_pairs(search, search.verification, extracted, index, workers))
    return found


def _measure_scoring(search: Search, index: IndexBlock, units: Sequence[str]) -> float:
    """Seconds to score the candidates of a query, which lie in many shards of a large index."""
    rows = np.arange(min(search.k, len(index)))
    candidates = [
        Candidate(
            index.image_ids[row].decode(),
            index.landmark_ids[row].decode(),
            0.5,
            FeatureLocation("", 0, 0),
            10,
            1.0,
            0.5,
        )
        for row in rows
    ]
    query = QueryCandidates("pilot", FeatureLocation("", 0, 0), tuple(candidates), True)
    seconds = min(_seconds(lambda: search.predict(query)) for _ in range(8))
    if search.augmented is None:
        return seconds
    shards = database_augmentation.augmented_shards(search.index_root)
    names = shards.read_list(search.augmented)

    def read(unit: str) -> None:
        _, augmented = database_augmentation.read_augmented(shards, names[unit])
        augmented_cosines(index.descriptors[0], augmented)

    reading = sum(_seconds(functools.partial(read, unit)) for unit in units[:8]) / len(units[:8])
    held = min(1.0, database_augmentation.SHARDS_HELD / len(search.units))
    return seconds + len(candidates) * (1 - held) * reading


def _filled(index: IndexBlock, rows: int) -> IndexBlock:
    """An index with random images more where it has fewer than `rows`: a product of few rows is slow."""
    lacking = rows - len(index)
    if lacking <= 0 or not len(index):
        return index
    more = np.random.default_rng(1).standard_normal((lacking, index.descriptors.shape[1]), np.float32)
    more /= np.linalg.norm(more, axis=1, keepdims=True)
    repeated = {
        field.name: np.resize(getattr(index, field.name), rows)
        for field in dataclasses.fields(index)
        if field.name not in ("image_ids", "descriptors")
    }
    ids = np.array([b"%d" % row for row in range(rows)])
    return IndexBlock(image_ids=ids, descriptors=np.concatenate([index.descriptors, more]), **repeated)


def _measure_predictions(k: int, scratch: str) -> dict[str, float]:
    candidates = tuple(
        Candidate("f" * 16, "landmark", 0.5, FeatureLocation("", 0, 0), 10, 1.0) for _ in range(k)
    )
    predictions = tuple(
        Prediction(f"{i:016d}", "landmark", 1.0, candidates, True) for i in range(UNIT_QUERIES)
    )

    def write_and_read() -> None:
        run_store.write_predictions(scratch, PredictionUnit("pilot", predictions))
        list(run_store.read_predictions(scratch, ["image_id", "landmark_id", "score"]))

    seconds = min(_seconds(write_and_read) for _ in range(3))
    return dict(
        shard=seconds, shard_bytes=os.path.getsize(files.join(scratch, "predictions", "pilot.parquet"))
    )


def _measure_pairs(
    search: Search,
    settings: VerificationSettings,
    extracted: Sequence[ImageFeatures],
    index: IndexBlock,
    workers: int,
) -> dict[str, Any]:
    """Verifies queries of the sample with their best candidates in a part of the index."""
    index_store, query_store = FeatureStore(search.index_root), FeatureStore(search.query_root)
    queries: list[tuple[str, np.ndarray, Callable[[], QuantizedFeatures]]]
    queries = [
        (f.ref.image_id, f.global_descriptor, functools.partial(quantized, f.local))
        for f in extracted[:_VERIFIED_QUERIES]
    ]
    for unit in search.query_units:
        if len(queries) >= _VERIFIED_QUERIES:
            break
        table = query_store.read_images(unit)
        places = zip(*(table.column(name).to_pylist() for name in ("image_id", "local_offset", "local_size")))
        for (image_id, offset, size), descriptor in zip(places, feature_store.descriptors_of(table)):
            queries.append(
                (
                    image_id,
                    descriptor,
                    functools.partial(query_store.read_local, FeatureLocation(unit, offset, size)),
                )
            )
    if not queries:
        return {}
    queries = [(name, vector, functools.cache(read)) for name, vector, read in queries[:_VERIFIED_QUERIES]]
    block = DescriptorBlock(
        np.array([image_id.encode() for image_id, _, _ in queries]), np.stack([d for _, d, _ in queries])
    )
    neighbors = nearest(block, index, min(search.k, max(1, _SAMPLE_PAIRS // len(queries))))

    def verify(pair: tuple[int, int]) -> int:
        q, _ = pair
        image_id, _, read = queries[q]
        candidate = index_store.read_local(neighbors.location(*pair))
        candidate_id = neighbors.image_id[pair].decode()
        return verify_pair(image_id, read(), candidate_id, candidate, settings).inliers

    pairs = [(int(q), int(c)) for q, c in np.argwhere(neighbors.similarity > -np.inf)]
    with one_thread:
        verified, each = _each(verify, pairs[:workers], pairs, workers)
    return dict(pair=each, pairs=len(verified))


def _seconds(function: Callable[[], Any]) -> float:
    begun = time.monotonic()
    function()
    return time.monotonic() - begun


def answer(connection: multiprocessing.connection.Connection) -> None:
    """Receives a Sample, sends what was measured, or the text of an error; the pilot's side of `run`."""
    try:
        connection.send(measure(connection.recv()))
    except (ValueError, OSError) as e:
        connection.send(str(e))


def run(sample: Sample, timeout: float | None = None) -> Measured | None:
    """Tries a sample in a process of its own; None where that dies.

    Raises:
      TimeoutError: it did not end within `timeout` seconds, and was stopped.
      ValueError: what the pilot met, the job would meet too.
    """
    begun = time.monotonic()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=quiet.call, args=(pickle.dumps(answer), there), name="pilot", daemon=True
    )
    process.start()
    there.close()
    try:
        here.send(sample)
        if not here.poll(timeout):
            raise TimeoutError(f"the pilot took more than {timeout:.0f} s")
        result = here.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return None
    finally:
        process.kill()
        process.join()
        here.close()
    if isinstance(result, str):
        raise ValueError(result)
    return dataclasses.replace(result, process=time.monotonic() - begun - result.seconds)


def schedule(time_budget: TimeBudget | None, sample: Callable[[], Sample]) -> Schedule:
    """Runs the pilot of a job that has a time budget, prints the plan, and sets the deadlines.

    Raises:
      ValueError: see `run`.
    """
    if time_budget is None:
        return Schedule()
    try:
        asked = sample()
        measured = run(asked, max(0.0, time_budget.ends - time.time()) * _PART_OF_BUDGET)
    except TimeoutError as e:
        print(f"{e}: a time budget of {runner.time_text(time_budget.seconds)} is too short for any work here")
        return Schedule(time_budget, None, budget.NO_TIME, time.time())
    now = time.time()
    if measured is None:
        print("the pilot died: no forecast, a tenth of the time budget is kept to write the results")
        return Schedule(time_budget, None, budget.deadlines(time_budget, None, now), now)
    plan = budget.make_plan(asked.work, measured)
    print(budget.format_plan(plan, time_budget, now), flush=True)
    return Schedule(time_budget, plan, budget.deadlines(time_budget, plan, now), now)


def print_plan(
    time_budget: TimeBudget | None, sample: Sample, more: Callable[[budget.Plan], str] = lambda plan: ""
) -> None:
    """What `landmarks plan` does: the pilot and the plan, and nothing else.

    Args:
      time_budget: of the job.
      sample: of its work.
      more: to print of the plan.

    Raises:
      ValueError: see `run`, or the pilot died.
    """
    measured = run(sample)
    if measured is None:
        raise ValueError("the pilot died: a photograph or the model crashes its process")
    plan = budget.make_plan(sample.work, measured)
    print(budget.format_plan(plan, time_budget, time.time()))
    if text := more(plan):
        print(text)
