"""The rescore job: a finished run with other scores, from what it keeps of its candidates. Its output is, to
the byte, the run that `landmarks recognize` would have made with these scores. Several runs of the same
queries become one, an ensemble.
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
from beam_pipeline.ensemble import JoinRuns
from beam_pipeline.manifest import RunManifest, versions
from beam_pipeline.prediction_rule import PredictionRule, read_tuned_settings
from transforms.storage import files, run_store
from transforms.submission import SUBMISSION, WANTED, WritePredictions, write_submission
from transforms.types import CandidateUnit


def build(
    pipeline: beam.Pipeline,
    shards: Sequence[Sequence[str]],
    weights: Sequence[float],
    rule: PredictionRule,
    num_to_rerank: int,
    lacking: Sequence[frozenset[str]],
    output: str,
) -> beam.PCollection[str]:
    """The graph: prediction shards of each run are scored anew, joined with these weights where there are
    several runs, see JoinRuns; gives the names of the shards written.
    """
    read = functools.partial(run_store.read_prediction_unit, num_to_rerank=num_to_rerank)
    if len(shards) > 1:
        units = pipeline | "Join" >> JoinRuns(shards, weights, num_to_rerank, lacking)
    else:
        units = (
            pipeline
            | "Shards" >> beam.Create(list(shards[0])).with_output_types(str)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.Map(read).with_input_types(str).with_output_types(CandidateUnit)
        )
    return units | "Aggregate" >> rule.step | "WritePredictions" >> WritePredictions(output)


def _weights(config: RescoreConfig, runs: Sequence[RunManifest]) -> tuple[float, ...]:
    """The weights of an ensemble's runs, equal ones without a calibration.

    Raises:
      ConfigError: the calibration is of other runs.
    """
    if not config.calibration:
        return (1.0,) * len(runs)
    members, uris = read_tuned_settings(config.calibration).ensemble, (config.run, *config.more_runs)
    if len(members or (None,)) != len(runs):
        raise ConfigError(
            f"{config.calibration} is of {len(members) or 1} index(es), and --run names {len(runs)} run(s)"
        )
    for member, run, uri in zip(members, runs, uris):
        if outputs.read_settings(uri)["index"] != member.index or run.verification != member.verification:
            raise ConfigError(
                f"{config.calibration} has {member.model} in the place of {uri}, of another index than this "
                "run's, or verified in another way"
            )
    return tuple(member.weight for member in members) or (1.0,)


def _wanted(config: RescoreConfig, runs: Sequence[RunManifest]) -> tuple[int, PredictionRule]:
    """Candidates per query and run, and how they are scored.

    Raises:
      ConfigError: the runs do not have what that takes.
    """
    run, kept = runs[0], min(one.hyperparameters["num_to_rerank"] for one in runs)
    count, rule = config.num_to_rerank or kept, PredictionRule.of(run.hyperparameters)
    if config.calibration:
        tuned = read_tuned_settings(config.calibration)
        if tuned.verification != run.verification and not tuned.ensemble:
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
    # Probabilities are of the scores that they were learned with.
    if config.scoring or config.num_to_rerank or (len(runs) > 1 and not config.calibration):
        return count, PredictionRule(scoring, None, config.min_probability or 0.0)
    minimum = rule.min_probability if config.min_probability is None else config.min_probability
    return count, dataclasses.replace(rule, min_probability=minimum)


def run(config: RescoreConfig, options: PipelineOptions, engine: PipelineRunner | None = None) -> int:
    """Scores a run anew, or goes on with that; returns the exit code.

    Raises:
      ConfigError, TableError, OSError: something is wrong before the pipeline starts.
      PipelineError: the pipeline failed, or the engine lost queries.
    """
    started = time.monotonic()
    uris = (config.run, *config.more_runs)
    runs = [outputs.read_manifest(uri, RunManifest) for uri in uris]
    for uri, one in zip(uris, runs):
        if not one.complete:
            raise ConfigError(f"{uri} was not finished in time: run the same `landmarks recognize` again")
    source, weights = runs[0], _weights(config, runs)
    count, rule = _wanted(config, runs)
    hyperparameters = {
        "num_to_rerank": count * len(runs),
        **dataclasses.asdict(source.verification),
        **rule.hyperparameters,
    }
    if len(runs) > 1:
        hyperparameters["ensemble"] = [
            {"index": outputs.read_settings(uri)["index"], "weight": weight}
            for uri, weight in zip(uris, weights)
        ]
    elif "ensemble" in source.hyperparameters:
        hyperparameters["ensemble"] = source.hyperparameters["ensemble"]
    settings = {**outputs.read_settings(config.run), "hyperparameters": hyperparameters}
    with outputs.opened(config.output, settings, config.overwrite) as unfinished:
        if not unfinished:
            print(f"{config.output} is finished; nothing to do")
        else:
            for uri, one in zip(uris, runs):
                integrity.check_sizes(uri, one)
            _copy(config.run, config.output, "plan")
            wanted = files.join(config.run, WANTED)
            if files.exists(wanted):
                files.write_bytes(files.join(config.output, WANTED), files.read_bytes(wanted))
            shards = [run_store.final_shards(uri) for uri in uris]
            lacking = _lacking(shards) if len(shards) > 1 else []  # what joins runs asks for it
            for uri in files.list_files(files.join(config.output, "predictions"), ".parquet"):
                files.delete(uri)  # of a start whose engine lost something
            rows = runner.row_counter(files.join(config.output, "predictions"))
            metrics = runner.run_pipeline(
                lambda pipeline: build(pipeline, shards, weights, rule, count, lacking, config.output),
                options,
                [runner.Phase("rescore", source.counts.queries, rows)],
                engine,
            )
            queries = sum(map(files.parquet_rows, shards[0]))
            if lost := queries - run_store.final_predictions(config.output):
                raise runner.lost_work(f"{lost:,} of {queries:,} queries were not scored")
            write_submission(config.output)
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


def _lacking(shards: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    """The queries of the first run that each run lacks."""
    ids = [
        {i for uri in of for i in files.read_parquet(uri, ["image_id"])["image_id"].to_pylist()}
        for of in shards
    ]
    return [frozenset(ids[0] - own) for own in ids]


def _copy(source: str, output: str, folder: str) -> None:
    for uri in files.list_files(files.join(source, folder), ".parquet"):
        files.write_bytes(files.join(output, folder, uri.rsplit("/", 1)[-1]), files.read_bytes(uri))
