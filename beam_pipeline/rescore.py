"""The rescore job: a finished run with other scores, from what it keeps of its candidates. Its output is, to
the byte, the run that `landmarks recognize` would have made with these scores.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import evaluate, integrity, outputs, runner
from beam_pipeline.config import ConfigError, RescoreConfig
from beam_pipeline.manifest import RunManifest, versions
from beam_pipeline.prediction_rule import PredictionRule, read_tuned_settings
from transforms.storage import files, run_store
from transforms.submission import SUBMISSION, WANTED, WritePredictions, WriteSubmission
from transforms.types import CandidateUnit


def build(
    pipeline: beam.Pipeline, shards: Sequence[str], rule: PredictionRule, num_to_rerank: int, output: str
) -> beam.PCollection[int]:
    """The graph: prediction shards of a run are scored anew; gives the number of rows of the submission."""
    read = functools.partial(run_store.read_prediction_unit, num_to_rerank=num_to_rerank)
    return (
        pipeline
        | "Shards" >> beam.Create(list(shards)).with_output_types(str)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.Map(read).with_input_types(str).with_output_types(CandidateUnit)
        | "Aggregate" >> rule.step
        | "WritePredictions" >> WritePredictions(output)
        | "Submission" >> WriteSubmission(output)
    )


def _wanted(config: RescoreConfig, run: RunManifest) -> tuple[int, PredictionRule]:
    """Candidates per query, and how they are scored.

    Raises:
      ConfigError: the run does not have what that takes.
    """
    kept = run.hyperparameters["num_to_rerank"]
    count, rule = config.num_to_rerank or kept, PredictionRule.of(run.hyperparameters)
    if config.calibration:
        tuned = read_tuned_settings(config.calibration)
        if tuned.verification != run.verification:
            raise ConfigError(
                f"{config.calibration} is of candidates verified in another way than those of {config.run}: "
                + "; ".join(
                    outputs.differences(
                        dataclasses.asdict(run.verification), dataclasses.asdict(tuned.verification)
                    )
                )
            )
        count, rule = tuned.num_to_rerank, tuned.rule(0.0)
    if count > kept:
        raise ConfigError(f"{config.run} has {kept} candidates of each query, {count} are wanted")
    scoring = dataclasses.replace(rule.scoring, **config.scoring)
    if scoring.top_k > count:
        raise ConfigError(f"--top_k {scoring.top_k} is more than the {count} candidates of each query")
    if config.scoring or config.num_to_rerank:  # probabilities are of the scores that they were learned with
        return count, PredictionRule(scoring, None, config.min_probability or 0.0)
    minimum = rule.min_probability if config.min_probability is None else config.min_probability
    return count, dataclasses.replace(rule, min_probability=minimum)


def run(config: RescoreConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Scores a run anew, or goes on with that; returns the exit code.

    Raises:
      ConfigError, TableError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed.
    """
    started = time.monotonic()
    source = outputs.read_manifest(config.run, RunManifest)
    if not source.complete:
        raise ConfigError(f"{config.run} was not finished in time: run the same `landmarks recognize` again")
    count, rule = _wanted(config, source)
    hyperparameters = {
        "num_to_rerank": count,
        **dataclasses.asdict(source.verification),
        **rule.hyperparameters,
    }
    settings = {**outputs.read_settings(config.run), "hyperparameters": hyperparameters}
    with outputs.opened(config.output, settings, config.overwrite) as unfinished:
        if not unfinished:
            print(f"{config.output} is finished; nothing to do")
        else:
            integrity.check_sizes(config.run, source)
            _copy(config.run, config.output, "plan")
            wanted = files.join(config.run, WANTED)
            if files.exists(wanted):
                files.write_bytes(files.join(config.output, WANTED), files.read_bytes(wanted))
            shards = [
                uri
                for uri in files.list_files(files.join(config.run, "predictions"), ".parquet")
                if not uri.endswith(f"/{run_store.UNPREDICTED}.parquet")
            ]
            rows = runner.row_counter(files.join(config.output, "predictions"))
            metrics = runner.run_pipeline(
                lambda pipeline: build(pipeline, shards, rule, count, config.output),
                options,
                [runner.Phase("rescore", source.counts.queries, rows)],
                engine,
            )
            _copy(config.run, config.output, "failures")
            manifest = dataclasses.replace(
                source,
                hyperparameters=hyperparameters,
                counts=dataclasses.replace(source.counts, predicted=run_store.predicted(config.output)),
                files=integrity.record_run(config.output),
                time_budget=None,
                versions=versions(),
                seconds=runner.seconds(started, metrics),
            )
            outputs.finish(config.output, manifest)
            print(
                f"{config.output}: {manifest.counts.predicted:,} of {manifest.counts.queries:,} queries "
                f"predicted; {manifest.seconds['total']:,.1f} s; see {files.join(config.output, SUBMISSION)}"
            )
    if config.truth:
        print(evaluate.format_metrics(evaluate.evaluate_run(config.output, config.truth)))
    return 0


def _copy(source: str, output: str, folder: str) -> None:
    for uri in files.list_files(files.join(source, folder), ".parquet"):
        files.write_bytes(files.join(output, folder, uri.rsplit("/", 1)[-1]), files.read_bytes(uri))
