"""The recognize job: query photographs in, predictions out."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import budget, costs, evaluate, integrity, left_out, lock, outputs, pilot, recipe, runner
from beam_pipeline.budget import Deadlines
from beam_pipeline.changes import let_in
from beam_pipeline.config import ConfigError, FullSize, RecognizeConfig
from beam_pipeline.extraction import ExtractionTask, input_files, match, naming
from beam_pipeline.manifest import FORMAT, MANIFEST, IndexManifest, RunCounts, RunManifest, digest, versions
from beam_pipeline.prediction_rule import PredictionRule, tuned_settings_of
from transforms import features, retrieval, verification
from transforms.database_augmentation import AugmentCandidates, augmented_shards
from transforms.models import catalog
from transforms.retrieval import UNIT_QUERIES, GroupIntoBlocks, RetrieveNearest, plan_blocks, plan_groups
from transforms.storage import files, run_store, spelling, tables
from transforms.submission import SUBMISSION, WANTED, WritePredictions, write_submission
from transforms.types import ImageRef
from transforms.verification import VerifyCandidates


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is to be done.

    Attributes:
      config: what was asked for, with the greatest distance of matching descriptors settled.
      started: when, as time.monotonic() tells it.
      task: the queries' features.
      index: the manifest of the index.
      passed_over: how many files the suffix passed over, by suffix.
      landmark_not_indexed: queries whose truth names a landmark that the index lacks.
      rule: how candidates become predictions.
      augmented: name of the list of the index's augmented shards; None where it has none.
      wanted: ids of the submission's rows, string [N]; None for those of the queries.
    """

    config: RecognizeConfig
    started: float
    task: ExtractionTask
    index: IndexManifest
    passed_over: Mapping[str, int]
    landmark_not_indexed: int
    rule: PredictionRule
    augmented: str | None
    wanted: pa.Array | None = None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What predictions depend on beside the features."""
        config = self.config
        return {
            "num_to_rerank": config.num_to_rerank,
            **dataclasses.asdict(config.verification),
            **self.rule.hyperparameters,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What the run depends on; JSON-able."""
        return {
            "command": "recognize",
            "format": FORMAT,
            "index": self.index.digest(self.config.index),
            **self.task.recipe.identity,
            **naming(self.config.image_ids),
            "images": self.task.digest,
            "hyperparameters": self.hyperparameters,
            **({} if self.wanted is None else {"sample_submission": digest(self.wanted.to_pylist())}),
        }


def build(pipeline: beam.Pipeline, prepared: Prepared, until: Deadlines) -> beam.PCollection[str]:
    """The graph of the recognize job; gives the names of the prediction shards."""
    config, index, queries = prepared.config, prepared.index, prepared.task.store.root
    output = config.output
    groups = plan_groups((shard.unit, shard.images) for shard in index.shards)
    hints = functools.partial(runner.resource_hints, pipeline.options)
    extract = prepared.task.transform(until.extract)
    retrieve = RetrieveNearest(config.index, queries, config.num_to_rerank, groups, until.retrieve, output)
    verify = VerifyCandidates(
        config.index, queries, config.verification, index.has_local_features, until.verify
    )
    blocks = (
        pipeline
        | "Extract" >> extract.with_resource_hints(**hints(features.MIN_RAM))
        | "Blocks" >> GroupIntoBlocks(plan_blocks((unit.name, unit.images) for unit in prepared.task.listed))
    )
    return (
        blocks
        | "Retrieve" >> retrieve.with_resource_hints(**hints(retrieval.MIN_RAM))
        | "Pending" >> beam.Filter(lambda unit: not run_store.has_predictions(output, unit.name))
        | "Verify" >> verify.with_resource_hints(**hints(verification.MIN_RAM))
        | "Augmented" >> AugmentCandidates(config.index, queries, prepared.augmented)
        | "Aggregate" >> prepared.rule.step
        | "WritePredictions" >> WritePredictions(output)
    )


