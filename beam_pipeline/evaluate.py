"""The evaluate job: predictions and the truth in, metrics out."""

import os
import shlex
import tempfile
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from beam_pipeline import left_out, outputs, runner, terminal
from beam_pipeline.config import ConfigError, EvaluateConfig
from beam_pipeline.manifest import RunManifest
from transforms import gap
from transforms.storage import files, tables

_COUNTS = ("queries", "landmark_queries", "predicted", "correct")


def build(
    pipeline: beam.Pipeline, config: EvaluateConfig, top_k: int | None = None
) -> beam.PCollection[dict]:
    """The graph of the evaluate job: the predictions' files are scored; gives the one metrics dict. Of a run
    `top_k` is the number of candidates that vote.
    """
    return (
        pipeline
        | "Shards" >> beam.Create(tables.prediction_shards(config.predictions)).with_output_types(str)
        | "Score" >> gap.EvaluatePredictions(config.truth, config.non_landmark_share, top_k)
    )


def run(
    config: EvaluateConfig, options: PipelineOptions | None = None, engine: PipelineRunner | None = None
) -> gap.Metrics:
    """Scores predictions, prints the metrics, writes them where there is a place, and returns them.

    The place is config.output, or metrics.json in the run's folder; a CSV alone has none.

    Raises:
      ConfigError: the run is not finished, or there is no place for what a remote runner finds.
      TableError, ValueError: the predictions or the truth are wrong; found before the pipeline starts.
      OSError: a file cannot be read or written.
      PipelineError: the pipeline failed, or the engine lost predictions.
    """
    options = PipelineOptions([]) if options is None else options
    output, top_k = config.output, None
    outputs.check_result(output, "Private")
    if not tables.is_csv(config.predictions):
        top_k = _voters(config.predictions)
        outputs.check_inputs(config.predictions, "recognize", [("--truth", config.truth)])
        output = output or _metrics_uri(config.predictions)
    if output is None and runner.local_workers(options) is None:
        raise ConfigError("--output is needed to score a CSV on a remote runner")
    # A runner would give a worker's error as the text of a stack trace; here it is the error itself.
    answers, truth = tables.read_answers(config.predictions), tables.read_truth(config.truth)
    gap.truth_rows(answers, truth)
    left_out.say_other_landmarks(answers["landmark_id"], truth, config.truth)
    with tempfile.TemporaryDirectory(prefix="landmarks") as scratch:
        written = output or os.path.join(scratch, "metrics.json")

        def build_and_write(pipeline: beam.Pipeline) -> None:
            metrics = build(pipeline, config, top_k)
            metrics | "Write" >> beam.Map(_write, written).with_input_types(dict, str).with_output_types(str)

        files.delete(written)  # of an earlier time
        runner.run_pipeline(build_and_write, options, [], engine)
        metrics = _read(written, len(answers))
    print(format_metrics(metrics))
    if output:
        print(f"metrics: {output}")
    if not tables.is_csv(config.predictions):
        print(report_hint(config.predictions, config.truth))
    return metrics


def _read(uri: str, predictions: int) -> gap.Metrics:
    """The metrics that a pipeline wrote, of so many predictions."""
    if not files.exists(uri):
        raise runner.lost_work("the metrics were not written")
    metrics: gap.Metrics = files.read_json(uri)
    counts = metrics["all"]["counts"]
    lost = predictions - sum(counts[name] for name in ("predicted", "empty", "ignored", "unknown"))
    if lost:
        files.delete(uri)
        raise runner.lost_work(f"{lost:,} of {predictions:,} predictions were not counted")
    return metrics


def evaluate_run(run_dir: str, truth_uri: str) -> gap.Metrics:
    """Scores the predictions of a finished run, and writes RUN/metrics.json.

    Raises:
      ConfigError: it is not finished.
      TableError, ValueError: the predictions or the truth are wrong.
      OSError: a file cannot be read or written.
    """
    answers = tables.read_answers(run_dir, _voters(run_dir))
    metrics = gap.evaluate_predictions(answers, tables.read_truth(truth_uri))
    _write(metrics, _metrics_uri(run_dir))
    return metrics


def _voters(run_dir: str) -> int:
    """How many candidates of each query of a run vote."""
    top_k: int = outputs.read_manifest(run_dir, RunManifest).hyperparameters["top_k"]
    return top_k


def format_metrics(metrics: gap.Metrics) -> str:
    """The metrics as a table for people: a line for all, and for Public and Private where both have
    queries.
    """
    splits = [
        s
        for s in gap.SPLITS
        if s == "all" or 0 < metrics[s]["counts"]["queries"] < metrics["all"]["counts"]["queries"]
    ]
    header: tuple[str, ...] = (
        "",
        "GAP",
        "GAP, landmarks only",
        "top-1",
        "top-5",
        "queries",
        "with landmark",
        "predicted",
        "correct",
    )
    lines = [header]
    for split in splits:
        values = metrics[split]
        shares = (_share(values[name]) for name in ("gap", "gap_landmark_queries", "top1", "top5"))
        lines.append((split, *shares, *(f"{values['counts'][name]:,}" for name in _COUNTS)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))])
        for line in lines
    ]
    counts = metrics["all"]["counts"]
    notes = {
        "missing": "queries of the truth have no row",
        "ignored": "rows are on queries with Usage Ignored",
        "unknown": "empty rows are on images that the truth does not list",
    }
    text += [f"{counts[name]:,} {note}" for name, note in notes.items() if counts[name]]
    if metrics["all"]["top5"] is None and counts["landmark_queries"]:
        text.append("top-5 is known of a run's folder alone: a submission has no candidates")
    return "\n".join([*text, *_judgement_lines(metrics["all"])])


def _judgement_lines(metrics: dict[str, Any]) -> list[str]:
    judgement, lines = metrics["judgement"], []
    if judgement["gap"] != metrics["gap"] and judgement["gap"] is not None:
        lines.append(f"GAP with this part of the queries without a landmark: {judgement['gap']:.4f}")
    if "thresholds" in judgement:
        lines.append(f"calibration error {_share(judgement['calibration_error'])}")
        lines.append("probability  precision  recall  coverage")
        for row in judgement["thresholds"]:
            precision, recall, coverage = (_share(row[k]) for k in ("precision", "recall", "coverage"))
            lines.append(f">= {row['threshold']:<8.2f}  {precision:>9}  {recall:>6}  {coverage:>8}")
    return lines


def report_hint(run: str, truth: str | None) -> str:
    """A line with the command that shows a run, without a truth that came by a pipe and is gone then."""
    words = ["landmarks", "report", "--run", run]
    if truth and not terminal.is_copy(truth):
        words += ["--truth", truth]
    return f"see it: {shlex.join([*words, '--output', run.rstrip('/') + '-report'])}"


def _metrics_uri(run_dir: str) -> str:
    return files.join(run_dir, "metrics.json")


def _write(metrics: dict[str, Any], uri: str) -> str:
    files.write_json(uri, metrics)
    return uri


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
