"""The recognize job: query photographs in, predictions out."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Iterable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import evaluate, models, outputs, running
from beam_pipeline.config import RecognizeConfig
from beam_pipeline.index import Extraction, extraction_phase, match
from transforms import files, stores, tables
from transforms.aggregation import AggregatePredictions
from transforms.retrieval import IndexGroup, QueryBlock, RetrieveNearest, plan_groups
from transforms.stores import FeatureStore
from transforms.submission import SUBMISSION, WriteSubmission
from transforms.types import PredictionUnit
from transforms.units import PlannedUnit, make_units, write_plan
from transforms.verification import VerifyCandidates

_IMAGES_PER_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the graph is built from beside the configuration.

    Attributes:
      choice: the index's model and settings.
      planned: units of the queries.
      groups: of the index's shards.
      query_store: folder of the queries' feature store.
      rerank: whether the model has local features to verify with.
    """

    choice: models.ModelChoice
    planned: tuple[PlannedUnit, ...]
    groups: tuple[IndexGroup, ...]
    query_store: str
    rerank: bool


def build(pipeline: beam.Pipeline, config: RecognizeConfig, prepared: Prepared) -> beam.PCollection[int]:
    """The graph of the recognize job; gives the number of rows of the submission."""
    output = config.output
    blocks = (
        pipeline
        | "Extract" >> Extraction(config.output, prepared.query_store, prepared.choice, config.reading, prepared.planned)
        | "Blocks" >> GroupIntoBlocks({unit.name: block for unit, block in _blocks(prepared.planned)})
    )
    units = (
        blocks
        | "Retrieve" >> RetrieveNearest(config.index, prepared.query_store, prepared.groups, config.num_to_rerank)
        | "Pending" >> beam.Filter(lambda unit: not stores.has_predictions(output, unit.name))
        | "Verify" >> VerifyCandidates(config.index, prepared.query_store, config.verification, prepared.rerank)
        | "Aggregate" >> AggregatePredictions(config.top_k)
    )
    return units | "WritePredictions" >> beam.ParDo(_WritePredictions(config.output)) | "Submission" >> WriteSubmission(config.output)


def _blocks(planned: Sequence[PlannedUnit]) -> Iterable[tuple[PlannedUnit, str]]:
    """Each unit with the name of its query block: consecutive units, _IMAGES_PER_BLOCK images or a little more."""
    block, images = 0, 0
    for unit in planned:
        if images >= _IMAGES_PER_BLOCK:
            block, images = block + 1, 0
        images += unit.images
        yield unit, f"{block:05d}"


@dataclasses.dataclass
class GroupIntoBlocks(beam.PTransform):
    """Names of finished units (str) -> QueryBlocks, each as soon as all of its units are there.

    Attributes:
      block_of: name of the block by name of the unit.
    """

    block_of: dict[str, str]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, names: beam.PCollection[str]) -> beam.PCollection[QueryBlock]:
        block_of = self.block_of
        return (
            names
            | "KeyByBlock" >> beam.Map(lambda unit: (block_of[unit], unit)).with_output_types(tuple[str, str])
            | beam.GroupByKey()
            | "Block" >> beam.MapTuple(lambda name, units: QueryBlock(name, tuple(sorted(units)))).with_output_types(QueryBlock)
        )


@beam.typehints.with_input_types(PredictionUnit)
@beam.typehints.with_output_types(str)
class _WritePredictions(beam.DoFn):
    def __init__(self, run: str):
        self._run = run

    def process(self, unit: PredictionUnit) -> Iterable[str]:
        stores.write_predictions(self._run, unit)
        yield unit.name


def run(config: RecognizeConfig, options: PipelineOptions) -> int:
    """Predicts, or goes on with an unfinished run; returns the exit code.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
    """
    started = time.monotonic()
    index = outputs.read_manifest(config.index, "index")
    if config.truth:
        tables.read_truth(config.truth)  # a wrong table is found now, not after the night
    choice = models.choose_as_indexed(config.model, config.overrides, index)
    reading = dataclasses.asdict(config.reading)
    units = make_units(match(config.images), [choice.as_json()["extraction"], choice.fingerprint, reading])
    settings = {
        "command": "recognize",
        "format": outputs.FORMAT,
        "index": outputs.digest({k: v for k, v in index.items() if k != "seconds"}),
        "model": choice.fingerprint,
        "extraction": choice.as_json()["extraction"],
        "reading": reading,
        "images": outputs.digest([unit.name for unit in units]),
        "hyperparameters": hyperparameters(config),
    }
    with outputs.opened(config.output, settings, config.overwrite) as unfinished:
        if unfinished:
            _recognize(config, options, index, choice, write_plan(config.output, units), started)
        else:
            print(f"{config.output} is finished; nothing to do")
    if config.truth:
        print(evaluate.format_metrics(evaluate.evaluate_run(config.output, config.truth)))
    return 0


def hyperparameters(config: RecognizeConfig) -> dict[str, Any]:
    """What predictions depend on beside the features."""
    return {"num_to_rerank": config.num_to_rerank, "top_k": config.top_k, **dataclasses.asdict(config.verification)}


def _recognize(
    config: RecognizeConfig, options: PipelineOptions, index: dict[str, Any], choice: models.ModelChoice,
    planned: list[PlannedUnit], started: float,
) -> None:
    query_store = config.query_store or files.join(config.output, "queries")
    if not index["has_local_features"]:
        print(f"the model {choice.name} has no local features: no re-ranking, candidates keep their global scores")
    groups = plan_groups([(shard["unit"], shard["images"]) for shard in index["shards"]])
    prepared = Prepared(choice, tuple(planned), tuple(groups), query_store, index["has_local_features"])
    queries = sum(unit.images for unit in planned)
    phases = [
        extraction_phase(query_store, planned),
        running.Phase("verify", queries, running.row_counter(files.join(config.output, "predictions"))),
    ]
    metrics = running.run_pipeline(lambda pipeline: build(pipeline, config, prepared), options, phases)
    names = [unit.name for unit in planned]
    failures = FeatureStore(query_store).failures(names)
    if len(failures):
        files.write_parquet(files.join(config.output, "failures", "extract.parquet"), failures)
    predicted = sum(len(t) - t.column("landmark_id").null_count for t in stores.read_predictions(config.output, ["landmark_id"]))
    counts = {"queries": queries, "predicted": predicted, "failed": len(failures)}
    manifest = {
        "command": "recognize",
        "format": outputs.FORMAT,
        **choice.as_json(),
        "reading": dataclasses.asdict(config.reading),
        "index": config.index,
        "query_store": query_store,
        "hyperparameters": hyperparameters(config),
        "reranked": prepared.rerank,
        "counts": counts,
        "seconds": {"total": round(time.monotonic() - started, 1), **running.stage_seconds(metrics)},
    }
    outputs.finish(config.output, manifest)
    print(f"{config.output}: {counts['predicted']:,} of {queries:,} queries predicted, {len(failures):,} failed, in {manifest['seconds']['total']:,.1f} s; see {files.join(config.output, SUBMISSION)}")
