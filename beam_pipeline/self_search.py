"""A feature store searched in itself: for every image its nearest others, exactly, and these verified.

What is found lies in <output>/search/, laid out like a run: a job that was stopped goes on from there.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import recipe, runner
from beam_pipeline.budget import OutOfTimeError
from beam_pipeline.config import PRESETS, TimeBudget
from beam_pipeline.manifest import MANIFEST, versions
from beam_pipeline.recipe import Recipe
from transforms import retrieval, verification
from transforms.retrieval import QueryBlock, RetrieveNearest, plan_blocks, plan_groups
from transforms.storage import files, run_store
from transforms.storage.feature_store import FeatureStore
from transforms.submission import WritePredictions
from transforms.types import CandidateUnit, Prediction, PredictionUnit, VerificationSettings
from transforms.verification import MeasureViews, VerifyCandidates

SEARCH = "search"

_COLUMNS = ("image_id", "landmark_id", "uri", "local_offset", "local_size")
# Neighbours among which those that are wanted are looked for.
_REACH = 100
# The part of a time budget in which results are written.
_RESERVE = 0.1


@dataclasses.dataclass(frozen=True)
class SelfSearch:
    """What is searched.

    Attributes:
      store: folder of the feature store.
      units: of it, by name, with their numbers of images.
      neighbors: that are verified of each image.
      verification: how; None where the model has no local features.
      output: folder of the job.
      views: whether the `score` of a pair is to say how much it is one view, see `verification.MeasureViews`.
      wanted: table of the image_ids that are searched, and among which; None for all.
      asked: how many these are.
    """

    store: str
    units: tuple[tuple[str, int], ...]
    neighbors: int
    verification: VerificationSettings | None
    output: str
    views: bool = False
    wanted: str | None = None
    asked: int | None = None

    @property
    def folder(self) -> str:
        """Where what is found lies."""
        return files.join(self.output, SEARCH)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(images for _, images in self.units) if self.asked is None else self.asked


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of images, each once, in the order of their numbers.

    Attributes:
      first, second: int64 [P], numbers of the images, first < second.
      similarity: float32 [P], cosine of the global descriptors.
      inliers: int64 [P], the more of both directions; -1 where none was verified.
      view: float64 [P], how much they are one view; 0 where that was not asked for.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    inliers: np.ndarray
    view: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Pairs":
        """Some of the pairs, by number or mask."""
        return Pairs(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def settings_of(made_with: Recipe) -> VerificationSettings:
    """How pairs are verified: as the preset accurate does, with the distance of the model's card."""
    settings = PRESETS["accurate"].verification
    return dataclasses.replace(
        settings, max_distance=recipe.card_distance(made_with) or settings.max_distance
    )


class _Others(beam.DoFn):
    """Images with what was retrieved for them -> themselves, and what is not wanted, left out."""

    def __init__(self, search: SelfSearch) -> None:
        self._search = search
        self._wanted: frozenset[str] | None = None

    def setup(self) -> None:
        if self._search.wanted is not None:
            self._wanted = frozenset(files.read_parquet(self._search.wanted)["image_id"].to_pylist())

    def process(self, unit: CandidateUnit) -> Iterator[CandidateUnit]:
        wanted, queries = self._wanted, []
        for query in unit.queries:
            if wanted is None or query.image_id in wanted:
                rest = (c for c in query.candidates if c.image_id != query.image_id)
                others = (c for c in rest if wanted is None or c.image_id in wanted)
                candidates = tuple(itertools.islice(others, self._search.neighbors))
                queries.append(dataclasses.replace(query, candidates=candidates))
        yield dataclasses.replace(unit, queries=tuple(queries))


def kept(unit: CandidateUnit) -> PredictionUnit:
    """What is kept of images: their candidates, nothing predicted."""
    predictions = tuple(
        Prediction(query.image_id, None, None, query.candidates, query.verified) for query in unit.queries
    )
    return PredictionUnit(unit.name, predictions, unit.failures, unit.final)


def build(pipeline: beam.Pipeline, search: SelfSearch, deadline: float = math.inf) -> beam.PCollection[str]:
    """The graph: what the images find goes to the search's folder; gives the shards' names."""
    root, folder = search.store, search.folder
    count = search.neighbors + 1 if search.wanted is None else max(_REACH, search.neighbors + 1)
    hints = functools.partial(runner.resource_hints, pipeline.options)
    block_of = plan_blocks(search.units)
    members = {name: tuple(u for u, b in block_of.items() if b == name) for name in block_of.values()}
    retrieve = RetrieveNearest(root, root, count, plan_groups(search.units), deadline, folder)
    settings = search.verification or VerificationSettings()
    verify = VerifyCandidates(root, root, settings, search.verification is not None, deadline)
    verified = (
        pipeline
        | "Blocks" >> beam.Create([QueryBlock(*block) for block in members.items()])
        | "Retrieve" >> retrieve.with_resource_hints(**hints(retrieval.MIN_RAM))
        | "Pending" >> beam.Filter(lambda unit: not run_store.has_predictions(folder, unit.name))
        | "Others" >> beam.ParDo(_Others(search))
        | "Verify" >> verify.with_resource_hints(**hints(verification.MIN_RAM))
    )
    if search.views and search.verification is not None:
        verified |= MeasureViews(root, root, settings)
    return (
        verified
        | "Kept" >> beam.Map(kept).with_output_types(PredictionUnit)
        | "Write" >> WritePredictions(folder)
    )


