"""The recognize job: query photographs in, predictions out."""

import collections
import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import budget, evaluate, integrity, lock, model_choice, outputs, pilot, runner
from beam_pipeline.budget import Deadlines
from beam_pipeline.config import ConfigError, RecognizeConfig
from beam_pipeline.index import Extraction, extraction_phase, image_reader, match, record_out_of_time
from transforms import features, retrieval, verification
from transforms.aggregation import AggregatePredictions
from transforms.features import try_suspects
from transforms.retrieval import UNIT_QUERIES, IndexGroup, QueryBlock, RetrieveNearest, plan_groups
from transforms.storage import feature_store, files, run_store, tables
from transforms.storage.feature_store import FeatureStore
from transforms.storage.worklist import PlannedUnit, make_units, write_plan
from transforms.submission import SUBMISSION, WriteSubmission, write_submission
from transforms.types import ImageRef, ImageUnit, PredictionUnit
from transforms.verification import VerifyCandidates

IMAGES_PER_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the graph is built from beside the configuration.

    Attributes:
      choice: the index's model and settings.
      planned: units of the queries.
      groups: of the index's shards.
      query_store: folder of the queries' feature store.
      rerank: whether the model has local features to verify with.
      deadlines: of the stages.
    """

    choice: model_choice.ModelChoice
    planned: tuple[PlannedUnit, ...]
    groups: tuple[IndexGroup, ...]
    query_store: str
    rerank: bool
    deadlines: Deadlines = Deadlines()


def build(pipeline: beam.Pipeline, config: RecognizeConfig, prepared: Prepared) -> beam.PCollection[int]:
    """The graph of the recognize job; gives the number of rows of the submission."""
    output, until = config.output, prepared.deadlines
    hints = functools.partial(runner.resource_hints, pipeline.options)
    blocks = (
        pipeline
        | "Extract"
        >> Extraction(
            config.output,
            prepared.query_store,
            prepared.choice,
            config.reading,
            prepared.planned,
            until.extract,
        ).with_resource_hints(**hints(features.MIN_RAM))
        | "Blocks" >> GroupIntoBlocks({unit.name: block for unit, block in _blocks(prepared.planned)})
    )
    units = (
        blocks
        | "Retrieve"
        >> RetrieveNearest(
            config.index,
            prepared.query_store,
            prepared.groups,
            config.num_to_rerank,
            until.retrieve,
            config.output,
        ).with_resource_hints(**hints(retrieval.MIN_RAM))
        | "Pending" >> beam.Filter(lambda unit: not run_store.has_predictions(output, unit.name))
        | "Verify"
        >> VerifyCandidates(
            config.index, prepared.query_store, config.verification, prepared.rerank, until.verify
        ).with_resource_hints(**hints(verification.MIN_RAM))
        | "Aggregate" >> AggregatePredictions(config.top_k)
    )
    return (
        units
        | "WritePredictions" >> beam.ParDo(_WritePredictions(config.output))
        | "Submission" >> WriteSubmission(config.output)
    )


def _blocks(planned: Sequence[PlannedUnit]) -> Iterable[tuple[PlannedUnit, str]]:
    """Each unit with the name of its query block: consecutive units, IMAGES_PER_BLOCK images or a little
    more.
    """
    block, images = 0, 0
    for unit in planned:
        if images >= IMAGES_PER_BLOCK:
            block, images = block + 1, 0
        images += unit.images
        yield unit, f"{block:05d}"


@dataclasses.dataclass
class GroupIntoBlocks(beam.PTransform):
    """Names of finished units (str) -> QueryBlocks, each as soon as all of its units are there.

    A block that lacks units, since time ran out, is PROVISIONAL by name, and so are the prediction shards
    made from it.

    Attributes:
      block_of: name of the block by name of the unit.
    """

    block_of: dict[str, str]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, names: beam.PCollection[str]) -> beam.PCollection[QueryBlock]:
        block_of = self.block_of
        units_of = collections.Counter(block_of.values())

        def block(name: str, units: Iterable[str]) -> QueryBlock:
            members = tuple(sorted(units))
            return QueryBlock(
                name if len(members) == units_of[name] else name + run_store.PROVISIONAL, members
            )

        return (
            names
            | "KeyByBlock" >> beam.Map(lambda unit: (block_of[unit], unit)).with_output_types(tuple[str, str])
            | beam.GroupByKey()
            | "Block" >> beam.MapTuple(block).with_output_types(QueryBlock)
        )


@beam.typehints.with_input_types(PredictionUnit)
@beam.typehints.with_output_types(str)
class _WritePredictions(beam.DoFn):
    def __init__(self, run: str):
        self._run = run

    def process(self, unit: PredictionUnit) -> Iterable[str]:
        run_store.write_predictions(self._run, unit)
        yield unit.name


def _asked(config: RecognizeConfig) -> tuple[dict[str, Any], model_choice.ModelChoice, list[ImageUnit]]:
    """The index's manifest, its model, and the units of the queries."""
    index = outputs.read_manifest(config.index, "index")
    images = match(config.images)
    if config.truth:
        _check_truth(config.truth, images)
    choice = model_choice.choose_as_indexed(config.model, config.overrides, index, config.index)
    try_suspects(choice.model, choice.settings, image_reader(choice, config.reading))
    return (
        index,
        choice,
        make_units(images, [choice.extraction(), choice.fingerprint, dataclasses.asdict(config.reading)]),
    )