def prepare(config: RecognizeConfig) -> Prepared:
    """Finds the index, its model, and the queries.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong.
    """
    started = time.monotonic()
    index = outputs.read_manifest(config.index, IndexManifest)
    if not index.shards or not sum(shard.images for shard in index.shards):
        raise ConfigError(f"{config.index} holds no images: there is nothing to recognize by")
    images, passed_over = match(config.images, config.image_ids, exclude=config.exclude)
    tables_read = [("--truth", config.truth)] if config.truth else []
    if config.sample_submission:
        tables_read.append(("--sample_submission", config.sample_submission))
    outputs.check_inputs(config.output, "recognize", [*tables_read, *input_files(config.images, images)])
    if config.query_store:
        outputs.check_store(config.query_store)
    left_out.say_passed_over(len(images), passed_over)
    not_indexed, wanted = 0, None
    if config.sample_submission:
        wanted = tables.read_ids(config.sample_submission)
        left_out.wanted_without_image(wanted, left_out.ids_of(images), config.sample_submission)
    if config.truth:
        truth, ids = _checked_truth(config.truth, images), left_out.ids_of(images)
        not_indexed = left_out.landmarks_not_indexed(truth, ids, config.index, index)
    made = recipe.choose_as_indexed(
        config.model,
        config.local_model,
        config.overrides,
        config.reading,
        index.recipe,
        index.global_dimensions,
    )
    task = ExtractionTask.of(images, made, query_store(config), config.output)
    task.try_suspects()
    if config.tuned:
        tuned = tuned_settings_of(config.index, index)
        rule = tuned.rule(config.min_probability)
        config = dataclasses.replace(
            config, num_to_rerank=tuned.num_to_rerank, verification=tuned.verification, scoring=tuned.scoring
        )
    else:
        rule = PredictionRule(config.scoring)
        distance = config.max_distance or recipe.card_distance(made) or config.verification.max_distance
        settled = dataclasses.replace(config.verification, max_distance=distance)
        config = dataclasses.replace(config, verification=settled)
    augmented = index.derived_list if augmented_shards(config.index).complete(index.derived_list) else None
    if augmented is None and config.scoring.augmented_weight:
        raise ConfigError(
            f"{config.index} has no augmented descriptors, which this needs: `landmarks calibrate --index "
            f"{config.index}` makes them"
        )
    return Prepared(config, started, task, index, passed_over, not_indexed, rule, augmented, wanted)


def _checked_truth(uri: str, images: Sequence[ImageRef]) -> pa.Table:
    """Finds now, not after the night, that a truth table is wrong or is one of other images."""
    truth, ids = tables.read_truth(uri), left_out.ids_of(images)
    known = truth.column("image_id").combine_chunks()
    lacking = ids.filter(pc.is_null(spelling.index_in(ids, known)))
    if len(lacking):
        raise ConfigError(
            f"{len(lacking)} of {len(images)} query images are not in {uri}, the first is "
            f"{lacking[0].as_py()!r}, its rows name {known[0].as_py()!r}"
            f"{left_out.beside(lacking, known, uri)}; a query without a landmark needs a row with empty "
            "landmarks"
        )
    return truth


def plan(config: RecognizeConfig, options: PipelineOptions, size: FullSize) -> int:
    """Prints what `run` would take, by a pilot; writes nothing, and returns the exit code.

    Args:
      config: what is asked for.
      options: of Beam.
      size: for how many photographs, of which these are a sample.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong that would stop `run` too.
    """
    prices = costs.read_prices(size.prices) if size.is_given else None
    prepared = prepare(config)
    sample = _sample(prepared, options)
    candidates = prepared.config.num_to_rerank if prepared.index.has_local_features else 0
    sample = dataclasses.replace(sample, work=costs.at_size(sample.work, size, candidates))
    pilot.print_plan(config.budget, sample, lambda plan: costs.format_costs(plan, config.output, prices))
    return 0