def deadline_of(budget: TimeBudget | None) -> float:
    """Until when is searched, as time.time() tells it; without a budget for ever."""
    return math.inf if budget is None else budget.ends - _RESERVE * budget.seconds


def run(
    search: SelfSearch, budget: TimeBudget | None, options: PipelineOptions, engine: PipelineRunner | None
) -> tuple[dict[str, int], int]:
    """Searches, or goes on with that; returns the pipeline's metrics, and how many images were not done in
    time.

    Raises:
      OutOfTimeError: the time budget ended before a single one was.
      PipelineError: the pipeline failed, or the engine lost images.
    """
    deadline = deadline_of(budget)
    run_store.delete_provisional(search.folder)
    phases = [
        # The neighbours of all are found, and those that are not asked for left out.
        runner.Phase(
            "retrieve",
            sum(images for _, images in search.units),
            runner.row_counter(files.join(search.folder, "candidates")),
        ),
        runner.Phase("verify", search.images, runner.row_counter(files.join(search.folder, "predictions"))),
    ]
    metrics = runner.run_pipeline(lambda pipeline: build(pipeline, search, deadline), options, phases, engine)
    late = search.images - run_store.final_predictions(search.folder)
    if late and time.time() < deadline:
        raise runner.lost_work(f"{late:,} of {search.images:,} images were not searched for")
    if late == search.images:
        raise OutOfTimeError(
            "nothing could be searched for in time: the same command goes on from here, given more of it"
        )
    return metrics, late


def finish(
    search: SelfSearch,
    says: Mapping[str, Any],
    counts: Mapping[str, int],
    late: int,
    seconds: Mapping[str, float],
) -> None:
    """Writes the manifest of a job with what it `says` and counted, when all else is written."""
    manifest = {
        **says,
        "complete": not late,
        "counts": {**counts, "out_of_time": late},
        "seconds": seconds,
        "versions": versions(),
    }
    files.write_json(files.join(search.output, MANIFEST), manifest)
    if not late:
        run_store.delete_candidates(search.folder)


def read_images(store: FeatureStore, units: Sequence[str]) -> pa.Table:
    """The images of some units, in ascending order of their ids, with their unit."""
    parts = zip(units, store.read_units(units, _COLUMNS))
    named = [part.append_column("unit", pa.repeat(unit, len(part))) for unit, part in parts]
    return pa.concat_tables(named).sort_by("image_id").combine_chunks()


def searched(search: SelfSearch, image_ids: pa.Array) -> np.ndarray:
    """bool [N], which of the images with these ids, string [N], were searched for, and not just found."""
    shards = run_store.final_shards(search.folder)
    ids = pa.concat_tables([files.read_parquet(uri, ["image_id"]) for uri in shards])["image_id"]
    return pc.is_in(image_ids, value_set=ids.combine_chunks()).to_numpy(zero_copy_only=False)


def read_pairs(search: SelfSearch, image_ids: pa.Array) -> Pairs:
    """What was found, of the images with these ids, string [N]; their numbers are their places there. Units
    that time ran out for are left out.
    """
    kinds = (np.int64, np.int64, np.float32, np.int64, np.float64)
    parts: list[tuple[np.ndarray, ...]] = [tuple(np.zeros(0, kind) for kind in kinds)]
    for uri in run_store.final_shards(search.folder):
        table = files.read_parquet(uri, ["image_id", "candidates"])
        lists = table.column("candidates").combine_chunks()
        queries = table.column("image_id").combine_chunks().take(pc.list_parent_indices(lists))
        found = lists.flatten()
        numbers = [pc.index_in(ids, value_set=image_ids) for ids in (queries, found.field("image_id"))]
        known = pc.and_(*(pc.is_valid(number) for number in numbers))
        inliers = pc.fill_null(found.field("inliers"), -1)
        columns = (*numbers, found.field("similarity"), inliers, found.field("score"))
        parts.append(tuple(column.filter(known).to_numpy() for column in columns))
    a, b, similarity, inliers, view = (np.concatenate(column) for column in zip(*parts))
    first, second = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    at = np.flatnonzero(begins)
    most = [np.maximum.reduceat(column[order], at) if len(at) else column for column in (inliers, view)]
    return Pairs(first[at], second[at], similarity[order][at], most[0].astype(np.int64), most[1])