def _check_truth(uri: str, images: Sequence[ImageRef]) -> None:
    """Finds now, not after the night, that a truth table is wrong or is one of other images."""
    known = tables.read_truth(uri).column("image_id").combine_chunks()
    there = pc.is_in(pa.array([ref.image_id for ref in images], pa.string()), value_set=known).to_pylist()
    if not all(there):
        raise ConfigError(
            f"{there.count(False)} of {len(images)} query images are not in {uri}, the first is "
            f"{images[there.index(False)].image_id!r}; "
            "a query without a landmark needs a row with empty landmarks"
        )


def plan(config: RecognizeConfig, options: PipelineOptions) -> int:
    """Prints what `run` would take, by a pilot; writes nothing, and returns the exit code.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong that would stop `run` too.
    """
    pilot.print_plan(config.budget, _sample(config, options, *_asked(config)))
    return 0


def _sample(
    config: RecognizeConfig,
    options: PipelineOptions,
    index: dict[str, Any],
    choice: model_choice.ModelChoice,
    units: Sequence[ImageUnit],
) -> pilot.Sample:
    there = set(FeatureStore(query_store(config)).units())
    missing = [unit for unit in units if unit.name not in there]
    rerank = index["has_local_features"]
    queries = sum(len(unit.images) for unit in units)
    pending = queries - run_store.final_predictions(config.output)
    work = budget.work_of(
        options,
        images=sum(len(unit.images) for unit in missing),
        units=len(missing),
        queries=queries,
        index_images=sum(shard["images"] for shard in index["shards"]),
        pairs=pending * config.num_to_rerank if rerank else 0,
        shards=-(-pending // UNIT_QUERIES),
    )
    search = pilot.Search(
        config.index,
        tuple((shard["unit"], shard["images"]) for shard in index["shards"]),
        query_store(config),
        tuple(unit.name for unit in units if unit.name in there),
        config.num_to_rerank,
        config.verification if rerank else None,
    )
    return pilot.Sample(
        choice.model,
        choice.settings,
        image_reader(choice, config.reading),
        pilot.sample_images(missing),
        work,
        pilot.beam_flags(options),
        search,
    )


def query_store(config: RecognizeConfig) -> str:
    """The folder of the queries' features."""
    return config.query_store or files.join(config.output, "queries")


def run(config: RecognizeConfig, options: PipelineOptions) -> int:
    """Predicts, or goes on with an unfinished run; returns the exit code.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
    """
    started = time.monotonic()
    index, choice, units = _asked(config)
    settings = {
        "command": "recognize",
        "format": outputs.FORMAT,
        "index": outputs.digest({k: v for k, v in index.items() if k not in ("seconds", "time_budget")}),
        "model": choice.fingerprint,
        "extraction": choice.extraction(),
        "reading": dataclasses.asdict(config.reading),
        "images": outputs.digest([unit.name for unit in units]),
        "hyperparameters": hyperparameters(config),
    }
    with outputs.opened(config.output, settings, config.overwrite) as unfinished:
        if unfinished:
            integrity.check_sizes(config.index, index)
            with _extracting(config, units):
                _recognize(config, options, index, choice, units, started)
        else:
            print(f"{config.output} is finished; nothing to do")
    if config.truth:
        print(evaluate.format_metrics(evaluate.evaluate_run(config.output, config.truth)))
    counts = outputs.read_manifest(config.output, "recognize")["counts"]
    return outputs.exit_code(config.output, counts["failed"], counts["queries"], config.max_failure_rate)


@contextlib.contextmanager
def _extracting(config: RecognizeConfig, units: Sequence[ImageUnit]) -> Iterator[None]:
    """Holds the lock of a query store of its own where units have to be extracted; one that lacks none is
    read by many at once.
    """
    store, names = FeatureStore(query_store(config)), [unit.name for unit in units]
    for line in integrity.discard_damaged(store, names):
        print(f"{line}: its unit is extracted again", file=sys.stderr)
    with (
        lock.held(store.root)
        if config.query_store and not {*names} <= {*store.units()}
        else contextlib.nullcontext()
    ):
        yield


def hyperparameters(config: RecognizeConfig) -> dict[str, Any]:
    """What predictions depend on beside the features."""
    return {
        "num_to_rerank": config.num_to_rerank,
        "top_k": config.top_k,
        **dataclasses.asdict(config.verification),
    }


def _recognize(
    config: RecognizeConfig,
    options: PipelineOptions,
    index: dict[str, Any],
    choice: model_choice.ModelChoice,
    units: Sequence[ImageUnit],
    started: float,
) -> None:
    planned, store = write_plan(config.output, units), FeatureStore(query_store(config))
    if config.budget is not None and not files.exists(files.join(config.output, SUBMISSION)):
        write_submission(config.output)  # whatever happens from now on, there is a complete one
    schedule = pilot.schedule(config.budget, lambda: _sample(config, options, index, choice, units))
    if not index.get("complete", True):
        print(
            f"{config.index} was not finished in time: what it has is searched, "
            f"{index['counts']['out_of_time']:,} images are missing"
        )
    if not index["has_local_features"]:
        print(
            f"the model {choice.name} has no local features: no re-ranking, candidates keep their global "
            "scores"
        )
    groups = plan_groups([(shard["unit"], shard["images"]) for shard in index["shards"]])
    prepared = Prepared(
        choice, tuple(planned), tuple(groups), store.root, index["has_local_features"], schedule.deadlines
    )
    queries = sum(unit.images for unit in planned)
    phases = [
        extraction_phase(store.root, planned),
        runner.Phase("verify", queries, runner.row_counter(files.join(config.output, "predictions"))),
    ]
    metrics: dict[str, int] = {}
    if schedule.hopeless:  # what an earlier start predicted stays
        write_submission(config.output)
    else:
        files.delete(files.join(config.output, feature_store.MANIFEST))
        run_store.delete_provisional(config.output)
        metrics = runner.run_pipeline(lambda pipeline: build(pipeline, config, prepared), options, phases)
    late = record_out_of_time(config.output, config.output, planned, store)
    names = [unit.name for unit in planned]
    failures = store.failures(names)
    if len(failures):
        files.write_parquet(files.join(config.output, "failures", "extract.parquet"), failures)
    answers = pa.concat_tables(run_store.read_predictions(config.output, ["landmark_id", "verified"]))
    counts = {
        "queries": queries,
        "predicted": len(answers) - answers.column("landmark_id").null_count,
        "verified": pc.sum(answers.column("verified"), min_count=0).as_py(),
        "failed": len(failures),
        "out_of_time": sum(unit.images for unit in late),
    }
    written = [files.join(config.output, SUBMISSION)]
    written += [
        uri
        for part in ("predictions", "failures")
        for uri in files.list_files(files.join(config.output, part), ".parquet")
    ]
    shards = store.summaries([unit.name for unit in planned if unit not in late])
    manifest = {
        "command": "recognize",
        "format": outputs.FORMAT,
        **choice.as_json(config.output),
        "reading": dataclasses.asdict(config.reading),
        "index": files.place_in(config.output, config.index),
        "query_store": files.place_in(config.output, store.root),
        "hyperparameters": hyperparameters(config),
        "reranked": prepared.rerank,
        "complete": not late
        and run_store.final_predictions(config.output) == sum(shard["images"] for shard in shards),
        "counts": counts,
        "shards": shards,
        "files": integrity.record_files(config.output, written),
        **schedule.report(metrics),
        "seconds": {"total": round(time.monotonic() - started, 1), **runner.stage_seconds(metrics)},
    }
    if manifest["complete"]:
        files.delete_tree(files.join(config.output, run_store.CANDIDATES))
    outputs.finish(config.output, manifest)
    _print_summary(config.output, manifest)


def _print_summary(output: str, manifest: dict[str, Any]) -> None:
    counts = manifest["counts"]
    parts = [f"{counts['predicted']:,} of {counts['queries']:,} queries predicted"]
    if manifest["reranked"]:
        parts.append(f"{counts['verified']:,} verified")
    parts.append(f"{counts['failed']:,} failed")
    if counts["out_of_time"]:
        parts.append(f"{counts['out_of_time']:,} not extracted in time")
    if not manifest["complete"]:
        parts.append("the same command goes on from here")
    print(
        f"{output}: {', '.join(parts)}; {manifest['seconds']['total']:,.1f} s; see "
        f"{files.join(output, SUBMISSION)}"
    )