def _sample(prepared: Prepared, options: PipelineOptions) -> pilot.Sample:
    config, task, index = prepared.config, prepared.task, prepared.index
    missing = task.missing()
    lacking = {unit.name for unit in missing}
    pending = task.images - run_store.final_predictions(config.output)
    search = pilot.Search(
        config.index,
        tuple((shard.unit, shard.images) for shard in index.shards),
        task.store.root,
        tuple(name for name in task.names if name not in lacking),
        config.num_to_rerank,
        config.verification if index.has_local_features else None,
        prepared.rule.step.of_query,
        prepared.augmented,
    )
    return pilot.sample_of(
        task.recipe,
        missing,
        options,
        search,
        queries=task.images,
        index_images=sum(shard.images for shard in index.shards),
        pairs=pending * config.num_to_rerank if index.has_local_features else 0,
        shards=-(-pending // UNIT_QUERIES),
    )


def query_store(config: RecognizeConfig) -> str:
    """The folder of the queries' features."""
    return config.query_store or files.join(config.output, "queries")


def run(config: RecognizeConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Predicts, or goes on with an unfinished run; returns the exit code.

    Args:
      config: what is asked for.
      options: of Beam.
      engine: what runs the pipeline; by default the runner that `options` name.

    Raises:
      ConfigError, ModelError, TableError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed.
    """
    prepared = prepare(config)
    task = prepared.task
    photographs = outputs.Photographs(
        "images", task.refs, task.store.root, task.recipe.reading, functools.partial(_forget, task)
    )
    with outputs.opened(config.output, prepared.settings, config.overwrite, photographs) as unfinished:
        if unfinished:
            integrity.check_sizes(config.index, prepared.index)
            with _extracting(config, prepared.task):
                schedule, metrics = _recognize(prepared, options, engine)
                manifest = conclude(prepared, schedule, metrics)
                outputs.finish(config.output, manifest)
                _print_summary(config.output, manifest)
        else:
            print(f"{config.output} is finished; nothing to do")
    if config.truth:
        print(evaluate.format_metrics(evaluate.evaluate_run(config.output, config.truth)))
    print(evaluate.report_hint(config.output, config.truth))
    counts = outputs.read_manifest(config.output, RunManifest).counts
    return outputs.exit_code(config.output, counts.failed, counts.queries, config.max_failure_rate)


def _forget(task: ExtractionTask, before: Sequence[ImageRef]) -> None:
    """Deletes what the run has of the blocks whose photographs were others `before`, or some of whose
    photographs higher limits let in.
    """
    old = ExtractionTask.of(before, task.recipe, task.store.root, task.root).names
    blocks = list(plan_blocks((unit.name, unit.images) for unit in task.listed).items())
    same = len(old) == len(blocks)
    within_limits = {*let_in(task.root, task.recipe.reading, task.refs)}
    again = {unit.name for unit in task.units if any(ref.image_id in within_limits for ref in unit.images)}
    run_store.delete_blocks(
        task.root,
        {block for at, (name, block) in enumerate(blocks) if not same or old[at] != name or name in again},
    )
    task.discard_let_in()
    files.delete(files.join(task.root, "failures", "extract.parquet"))  # last: it tells of all this


@contextlib.contextmanager
def _extracting(config: RecognizeConfig, task: ExtractionTask) -> Iterator[None]:
    """Holds the lock of a query store of its own where units have to be extracted; one that lacks none is
    read by many at once.
    """
    task.discard_damaged()
    task.discard_let_in()
    own = config.query_store and task.missing()
    with lock.held(task.store.root) if own else contextlib.nullcontext():
        yield


def _recognize(
    prepared: Prepared, options: PipelineOptions, engine: PipelineRunner | None
) -> tuple[budget.Schedule, dict[str, int]]:
    """Writes the predictions that the run lacks, and the submission; returns what became of the time, and the
    pipeline's metrics.
    """
    config, task, index = prepared.config, prepared.task, prepared.index
    task.write_worklist()
    if prepared.wanted is not None:
        files.write_parquet(files.join(config.output, WANTED), pa.table({"image_id": prepared.wanted}))
    if config.budget is not None and not files.exists(files.join(config.output, SUBMISSION)):
        write_submission(config.output)  # whatever happens from now on, there is a complete one
    schedule = pilot.schedule(config.budget, lambda: _sample(prepared, options))
    if not index.complete:
        print(
            f"{config.index} was not finished in time: what it has is searched, "
            f"{index.counts.out_of_time:,} images are missing"
        )
    if not index.has_local_features:
        print(
            f"the model {task.recipe.name} has no local features: no re-ranking, candidates keep their "
            "global scores"
        )
    if schedule.hopeless:  # what an earlier start predicted stays
        write_submission(config.output)
        return schedule, {}
    files.delete(files.join(config.output, MANIFEST))
    run_store.delete_provisional(config.output)
    rows = runner.row_counter(files.join(config.output, "predictions"))
    found = runner.row_counter(files.join(config.output, run_store.CANDIDATES))
    phases = [
        task.phase(),
        runner.Phase("retrieve", task.images, found),
        runner.Phase("verify", task.images, rows),
    ]
    # One worker verifies them anyway, and a built-in model is done with them before a second one is ready.
    few = task.images <= UNIT_QUERIES and task.recipe.model in catalog.BUILT_IN
    metrics = runner.run_pipeline(
        lambda pipeline: build(pipeline, prepared, schedule.deadlines), options, phases, engine, few
    )
    write_submission(config.output)  # here: an earlier one would hide that an engine lost a step that does it
    return schedule, metrics


def conclude(prepared: Prepared, schedule: budget.Schedule, metrics: dict[str, int]) -> RunManifest:
    """The manifest of the run, whose predictions and submission are there; cleans up when all is done.

    Raises:
      PipelineError: the engine lost units or queries.
    """
    config, task = prepared.config, prepared.task
    extracted = task.conclude(config.output, schedule.deadlines.extract)
    searched, final = sum(s.images for s in extracted.shards), run_store.final_predictions(config.output)
    complete = not extracted.out_of_time and final == searched
    if not extracted.out_of_time and final < searched and time.time() < schedule.deadlines.verify:
        raise runner.lost_work(f"{searched - final:,} of {searched:,} queries were not predicted")
    if not config.query_store:
        task.store.prune({*task.names})
    failures, uri = task.store.failures(task.names), files.join(config.output, "failures", "extract.parquet")
    if len(failures):
        files.write_parquet(uri, failures)
    else:
        files.delete(uri)
        for root in (config.output, task.store.root):
            files.delete_empty(files.join(root, "failures"))
    answers = pa.concat_tables(run_store.read_predictions(config.output, ["landmark_id", "verified"]))
    manifest = RunManifest(
        recipe=task.recipe,
        index=config.index,
        query_store=task.store.root,
        hyperparameters=prepared.hyperparameters,
        reranked=prepared.index.has_local_features,
        complete=complete,
        counts=RunCounts(
            queries=task.images,
            predicted=len(answers) - answers.column("landmark_id").null_count,
            verified=pc.sum(answers.column("verified"), min_count=0).as_py(),
            failed=len(failures),
            out_of_time=extracted.out_of_time,
            passed_over=sum(prepared.passed_over.values()),
            landmark_not_indexed=prepared.landmark_not_indexed,
        ),
        shards=extracted.shards,
        files=integrity.record_run(config.output),
        time_budget=schedule.report(metrics),
        seconds=runner.seconds(prepared.started, metrics),
        versions=versions(),
        passed_over=prepared.passed_over,
    )
    if complete:
        run_store.delete_candidates(config.output)
    return manifest


def _print_summary(output: str, manifest: RunManifest) -> None:
    counts = manifest.counts
    parts = [f"{counts.predicted:,} of {counts.queries:,} queries predicted"]
    if manifest.reranked:
        parts.append(f"{counts.verified:,} verified")
    parts.append(f"{counts.failed:,} failed")
    if counts.out_of_time:
        parts.append(f"{counts.out_of_time:,} not extracted in time")
    if not manifest.complete:
        parts.append("the same command goes on from here")
    print(
        f"{output}: {', '.join(parts)}; {manifest.seconds['total']:,.1f} s; see "
        f"{files.join(output, SUBMISSION)}"
    )
